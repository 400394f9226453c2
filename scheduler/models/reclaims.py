"""Reclaims: an owner takes a reclaimable lease back after its notice."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from scheduler.models.leases import Lease


class Reclaim(models.Model):
    """The notice that an owner gave, and what it owes for the time that it takes away.

    Billing claims it when the lease is over. The amounts are those of the notice and never change.
    """

    lease = models.OneToOneField(Lease, on_delete=models.PROTECT, related_name="reclaim")
    notice_at = models.DateTimeField()
    due_at = models.DateTimeField(
        db_comment="the lease ends then, whether or not anybody calls again"
    )
    promised_until = models.DateTimeField(db_comment="when the lease would have ended")
    remaining_minor = models.BigIntegerField(
        db_comment="minor units: the tenant's price of the time from due_at to promised_until"
    )
    compensation_minor = models.BigIntegerField(
        db_comment="minor units: to the tenant, beside the refund of what it does not get"
    )
    currency = models.CharField(max_length=3)
    actor = models.CharField(max_length=100)
    reminded_at = models.DateTimeField(null=True, db_comment="when the tenant was told of the end")
    stopped_at = models.DateTimeField(
        null=True,
        db_comment="when the node was asked for the GPUs: at due_at, or when the tenant left",
    )

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(due_at__gt=F("notice_at"), promised_until__gt=F("due_at")),
                name="reclaim_takes_something_after_a_notice",
            ),
            models.CheckConstraint(
                condition=Q(remaining_minor__gte=0, compensation_minor__gte=0),
                name="reclaim_amounts_are_not_negative",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["due_at"], condition=Q(stopped_at__isnull=True), name="reclaim_by_due"
            )
        ]

    def __str__(self) -> str:
        return f"{self.lease_id} is due back at {self.due_at:%F %T}"
