"""Hours of leases as they were earned, before the lease is settled."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from billing.models.books import Entry
from scheduler.models import Lease


class EarnedHour(models.Model):
    """What an hour of a lease added to what it had earned: append-only, corrected by the settlement."""

    lease = models.ForeignKey(Lease, on_delete=models.PROTECT, related_name="earned_hours")
    entry = models.OneToOneField(
        Entry, null=True, on_delete=models.PROTECT, related_name="earned_hour"
    )
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField(db_comment="half-open; within one hour of UTC")
    gpu_seconds_delivered = models.BigIntegerField()
    gpu_seconds_busy = models.BigIntegerField()
    worth_micros = models.DecimalField(
        max_digits=40,
        decimal_places=0,
        db_comment="tariff of what was delivered: micros per hour × seconds, exact",
    )
    floor_micros = models.DecimalField(
        max_digits=40,
        decimal_places=0,
        db_comment="owner's floors of what was delivered: micros per hour × seconds, exact",
    )
    earned_minor = models.BigIntegerField(db_comment="owner's part plus fee")
    fee_minor = models.BigIntegerField()
    owner_minor = models.BigIntegerField()
    # For reports, which cannot read a month of minutes: what the readings said when the hour was closed.
    gpu_seconds_metered = models.BigIntegerField(
        null=True, db_comment="of the delivered, covered by readings; null: not noted"
    )
    gpu_seconds_measured = models.BigIntegerField(
        null=True, db_comment="of these, known whether a kernel ran; null: not noted"
    )
    gpu_seconds_attached = models.BigIntegerField(
        null=True, db_comment="a process held memory; null: not measured"
    )
    energy_millijoules = models.BigIntegerField(null=True, db_comment="null: not measured")
    closed_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["starts_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["lease", "starts_at"], name="earned_hour_is_unique"),
            models.CheckConstraint(
                condition=Q(ends_at__gt=F("starts_at")), name="earned_hour_ends_after_start"
            ),
            models.CheckConstraint(
                condition=Q(earned_minor=F("owner_minor") + F("fee_minor")),
                name="earned_hour_money_adds_up",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.lease_id} {self.starts_at:%Y-%m-%dT%H}"
