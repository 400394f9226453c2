"""What a tenant does with what it has bought: the rule, the quote of a change, and the change."""

import datetime as dt
from typing import ClassVar, Self

from django.contrib.postgres.fields import DateTimeRangeField, IntegerRangeField
from django.contrib.postgres.indexes import GistIndex
from django.db import models
from django.db.models import F, Q

from agents.models import Node
from marketplace.core import ids
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler.models.quotes import Quote
from scheduler.models.reservations import Reservation
from scheduler.states import ChangeKind, ExtensionDropReason, ExtensionLimit, ReservationStatus


class ChangeRule(models.Model):
    """What leaving early costs, and until when a window may change: one version, never edited.

    A quote keeps the version it was made by; the newest one makes new quotes.
    """

    version = models.PositiveIntegerField(unique=True)
    ladder = models.JSONField(
        db_comment="[[notice in seconds at least, fee in basis points], …], falling; ends with notice 0"
    )
    extension_opens_seconds = models.PositiveIntegerField(
        db_comment="before its end, from when on a reservation can be extended"
    )
    extension_closes_seconds = models.PositiveIntegerField(
        db_comment="before its end, until when a reservation can be extended"
    )
    move_closes_seconds = models.PositiveIntegerField(
        db_comment="before its start, until when a window can be moved"
    )
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=100)

    class Meta:
        ordering: ClassVar = ["-version"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(extension_opens_seconds__gt=F("extension_closes_seconds")),
                name="change_rule_opens_before_it_closes",
            )
        ]

    def __str__(self) -> str:
        return f"version {self.version}"


class ChangeQuoteQuerySet(models.QuerySet["ChangeQuote"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)


class ChangeQuote(models.Model):
    """What a change of a reservation will cost or bring, promised until `expires_at`.

    It holds for the reservation as it was (`from_…`): a change in between makes it useless. `starts_at` and
    `ends_at` are the window after the change, null where nothing is left of it.
    """

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_quote_id)
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="change_quotes"
    )
    reservation = models.ForeignKey(
        Reservation, on_delete=models.PROTECT, related_name="change_quotes"
    )
    kind = models.CharField(max_length=20, choices=ChangeKind)
    rule = models.ForeignKey(ChangeRule, on_delete=models.PROTECT)
    from_status = models.CharField(max_length=20, choices=ReservationStatus)
    from_starts_at = models.DateTimeField()
    from_ends_at = models.DateTimeField()
    from_total_minor = models.BigIntegerField(db_comment="what was paid for; 0 before the payment")
    starts_at = models.DateTimeField(null=True)
    ends_at = models.DateTimeField(null=True)
    lots = models.JSONField(
        default=list, db_comment="of the whole window after the change; empty where nothing is left"
    )
    added_rate = models.DecimalField(
        max_digits=18, decimal_places=6, null=True, db_comment="per GPU-hour, mean of what is added"
    )
    price_breakdown = models.JSONField(default=list, db_comment="of each part that is added")
    longest_ends_at = models.DateTimeField(
        null=True, db_comment="of an extension: how far it could have gone"
    )
    longest_limited_by = models.CharField(max_length=20, blank=True, choices=ExtensionLimit)
    notice_seconds = models.PositiveIntegerField(db_comment="to the first start that was bought")
    fee_basis_points = models.PositiveIntegerField(
        db_comment="of what goes back; by the rule's ladder, or 0 where it is waived"
    )
    fee_waived_because = models.CharField(max_length=40, blank=True)
    total_minor = models.BigIntegerField(db_comment="of the window after the change")
    charge_minor = models.BigIntegerField()
    refund_minor = models.BigIntegerField()
    fee_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    objects = ChangeQuoteQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(charge_minor__gte=0, refund_minor__gte=0, fee_minor__gte=0),
                name="change_quote_is_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(
                    total_minor=F("from_total_minor")
                    + F("charge_minor")
                    - F("refund_minor")
                    - F("fee_minor")
                ),
                name="change_quote_adds_up",
            ),
            models.CheckConstraint(
                condition=Q(starts_at__isnull=True, ends_at__isnull=True)
                | Q(ends_at__gt=F("starts_at")),
                name="change_quote_ends_after_start",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["organization", "expires_at"],
                condition=Q(used_at__isnull=True),
                name="change_quote_unused",
            )
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def unpaid_minor(self) -> int:
        """Return what of the price was never asked for or paid: a balance, of what it gives up."""
        gives_up = self.kind == ChangeKind.CANCELLATION and self.from_total_minor > 0
        return self.reservation.unpaid_minor if gives_up else 0

    @property
    def window(self) -> Window | None:
        """Return the window after the change, None where nothing is left of it."""
        if self.starts_at is None or self.ends_at is None:
            return None
        return Window(self.starts_at, self.ends_at)


class ExtensionHoldQuerySet(models.QuerySet["ExtensionHold"]):
    def open(self) -> Self:
        """Return those that keep hours now."""
        return self.filter(dropped_at__isnull=True, made_at__isnull=True)


class ExtensionHold(models.Model):
    """Hours that are kept behind a reservation, or another window beside it, until they are paid for.

    Its id is that of the change that it becomes. `made_at` and `dropped_at` tell its story: money that came
    after it was dropped may have made it all the same.
    """

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_extension_id
    )
    reservation = models.ForeignKey(
        Reservation, on_delete=models.PROTECT, related_name="extension_holds"
    )
    quote = models.OneToOneField(
        ChangeQuote, on_delete=models.PROTECT, related_name="extension_hold"
    )
    kept = models.OneToOneField(
        Quote,
        null=True,
        on_delete=models.PROTECT,
        related_name="kept_for",
        db_comment="that holds the places of another window; null: the same GPUs are kept for longer",
    )
    held_until = models.DateTimeField(db_comment="dropped then, unless it was paid for")
    actor = models.CharField(max_length=100)
    created_at = models.DateTimeField()
    dropped_at = models.DateTimeField(null=True)
    drop_reason = models.CharField(max_length=40, blank=True, choices=ExtensionDropReason)
    made_at = models.DateTimeField(null=True)

    objects = ExtensionHoldQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["reservation"],
                condition=Q(dropped_at__isnull=True, made_at__isnull=True),
                name="extension_is_held_once_at_a_time",
            ),
            models.CheckConstraint(
                condition=Q(dropped_at__isnull=True, drop_reason="")
                | (Q(dropped_at__isnull=False) & ~Q(drop_reason="")),
                name="extension_hold_says_why_it_was_dropped",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["held_until"],
                condition=Q(dropped_at__isnull=True, made_at__isnull=True),
                name="extension_hold_due",
            )
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def window(self) -> Window:
        """Return the window that is asked for."""
        assert self.quote.window is not None, self.pk
        return self.quote.window

    @property
    def ends_at(self) -> dt.datetime:
        """Return the end that is asked for."""
        return self.window.ends_at


class Change(models.Model):
    """A change that was made: append-only, written in the transaction that made it.

    `charged - refunded - fee` is by how much the reservation's total changed. `given_back_by_owner` says
    by which weights the owners share the fee: by the price of the time that was given back on their GPUs.
    """

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_change_id)
    reservation = models.ForeignKey(Reservation, on_delete=models.PROTECT, related_name="changes")
    quote = models.OneToOneField(ChangeQuote, on_delete=models.PROTECT, related_name="change")
    kind = models.CharField(max_length=20, choices=ChangeKind)
    from_starts_at = models.DateTimeField()
    from_ends_at = models.DateTimeField()
    starts_at = models.DateTimeField(null=True)
    ends_at = models.DateTimeField(null=True)
    charged_minor = models.BigIntegerField()
    refunded_minor = models.BigIntegerField()
    fee_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    gpu_seconds_added = models.BigIntegerField()
    gpu_seconds_released = models.BigIntegerField()
    given_back_by_owner = models.JSONField(default=dict, db_comment="organization to its weight")
    from_lots = models.JSONField(
        default=list,
        db_comment="what was bought before, where a fee was kept of what is given back; else empty",
    )
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(
                    charged_minor__gte=0,
                    refunded_minor__gte=0,
                    fee_minor__gte=0,
                    gpu_seconds_added__gte=0,
                    gpu_seconds_released__gte=0,
                ),
                name="change_is_not_negative",
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


class ReleasedPlace(models.Model):
    """GPUs and the time that a change gave back of them, where a fee was kept of that: append-only.

    An allocation is moved and cut, and tells no more who had it when; this is what the tenant left. `lot` is
    the number of the lot in the change's `from_lots` by which that time was priced.
    """

    change = models.ForeignKey(Change, on_delete=models.PROTECT, related_name="released_places")
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="released_places")
    slots = IntegerRangeField(db_comment="half-open, within the node's block")
    lot = models.PositiveSmallIntegerField()
    period = DateTimeRangeField(db_comment="half-open")

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(slots__isempty=False, period__isempty=False),
                name="released_place_is_not_empty",
            ),
        ]
        indexes: ClassVar = [
            # Who left the time that a lease delivers: the cost follows what was left of its node then.
            GistIndex(fields=["slots", "period"], name="released_place_of_slots")
        ]

    def __str__(self) -> str:
        return f"slots {self.slots} left by {self.change_id}"
