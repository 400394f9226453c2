"""An owner's part of the fee that a tenant left behind, and what of it goes back when the time is resold."""

from typing import ClassVar

from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import (
    DateTimeRangeField,
    IntegerRangeField,
    RangeOperators,
)
from django.db import models
from django.db.models import F, Q

from billing.models.books import Entry
from billing.models.settlements import Settlement
from marketplace.core import ids
from marketplace.models import Organization
from scheduler.models import Change


class FeeShare(models.Model):
    """What one owner gets of the fee of one change; payable once the tenant can no longer dispute it."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_fee_share_id
    )
    change = models.ForeignKey(Change, on_delete=models.PROTECT, related_name="fee_shares")
    owner = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="fee_shares")
    entry = models.OneToOneField(Entry, on_delete=models.PROTECT, related_name="fee_share")
    amount_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    resale_basis_points = models.PositiveIntegerField(
        default=0,
        db_comment="of what the owner gets twice, to who left; as it was when the fee was kept",
    )
    created_at = models.DateTimeField()
    release_due_at = models.DateTimeField(db_comment="becomes payable to the owner")
    released_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["change", "owner"], name="fee_share_is_unique"),
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="fee_share_is_positive"),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["release_due_at"],
                condition=Q(released_at__isnull=True),
                name="fee_share_due_to_release",
            )
        ]

    def __str__(self) -> str:
        return self.id


class Resale(models.Model):
    """A slice: what one lease sold again of the time that one change left for a fee, and who got what of it.

    Append-only, written by the release of the lease's earnings. `worth_micro_seconds` is the part of the
    owner's weight in the change that the slice is, by the price of who left. Of what the owner got twice,
    `taken_minor`, the share goes to the tenant that left, the rest is the market's. A slice of which nothing
    is taken has no entry, and counts all the same: what was rounded down is made up for by the next.
    """

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_resale_id)
    fee_share = models.ForeignKey(FeeShare, on_delete=models.PROTECT, related_name="resales")
    settlement = models.ForeignKey(Settlement, on_delete=models.PROTECT, related_name="resales")
    entry = models.OneToOneField(
        Entry,
        null=True,
        on_delete=models.PROTECT,
        related_name="resale",
        db_comment="null: nothing was taken",
    )
    currency = models.CharField(max_length=3)
    gpu_seconds = models.BigIntegerField(db_comment="delivered again")
    worth_micro_seconds = models.BigIntegerField(
        db_comment="of these by the lots that were given back: micros per GPU-hour times seconds"
    )
    earned_minor = models.BigIntegerField(db_comment="by the lease for these, fee and credits out")
    fee_part_minor = models.BigIntegerField(db_comment="of the owner's part of the fee, for these")
    taken_minor = models.BigIntegerField(db_comment="from what the lease earned its owner")
    share_minor = models.BigIntegerField(db_comment="to the tenant that left")
    shared_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["fee_share", "settlement"], name="resale_is_unique"),
            models.CheckConstraint(
                condition=Q(share_minor__gte=0)
                & Q(share_minor__lte=F("taken_minor"))
                & Q(taken_minor__lte=F("earned_minor"))
                & Q(taken_minor__lte=F("fee_part_minor")),
                name="resale_takes_what_was_paid_twice",
            ),
            models.CheckConstraint(
                condition=Q(entry__isnull=False, taken_minor__gt=0)
                | Q(entry__isnull=True, taken_minor=0),
                name="resale_without_entry_takes_nothing",
            ),
        ]

    def __str__(self) -> str:
        return self.id


class ResalePart(models.Model):
    """A run of slots and the time in which a lease delivered them again; no part of any other."""

    resale = models.ForeignKey(Resale, on_delete=models.PROTECT, related_name="parts")
    slots = IntegerRangeField(db_comment="half-open")
    period = DateTimeRangeField(db_comment="half-open, between the handover and the return")
    gpu_seconds = models.BigIntegerField(db_comment="delivered")

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            ExclusionConstraint(
                name="resale_part_is_shared_once",
                expressions=[
                    ("slots", RangeOperators.OVERLAPS),
                    ("period", RangeOperators.OVERLAPS),
                ],
            ),
            models.CheckConstraint(
                condition=Q(slots__isempty=False, period__isempty=False, gpu_seconds__gt=0),
                name="resale_part_is_not_empty",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.resale_id}: slots {self.slots}"
