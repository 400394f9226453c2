"""Payouts: money to an owner, and every move of it."""

from typing import ClassVar, Self

from django.db import models
from django.db.models import F, Q

from billing.models.books import Entry
from billing.models.disputes import DisputeReturn
from billing.models.fee_shares import FeeShare
from billing.models.settlements import Correction, Settlement
from billing.states import (
    PAYOUT_ARROWS,
    PayoutStatus,
)
from marketplace.core import ids
from marketplace.models import Organization


def _exactly_one_of(*names: str) -> Q:
    """Return the condition that one of some columns has a value, and the others have none."""
    condition = Q()
    for name in names:
        condition |= Q(**{f"{other}__isnull": other != name for other in names})
    return condition


class Reserve(models.Model):
    """The part of an owner's earnings, or of its part of a fee, that is kept back against disputes."""

    settlement = models.OneToOneField(
        Settlement, null=True, on_delete=models.PROTECT, related_name="reserve"
    )
    fee_share = models.OneToOneField(
        FeeShare, null=True, on_delete=models.PROTECT, related_name="reserve"
    )
    amount_minor = models.BigIntegerField()
    drawn_minor = models.BigIntegerField(default=0, db_comment="of it, for a dispute that was lost")
    currency = models.CharField(max_length=3)
    release_due_at = models.DateTimeField()
    released_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="reserve_is_positive"),
            models.CheckConstraint(
                condition=Q(drawn_minor__gte=0, drawn_minor__lte=F("amount_minor")),
                name="reserve_is_drawn_once",
            ),
            models.CheckConstraint(
                condition=_exactly_one_of("settlement", "fee_share"),
                name="reserve_is_of_one_thing",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["release_due_at"],
                condition=Q(released_at__isnull=True),
                name="reserve_due_to_release",
            )
        ]

    def __str__(self) -> str:
        return f"reserve of {self.settlement_id or self.fee_share_id}"

    @property
    def owner(self) -> Organization:
        source = self.settlement or self.fee_share
        assert source is not None  # reserve_is_of_one_thing
        return source.owner

    @property
    def left_minor(self) -> int:
        return self.amount_minor - self.drawn_minor


class PayoutQuerySet(models.QuerySet["Payout"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(owner=organization)


class Payout(models.Model):
    """Money to an owner: of a settlement, a fee, a reserve, a correction, or a charge that was given back."""

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_payout_id)
    owner = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="payouts")
    settlement = models.OneToOneField(
        Settlement, null=True, on_delete=models.PROTECT, related_name="payout"
    )
    fee_share = models.OneToOneField(
        FeeShare, null=True, on_delete=models.PROTECT, related_name="payout"
    )
    reserve = models.OneToOneField(
        Reserve, null=True, on_delete=models.PROTECT, related_name="payout"
    )
    correction = models.OneToOneField(
        Correction, null=True, on_delete=models.PROTECT, related_name="payout"
    )
    dispute_return = models.OneToOneField(
        DisputeReturn, null=True, on_delete=models.PROTECT, related_name="payout"
    )
    entry = models.OneToOneField(Entry, on_delete=models.PROTECT, related_name="payout")
    status = models.CharField(max_length=20, choices=PayoutStatus, default=PayoutStatus.DUE)
    amount_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    due_at = models.DateTimeField()
    created_at = models.DateTimeField()

    objects = PayoutQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="payout_is_positive"),
            models.CheckConstraint(
                condition=_exactly_one_of(
                    "settlement", "fee_share", "reserve", "correction", "dispute_return"
                ),
                name="payout_is_for_one_thing",
            ),
        ]

    def __str__(self) -> str:
        return self.id


class PayoutTransition(models.Model):
    """One move of a payout: append-only, written by the winner in the transaction of the move."""

    payout = models.ForeignKey(Payout, on_delete=models.PROTECT, related_name="transitions")
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=PayoutStatus)
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=PAYOUT_ARROWS.as_check(), name="payout_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.payout_id}: {self.from_status or '∅'} → {self.to_status}"
