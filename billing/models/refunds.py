"""Money on its way back to a tenant."""

from typing import ClassVar, Self

from django.db import models
from django.db.models import Q

from billing.models.books import Entry
from billing.models.payments import Payment
from billing.states import REFUND_ARROWS, RefundStatus
from marketplace.core import ids
from marketplace.models import Organization
from scheduler.models import Reservation


class RefundQuerySet(models.QuerySet["Refund"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(reservation__organization=organization)


class Refund(models.Model):
    """What is sent back of a reservation that was not paid from the wallet, the way it came.

    One goes by one payment; what came by no payment through the provider has none.
    """

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_refund_id)
    reservation = models.ForeignKey(Reservation, on_delete=models.PROTECT, related_name="refunds")
    status = models.CharField(max_length=20, choices=RefundStatus, default=RefundStatus.DUE)
    payment = models.ForeignKey(
        Payment,
        null=True,
        on_delete=models.PROTECT,
        related_name="reservation_refunds",
        db_comment="by which it goes back; null: by none through the provider",
    )
    amount_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    created_at = models.DateTimeField()

    objects = RefundQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="refund_is_positive"),
            models.UniqueConstraint(
                fields=["reservation", "payment"],
                condition=Q(status=RefundStatus.DUE),
                nulls_distinct=False,
                name="refund_is_due_once_at_a_time",
            ),
        ]

    def __str__(self) -> str:
        return self.id


class RefundTransition(models.Model):
    """One move of a refund: append-only, written by the winner in the transaction of the move."""

    refund = models.ForeignKey(Refund, on_delete=models.PROTECT, related_name="transitions")
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=RefundStatus)
    entry = models.OneToOneField(
        Entry, null=True, on_delete=models.PROTECT, related_name="refund_transition"
    )
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=REFUND_ARROWS.as_check(), name="refund_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.refund_id}: {self.from_status or '∅'} → {self.to_status}"
