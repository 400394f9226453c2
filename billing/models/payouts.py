"""Payouts: money to an owner, and every move of it."""

from typing import ClassVar, Self

from django.db import models
from django.db.models import Q

from billing.models.books import Entry
from billing.models.fee_shares import FeeShare
from billing.models.settlements import Settlement
from billing.states import (
    PAYOUT_ARROWS,
    PayoutStatus,
)
from marketplace.core import ids
from marketplace.models import Organization


class PayoutQuerySet(models.QuerySet["Payout"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(owner=organization)


class Payout(models.Model):
    """Money to an owner for one settlement, or for its part of one fee."""

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_payout_id)
    owner = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="payouts")
    settlement = models.OneToOneField(
        Settlement, null=True, on_delete=models.PROTECT, related_name="payout"
    )
    fee_share = models.OneToOneField(
        FeeShare, null=True, on_delete=models.PROTECT, related_name="payout"
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
                condition=Q(settlement__isnull=False, fee_share__isnull=True)
                | Q(settlement__isnull=True, fee_share__isnull=False),
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
