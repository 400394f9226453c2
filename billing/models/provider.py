"""Between us and the payment provider: what we asked for, what it told us, what it booked."""

from functools import reduce
from operator import or_
from typing import ClassVar

from django.db import models
from django.db.models import Q

from billing.models.books import Entry
from billing.provider_states import ARROWS_BY_MACHINE, IntentKind, IntentStatus, Machine
from marketplace.core import ids
from marketplace.models import Organization

PROVIDER_ID_LENGTH_MAX = 255  # as the provider documents


class Intent(models.Model):
    """One call that changes something at the provider, written down before it is made.

    Its id is the idempotency key and stands in the metadata of what it makes. `due_at` is when it is
    looked at next: at once, after somebody's lease, or after a pause.
    """

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_intent_id)
    kind = models.CharField(max_length=20, choices=IntentKind)
    status = models.CharField(max_length=20, choices=IntentStatus, default=IntentStatus.NEW)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="intents")
    subject_id = models.CharField(max_length=ids.ID_LENGTH_MAX, db_comment="what of ours it is for")
    params = models.JSONField(db_comment="of the call; never changes")
    object_id = models.CharField(
        max_length=PROVIDER_ID_LENGTH_MAX, blank=True, db_comment="the provider's, once known"
    )
    refusal_code = models.CharField(max_length=100, blank=True)
    refusal_message = models.TextField(blank=True)
    attempts = models.PositiveIntegerField(default=0)
    due_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True, db_comment="of the first attempt")
    created_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["kind", "subject_id"], name="intent_is_made_once")
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["due_at"],
                condition=Q(status__in=(IntentStatus.NEW, IntentStatus.SENT)),
                name="intent_due",
            ),
            models.Index(fields=["object_id"], name="intent_by_object"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


def _legal_move() -> Q:
    return reduce(
        or_,
        (
            Q(machine=machine.value) & table.as_check()
            for machine, table in ARROWS_BY_MACHINE.items()
        ),
    )


class ProviderTransition(models.Model):
    """One move of an intent, payment, refund, transfer or dispute: written by the winner, append-only."""

    machine = models.CharField(max_length=10, choices=Machine)
    subject_id = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX, db_index=True)
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20)
    reason = models.CharField(max_length=100, blank=True)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(condition=_legal_move(), name="provider_transition_is_legal")
        ]

    def __str__(self) -> str:
        return f"{self.subject_id}: {self.from_status or '∅'} → {self.to_status}"


class InboxEvent(models.Model):
    """A hint of the provider's that something changed: stored once, by its id, and worked off later."""

    id = models.CharField(primary_key=True, max_length=PROVIDER_ID_LENGTH_MAX)
    type = models.CharField(max_length=120)
    object_id = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX, blank=True)
    payload = models.TextField(db_comment="as it was received")
    source = models.CharField(max_length=10, db_comment="webhook or poll")
    received_at = models.DateTimeField()
    due_at = models.DateTimeField()
    attempts = models.PositiveIntegerField(default=0)
    processed_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=20, blank=True, db_comment="applied, ignored, given_up")
    error = models.CharField(max_length=500, blank=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(
                fields=["due_at"], condition=Q(processed_at__isnull=True), name="inbox_event_due"
            ),
            models.Index(fields=["received_at"], name="inbox_event_by_age"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.id}"


class Watermark(models.Model):
    """How far a list of the provider's was read: everything created before this instant."""

    name = models.CharField(primary_key=True, max_length=40)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.name} {self.at}"


class BalanceTransaction(models.Model):
    """What the provider booked on our balance: one row each, with the entry that it made here."""

    id = models.CharField(primary_key=True, max_length=PROVIDER_ID_LENGTH_MAX)
    category = models.CharField(max_length=60, db_comment="the provider's reporting category")
    source_id = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX, blank=True, db_index=True)
    amount_minor = models.BigIntegerField(db_comment="before the fee; negative: left the balance")
    fee_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    available_at = models.DateTimeField()
    matched_at = models.DateTimeField(null=True, db_comment="known what of ours it is about")
    made_available_at = models.DateTimeField(null=True, db_comment="posted as available")
    subject_id = models.CharField(
        max_length=PROVIDER_ID_LENGTH_MAX, blank=True, db_comment="ours; empty: in suspense"
    )
    entry = models.OneToOneField(
        Entry, null=True, on_delete=models.PROTECT, related_name="balance_transaction"
    )
    created_at = models.DateTimeField(db_comment="the provider's clock")

    class Meta:
        indexes: ClassVar = [
            models.Index(
                fields=["available_at"],
                condition=Q(made_available_at__isnull=True),
                name="balance_transaction_pending",
            ),
            models.Index(
                fields=["created_at"],
                condition=Q(matched_at__isnull=True),
                name="balance_transaction_unmatched",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.category} {self.id}"


class Difference(models.Model):
    """Something on which the provider and our books disagree: open until it is gone."""

    kind = models.CharField(max_length=40)
    object_id = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX)
    detail = models.CharField(max_length=500)
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    resolved_at = models.DateTimeField(null=True)
    resolution = models.CharField(
        max_length=100, blank=True, db_comment="vanished, or adopted by whom"
    )

    class Meta:
        ordering: ClassVar = ["first_seen_at", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["kind", "object_id"],
                condition=Q(resolved_at__isnull=True),
                name="difference_is_open_once",
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.object_id}"


class Dismissal(models.Model):
    """What a person found out of a difference that nothing here can end: it is nobody's. Never changes."""

    difference = models.OneToOneField(
        Difference, primary_key=True, on_delete=models.PROTECT, related_name="dismissal"
    )
    reason = models.CharField(max_length=500)
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=~Q(reason="") & ~Q(actor=""), name="dismissal_has_reason_and_person"
            )
        ]

    def __str__(self) -> str:
        return f"{self.difference_id} by {self.actor}"
