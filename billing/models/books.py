"""The books: accounts, entries and their postings."""

from typing import ClassVar

from django.db import models
from django.db.models import Q

from billing.states import (
    ONCE_PER_SUBJECT,
    AccountKind,
    Side,
)
from marketplace.core import ids
from marketplace.models import Organization


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
    # No `choices` in the books: they would make a migration of every kind that is added to the chart.
    kind = models.CharField(max_length=20, db_comment="an AccountKind")
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
            ),
            models.Index(
                fields=["organization", "currency"],
                condition=Q(kind=AccountKind.RECEIVABLE, balance__gt=0),
                name="account_owed_by_tenant",
            ),
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
    kind = models.CharField(max_length=20, db_comment="an EntryKind")
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
