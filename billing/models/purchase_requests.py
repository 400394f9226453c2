"""Orders that take a second person of the tenant, and what became of them."""

import datetime as dt
from typing import ClassVar, Self

from django.db import models
from django.db.models import F, Q

from billing.models.books import Entry
from billing.states import APPROVAL_ARROWS, ApprovalStatus, HoldResolution, PurchaseKind
from marketplace.core import ids
from marketplace.core.limits import NAME_LENGTH_MAX
from marketplace.models import Organization


class PurchaseRequestQuerySet(models.QuerySet["PurchaseRequest"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)


class PurchaseRequest(models.Model):
    """An order above the limit: one asks by ordering, another one of the tenant decides, once per quote."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_approval_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="purchase_requests"
    )
    kind = models.CharField(max_length=20, choices=PurchaseKind)
    status = models.CharField(
        max_length=20, choices=ApprovalStatus, default=ApprovalStatus.REQUESTED
    )
    quote_id = models.CharField(
        max_length=ids.ID_LENGTH_MAX, db_comment="of a reservation, or of a change of one"
    )
    reservation_id = models.CharField(
        max_length=ids.ID_LENGTH_MAX, blank=True, db_comment="what is changed; empty: a new one"
    )
    project = models.CharField(max_length=NAME_LENGTH_MAX, blank=True)
    amount_minor = models.BigIntegerField(db_comment="what the order comes to, net of tax")
    currency = models.CharField(max_length=3)
    requested_by = models.CharField(max_length=100)
    requested_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_comment="as the quote does; then there is nothing to buy")
    decided_by = models.CharField(max_length=100, blank=True)
    decided_at = models.DateTimeField(null=True)

    objects = PurchaseRequestQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["quote_id"], name="purchase_is_asked_for_once"),
            models.CheckConstraint(
                condition=~Q(decided_by=F("requested_by")), name="purchase_needs_four_eyes"
            ),
            models.CheckConstraint(
                condition=Q(status=ApprovalStatus.REQUESTED, decided_by="", decided_at=None)
                | (
                    ~Q(status=ApprovalStatus.REQUESTED)
                    & ~Q(decided_by="")
                    & Q(decided_at__isnull=False)
                ),
                name="purchase_is_decided_by_somebody",
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["organization", "-id"], name="purchase_request_by_tenant")
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.quote_id}"


class PurchaseRequestTransition(models.Model):
    """One move of a request: append-only, written by the winner in the transaction of the move."""

    purchase_request = models.ForeignKey(
        PurchaseRequest, on_delete=models.PROTECT, related_name="transitions"
    )
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=ApprovalStatus)
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=APPROVAL_ARROWS.as_check(), name="purchase_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.purchase_request_id}: {self.from_status or '∅'} → {self.to_status}"


class WalletHoldQuerySet(models.QuerySet["WalletHold"]):
    def open(self) -> Self:
        return self.filter(resolved_at__isnull=True)

    def due(self, *, at: dt.datetime) -> Self:
        """Return those whose order cannot be made any more."""
        refused = Q(purchase_request__status=ApprovalStatus.REFUSED)
        return self.open().filter(Q(held_until__lte=at) | refused)


class WalletHold(models.Model):
    """What is kept of a wallet for one request: never changed but for its one resolution."""

    purchase_request = models.OneToOneField(
        PurchaseRequest, primary_key=True, on_delete=models.PROTECT, related_name="hold"
    )
    amount_minor = models.BigIntegerField(db_comment="with tax")
    currency = models.CharField(max_length=3)
    held_until = models.DateTimeField(db_comment="given back then, as the quote expires")
    entry = models.OneToOneField(
        Entry, on_delete=models.PROTECT, related_name="wallet_hold", db_comment="that took it"
    )
    created_at = models.DateTimeField()
    resolution = models.CharField(max_length=10, blank=True, choices=HoldResolution)
    resolved_by = models.OneToOneField(
        Entry,
        null=True,
        on_delete=models.PROTECT,
        related_name="resolved_hold",
        db_comment="the entry that bought with it, or gave it back",
    )
    resolved_at = models.DateTimeField(null=True)

    objects = WalletHoldQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-purchase_request"]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="wallet_hold_is_positive"),
            models.CheckConstraint(
                condition=Q(resolution="", resolved_by=None, resolved_at=None)
                | (~Q(resolution="") & Q(resolved_by__isnull=False, resolved_at__isnull=False)),
                name="wallet_hold_is_open_or_resolved",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["held_until"],
                condition=Q(resolved_at__isnull=True),
                name="wallet_hold_due",
            )
        ]

    def __str__(self) -> str:
        return f"{self.amount_minor} {self.currency} for {self.purchase_request_id}"
