"""The books: accounts, entries, postings, and what settlement makes of a finished lease.

Append-only, balance, sealing and guards are enforced by PostgreSQL (migration `0002_guard_the_books`).
"""

from typing import ClassVar, Self

from django.db import models
from django.db.models import F, Q

from billing.states import (
    ONCE_PER_SUBJECT,
    PAYOUT_ARROWS,
    AccountKind,
    EntryKind,
    PayoutStatus,
    Side,
)
from marketplace.core import ids
from marketplace.models import Organization
from scheduler.models import Lease


class Account(models.Model):
    """One account of one currency; GPU-seconds are a currency of their own.

    `balance` is kept, in the account's normal side, for guarded accounts alone; PostgreSQL keeps it and
    refuses to let it fall below zero. Every other balance is the sum of postings.
    """

    code = models.CharField(max_length=120, db_comment="kind, or kind:subject_id")
    subject_id = models.CharField(
        max_length=ids.ID_LENGTH_MAX,
        blank=True,
        db_comment="what it belongs to; empty: the platform",
    )
    kind = models.CharField(max_length=20, choices=AccountKind)
    currency = models.CharField(max_length=12, db_comment="ISO 4217 lower case, or gpu_second")
    normal_side = models.CharField(max_length=6, choices=Side)
    guarded = models.BooleanField(db_comment="its balance may not fall below zero")
    balance = models.BigIntegerField(
        default=0, db_comment="guarded accounts only; kept by trigger, normal side"
    )
    organization = models.ForeignKey(
        Organization, null=True, on_delete=models.PROTECT, related_name="accounts"
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["code", "currency"], name="account_code_is_unique"),
            models.CheckConstraint(condition=Q(balance__gte=0), name="account_is_not_overdrawn"),
            models.CheckConstraint(
                condition=Q(guarded=True) | Q(balance=0), name="account_balance_only_where_guarded"
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["subject_id"],
                condition=Q(kind=AccountKind.U_OPEN, balance__gt=0),
                name="account_open_by_subject",
            )
        ]

    def __str__(self) -> str:
        return f"{self.code} ({self.currency})"


class Entry(models.Model):
    """One transaction of the ledger: never changed, corrected by a reversal."""

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_entry_id)
    idempotency_key = models.CharField(max_length=200, unique=True)
    content_sha256 = models.CharField(
        max_length=64, db_comment="hex; the same key with other content is refused"
    )
    kind = models.CharField(max_length=20, choices=EntryKind)
    subject_id = models.CharField(
        max_length=ids.ID_LENGTH_MAX, db_index=True, db_comment="what it is about"
    )
    reverses = models.OneToOneField(
        "self", null=True, on_delete=models.PROTECT, related_name="reversed_by"
    )
    effective_at = models.DateTimeField(db_comment="business time")
    recorded_at = models.DateTimeField(
        db_default=models.functions.Now(), db_comment="database clock"
    )
    transaction_id = models.BigIntegerField(
        db_default=0, db_comment="pg_current_xact_id of its making, set by trigger: seals it"
    )

    class Meta:
        verbose_name_plural = "entries"
        ordering: ClassVar = ["-recorded_at", "-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["kind", "subject_id"],
                condition=Q(kind__in=ONCE_PER_SUBJECT),
                name="entry_fact_is_unique",
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


class Posting(models.Model):
    """One leg of an entry: a positive amount on one side of one account."""

    entry = models.ForeignKey(Entry, on_delete=models.PROTECT, related_name="postings")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="postings")
    side = models.CharField(max_length=6, choices=Side)
    amount = models.BigIntegerField(db_comment="minor units, or GPU-seconds; positive")

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount__gt=0), name="posting_amount_is_positive")
        ]
        indexes: ClassVar = [models.Index(fields=["account", "entry"], name="posting_by_account")]

    def __str__(self) -> str:
        return f"{self.side} {self.amount} on account {self.account_id}"


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


class PayoutQuerySet(models.QuerySet["Payout"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(owner=organization)


class Payout(models.Model):
    """Money to an owner for one settlement."""

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_payout_id)
    owner = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="payouts")
    settlement = models.OneToOneField(Settlement, on_delete=models.PROTECT, related_name="payout")
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
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="payout_is_positive")
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
