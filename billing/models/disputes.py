"""Payments that a tenant's bank has called into question."""

from typing import ClassVar

from django.db import models
from django.db.models import Q

from billing.states import DISPUTE_ARROWS, DisputeStatus
from scheduler.models import Reservation


class Dispute(models.Model):
    """A dispute at the payment provider. While it is open its owners' earnings are not released."""

    id = models.CharField(primary_key=True, max_length=64, db_comment="the provider's")
    reservation = models.ForeignKey(Reservation, on_delete=models.PROTECT, related_name="disputes")
    status = models.CharField(max_length=20, choices=DisputeStatus, default=DisputeStatus.OPEN)
    amount_minor = models.BigIntegerField()
    fee_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    opened_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["-opened_at"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(amount_minor__gt=0, fee_minor__gte=0), name="dispute_is_positive"
            )
        ]

    def __str__(self) -> str:
        return self.id


class DisputeTransition(models.Model):
    """One move of a dispute: append-only, written by the winner in the transaction of the move."""

    dispute = models.ForeignKey(Dispute, on_delete=models.PROTECT, related_name="transitions")
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=DisputeStatus)
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=DISPUTE_ARROWS.as_check(), name="dispute_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.dispute_id}: {self.from_status or '∅'} → {self.to_status}"
