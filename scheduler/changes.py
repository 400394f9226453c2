"""Quotes of changes, how they are used, and what a change writes: shared by all kinds of it.

A quote of a change moves once in its life, so `used_at` and `expires_at` tell its whole story.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Min

from marketplace import events
from marketplace.core import ids
from marketplace.core.errors import DomainError, NotFound, StateConflict
from marketplace.core.windows import Window, format_instant
from marketplace.models import Organization
from marketplace.states import EventKind
from scheduler import change_rules, given_back
from scheduler.given_back import GivenBack
from scheduler.holds import QuoteExpired, QuoteUsed
from scheduler.lots import Lots
from scheduler.models import Change, ChangeQuote, ChangeRule, Reservation
from scheduler.quotas import LimitExceeded
from scheduler.states import ChangeKind

# Long enough to read it to a colleague; what it promises costs the market little.
CANCELLATION_QUOTE_SECONDS = 15 * 60
# As long as any other price is locked.
PRICE_LOCK_SECONDS = 10 * 60
OPEN_CHANGE_QUOTES_MAX = 500  # per tenant: rows are all that they cost
_EVENTS = {
    ChangeKind.CANCELLATION: EventKind.RESERVATION_CANCELLED,
    ChangeKind.EARLY_RETURN: EventKind.RESERVATION_CHANGED,
    ChangeKind.EXTENSION: EventKind.RESERVATION_EXTENDED,
    ChangeKind.SHORTENING: EventKind.RESERVATION_CHANGED,
    ChangeKind.MOVE: EventKind.RESERVATION_CHANGED,
}


class PaymentHeld(DomainError):
    """Until the price that is held was taken a reservation can be cancelled, and not be changed otherwise."""

    code = "payment_held"
    title = "The price is held and was not taken yet"


class BalanceOpen(DomainError):
    """What is bought changes only once all of it is paid; leaving is possible before."""

    code = "balance_open"
    title = "A part of the price is not paid yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """By which rule a change is made, with which notice, and what part of what goes back is kept."""

    rule: ChangeRule
    notice_seconds: int
    fee_basis_points: int
    fee_waived_because: str = ""


def terms_of(*, reservation: Reservation, at: dt.datetime, waived_because: str = "") -> Terms:
    """Return the terms of giving something back at `at`, by the rule in force."""
    rule = change_rules.current(at=at)
    first = reservation.changes.aggregate(at=Min("from_starts_at"))["at"]
    first_start = min(reservation.starts_at, first or reservation.starts_at)
    notice = max(0, (first_start - at) // dt.timedelta(seconds=1))
    fee = change_rules.fee_basis_points(ladder=rule.ladder, notice_seconds=notice)
    return Terms(
        rule=rule,
        notice_seconds=notice,
        fee_basis_points=0 if waived_because else fee,
        fee_waived_because=waived_because,
    )


def new_quote(
    *,
    reservation: Reservation,
    kind: ChangeKind,
    terms: Terms,
    lots: Lots | None,
    total_minor: int,
    lifetime_seconds: int,
    at: dt.datetime,
) -> ChangeQuote:
    """Return a quote that is not stored yet; `lots` are those of the window after the change.

    :raises LimitExceeded: when the tenant has enough of them open.
    """
    open_quotes = ChangeQuote.objects.filter(
        organization=reservation.organization, used_at__isnull=True, expires_at__gt=at
    )
    if open_quotes.count() >= OPEN_CHANGE_QUOTES_MAX:
        raise LimitExceeded(f"at most {OPEN_CHANGE_QUOTES_MAX} open quotes of changes")
    before = _paid_minor(reservation)
    moved = change_rules.difference(
        before=before,
        after=total_minor,
        fee_basis_points=terms.fee_basis_points,
        unpaid=reservation.unpaid_minor if reservation.is_paid else 0,
    )
    window = lots.window if lots else None
    return ChangeQuote(
        organization=reservation.organization,
        reservation=reservation,
        kind=kind,
        rule=terms.rule,
        from_status=reservation.status,
        from_starts_at=reservation.starts_at,
        from_ends_at=reservation.ends_at,
        from_total_minor=before,
        starts_at=window.starts_at if window else None,
        ends_at=window.ends_at if window else None,
        lots=lots.as_json() if lots else [],
        notice_seconds=terms.notice_seconds,
        fee_basis_points=terms.fee_basis_points,
        fee_waived_because=terms.fee_waived_because,
        total_minor=total_minor,
        charge_minor=moved.charge,
        refund_minor=moved.refund,
        fee_minor=moved.fee,
        currency=reservation.currency,
        created_at=at,
        expires_at=at + dt.timedelta(seconds=lifetime_seconds),
    )


def require_taken(reservation: Reservation) -> None:
    """Refuse to change what a reservation buys while its price is only held: another price was not agreed to.

    :raises PaymentHeld: then.
    """
    if reservation.is_payment_held:
        raise PaymentHeld(f"{reservation.pk} can be changed once its price was taken, or cancelled")


def locked(*, organization: Organization, reservation_id: str) -> Reservation:
    """Return a tenant's reservation, locked against every other change and tick until the transaction ends.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    known = Reservation.objects.visible_to(organization).select_related("organization", "quote")
    rows = known.select_for_update(no_key=True, of=("self",))
    found = rows.filter(pk=reservation_id).first() if "\x00" not in reservation_id else None
    if found is None:
        raise NotFound(f"no reservation {reservation_id}")
    return found


def require_paid(reservation: Reservation) -> None:
    """Refuse to add to a reservation, or to move it, while a part of its price is unpaid.

    :raises BalanceOpen: then.
    """
    if reservation.unpaid_minor:
        raise BalanceOpen(
            f"{reservation.pk} can be changed when its balance is paid; it can be paid at any time",
            extra={
                "balance": {
                    "amount_minor": reservation.unpaid_minor,
                    "currency": reservation.currency,
                }
            },
        )


def use(
    *, reservation: Reservation, quote_id: str, kinds: frozenset[ChangeKind], at: dt.datetime
) -> ChangeQuote:
    """Use a quote, once, for the reservation that the caller has locked.

    :raises NotFound: when the reservation has no such quote of these kinds.
    :raises QuoteUsed: when it was used.
    :raises QuoteExpired: when its time is up.
    :raises StateConflict: when the reservation is not any more what was quoted.
    """
    quotes = ChangeQuote.objects.filter(reservation=reservation, kind__in=kinds)
    quote = quotes.filter(pk=quote_id).first() if "\x00" not in quote_id else None
    if quote is None:
        raise NotFound(f"{reservation.pk} has no such quote", pointer="/quote_id")
    if quote.used_at is not None:
        raise QuoteUsed(f"it was used at {format_instant(quote.used_at)}", pointer="/quote_id")
    if quote.expires_at <= at:
        raise QuoteExpired(f"it expired at {format_instant(quote.expires_at)}", pointer="/quote_id")
    was = (quote.from_status, quote.from_starts_at, quote.from_ends_at, quote.from_total_minor)
    paid = _paid_minor(reservation)
    if was != (reservation.status, reservation.starts_at, reservation.ends_at, paid):
        raise StateConflict(
            f"{reservation.pk} is {reservation.status} and has changed since the quote; ask for a new one",
            pointer="/quote_id",
        )
    # The reservation's lock keeps rivals out; the condition is what a reader of this line can rely on.
    assert ChangeQuote.objects.filter(pk=quote.pk, used_at__isnull=True).update(used_at=at)
    quote.used_at = at
    return quote


@transaction.atomic
def record(
    *,
    reservation: Reservation,
    quote: ChangeQuote,
    window: Window | None,
    money: change_rules.Difference,
    gpu_seconds_added: int,
    gpu_seconds_released: int,
    released: Sequence[GivenBack],
    at: dt.datetime,
    actor: str,
    change_id: str = "",
) -> Change:
    """Write down a change and tell the tenant; `reservation` is still as it was before.

    `released` is what it gives back of the calendar; it is kept where a fee is.
    `change_id` is the one that the tenant was told already, where it waited for its payment.
    """
    kind = ChangeKind(quote.kind)
    is_extension = kind is ChangeKind.EXTENSION
    change = Change.objects.create(
        id=change_id or (ids.new_extension_id() if is_extension else ids.new_change_id()),
        reservation=reservation,
        quote=quote,
        kind=kind,
        from_starts_at=reservation.starts_at,
        from_ends_at=reservation.ends_at,
        starts_at=window.starts_at if window else None,
        ends_at=window.ends_at if window else None,
        charged_minor=money.charge,
        refunded_minor=money.refund,
        fee_minor=money.fee,
        currency=reservation.currency,
        gpu_seconds_added=gpu_seconds_added,
        gpu_seconds_released=gpu_seconds_released,
        given_back_by_owner=given_back.worth_by_owner(
            released, lots=Lots.from_json(reservation.lots)
        ),
        from_lots=reservation.lots if money.fee else [],
        actor=actor,
        at=at,
    )
    if money.fee:
        given_back.write_down(released, change=change)
    events.record(
        organization=reservation.organization,
        kind=_EVENTS[kind],
        object_id=reservation.pk,
        data={
            "change_id": change.pk,
            "kind": kind.value,
            "starts_at": format_instant(window.starts_at) if window else None,
            "ends_at": format_instant(window.ends_at) if window else None,
            "charged_minor": money.charge,
            "refunded_minor": money.refund,
            "fee_minor": money.fee,
            "currency": reservation.currency,
        },
        at=at,
        key=f"{change.pk}:{kind.value}",
    )
    return change


def rewrite(*, reservation: Reservation, lots: Lots, total_minor: int) -> None:
    """Make the reservation what is bought now; the caller holds its lock."""
    window = lots.window
    reservation.starts_at, reservation.ends_at = window.starts_at, window.ends_at
    reservation.lots, reservation.rate = lots.as_json(), lots.mean_rate
    reservation.total_minor = total_minor
    reservation.save(update_fields=["starts_at", "ends_at", "lots", "rate", "total_minor"])


def _paid_minor(reservation: Reservation) -> int:
    """Return what was paid of the price of a reservation, 0 before anything was."""
    return reservation.total_minor - reservation.unpaid_minor if reservation.is_paid else 0
