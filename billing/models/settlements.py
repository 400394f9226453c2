"""Settlements: what became of a finished lease."""

from typing import ClassVar, Self

from django.db import models
from django.db.models import F, Q

from billing.models.books import Entry
from marketplace.core import ids
from marketplace.models import Organization
from scheduler.models import Lease


class SettlementQuerySet(models.QuerySet["Settlement"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(lease__reservation__organization=organization)


class Settlement(models.Model):
    """A finished lease as final money and GPU-seconds, with the evidence it rests on."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_settlement_id
    )
    lease = models.OneToOneField(Lease, on_delete=models.PROTECT, related_name="settlement")
    owner = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="settlements")
    entry = models.OneToOneField(Entry, on_delete=models.PROTECT, related_name="settlement")
    currency = models.CharField(max_length=3)
    gpu_seconds_bought = models.BigIntegerField()
    gpu_seconds_delivered = models.BigIntegerField(
        db_comment="between the receipts, within the window"
    )
    gpu_seconds_busy = models.BigIntegerField(db_comment="a kernel ran; at most delivered")
    gpu_seconds_metered = models.BigIntegerField(
        db_comment="covered by meter readings; at most delivered"
    )
    bought_minor = models.BigIntegerField(db_comment="the lease's part of the reservation's price")
    earned_minor = models.BigIntegerField(
        db_comment="for what was delivered: owner's part plus fee"
    )
    fee_minor = models.BigIntegerField()
    owner_minor = models.BigIntegerField()
    refunded_minor = models.BigIntegerField(db_comment="for what was not delivered; to the wallet")
    evidence = models.JSONField(db_comment="ids of receipts, meter coverage, statuses")
    settled_at = models.DateTimeField()
    release_due_at = models.DateTimeField(db_comment="becomes payable to the owner")
    released_at = models.DateTimeField(null=True)

    objects = SettlementQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(bought_minor=F("earned_minor") + F("refunded_minor"))
                & Q(earned_minor=F("owner_minor") + F("fee_minor")),
                name="settlement_money_adds_up",
            ),
            models.CheckConstraint(
                condition=Q(gpu_seconds_busy__lte=F("gpu_seconds_delivered"))
                & Q(gpu_seconds_delivered__lte=F("gpu_seconds_bought")),
                name="settlement_seconds_are_ordered",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["release_due_at"],
                condition=Q(released_at__isnull=True),
                name="settlement_due_to_release",
            )
        ]

    def __str__(self) -> str:
        return self.id
