"""A later end on the same GPUs: how far it can go, what it costs, and the deed.

The hours that are added cost what they cost today; those that were bought keep their price. The calendar's
constraint decides a race with another booking, and an extension that fails leaves everything as it was.
"""

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal

from django.conf import settings
from django.db import transaction

from marketplace.core.errors import DomainError, StateConflict
from marketplace.core.money import format_rate
from marketplace.core.windows import Window, format_instant, is_on_grid
from marketplace.models import Organization
from scheduler import (
    added_hours,
    calendar,
    change_rules,
    changes,
    extension_holds,
    extension_reach,
    leases,
    quotas,
)
from scheduler.calendar import BeyondHorizon, CapacityTaken, WindowOffGrid, WindowUpsideDown
from scheduler.lots import GpusAtFloor, Lots
from scheduler.models import (
    Allocation,
    Change,
    ChangeQuote,
    ChangeRule,
    ExtensionHold,
    Reservation,
)
from scheduler.quotes import PriceAboveMax
from scheduler.states import (
    ChangeKind,
    ExtensionDropReason,
    ExtensionLimit,
    ReservationStatus,
)

KINDS = frozenset({ChangeKind.EXTENSION})


class ExtensionTooEarly(DomainError):
    code = "extension_too_early"
    title = "The reservation cannot be extended yet"


class ExtensionTooLate(DomainError):
    code = "extension_too_late"
    title = "The reservation cannot be extended any more"


@transaction.atomic
def quote(
    *,
    organization: Organization,
    reservation_id: str,
    ends_at: dt.datetime,
    max_rate: Decimal | None,
    at: dt.datetime,
) -> ChangeQuote:
    """Lock the price of a later end for `PRICE_LOCK_SECONDS`; the GPUs are not held meanwhile.

    :raises NotFound: when the tenant has no such reservation.
    :raises StateConflict: when it is not paid, or over.
    :raises changes.PaymentHeld: while its price is only held.
    :raises ExtensionTooEarly: when its end is too far away; likewise `ExtensionTooLate`.
    :raises WindowOffGrid: when the new end is not on the grid.
    :raises WindowUpsideDown: when the new end is not later.
    :raises BeyondHorizon: when nothing is sold so far ahead.
    :raises ExtensionRefused: when it cannot go so far; says how far it can, and why no further.
    :raises PriceAboveMax: when the hours that are added cost more than `max_rate`.
    :raises LimitExceeded: when the tenant has too many quotes open.
    """
    reservation = changes.locked(organization=organization, reservation_id=reservation_id)
    terms = changes.terms_of(reservation=reservation, at=at)
    _check(reservation, rule=terms.rule, at=at)
    _check_end(reservation, ends_at=ends_at, at=at)
    places = extension_reach.places_of(reservation)
    reach = extension_reach.reach_of(reservation=reservation, places=places, at=at)
    extension_reach.require(reservation, reach=reach, ends_at=ends_at)
    # Owners may have raised their floors since: what is added is sold at those of today.
    lots = Lots.from_json(reservation.lots)
    added = added_hours.price(
        reservation=reservation,
        window=Window(reservation.ends_at, ends_at),
        floors=_floors(lots, places=places),
        at=at,
    )
    if max_rate is not None and added.rate > max_rate:
        raise PriceAboveMax(
            f"the rate of what is added is {format_rate(added.rate)} per GPU-hour",
            pointer="/max_rate",
            extra={"rate": format_rate(added.rate)},
        )
    lots = lots.joined(added.lots)
    made = changes.new_quote(
        reservation=reservation,
        kind=ChangeKind.EXTENSION,
        terms=terms,
        lots=lots,
        total_minor=lots.amount(window=lots.window, currency=reservation.currency).amount_minor,
        lifetime_seconds=changes.PRICE_LOCK_SECONDS,
        at=at,
    )
    made.added_rate = added.rate
    made.price_breakdown = [added.breakdown]
    made.longest_ends_at, made.longest_limited_by = reach.ends_at, reach.limited_by
    made.save(force_insert=True)
    return made


@transaction.atomic
def extend(
    *, organization: Organization, reservation_id: str, quote_id: str, at: dt.datetime, actor: str
) -> Change:
    """Extend a reservation on the terms of a quote: all its GPUs, or nothing happens.

    :raises NotFound: when the tenant has no such reservation, or that no such quote.
    :raises QuoteUsed: when the quote was used.
    :raises QuoteExpired: when its time is up.
    :raises StateConflict: when the reservation is over, or has changed since the quote.
    :raises LimitExceeded: when the tenant's limits do not allow it.
    :raises CapacityTaken: when somebody has booked the GPUs since the quote.
    :raises ExtensionRefused: when anything else came in the way since.
    """
    reservation, used = _claim(
        organization=organization, reservation_id=reservation_id, quote_id=quote_id, at=at
    )
    _take(reservation, used=used, at=at)
    return _make(reservation, used=used, change_id="", at=at, actor=actor)


@transaction.atomic
def hold(
    *, organization: Organization, reservation_id: str, quote_id: str, at: dt.datetime, actor: str
) -> ExtensionHold:
    """Keep the hours of a quote on the same GPUs until they are paid for, or its time is up.

    The reservation stays as it is: whoever takes the money calls `make_held`, or `drop_held`.

    :raises ExtensionTooLate: when the end is too near for a payment.
    :raises DomainError: whatever refuses the extension; see `extend`.
    """
    reservation, used = _claim(
        organization=organization, reservation_id=reservation_id, quote_id=quote_id, at=at
    )
    held_until = extension_holds.held_until(reservation=reservation, at=at)
    if held_until <= at:
        raise ExtensionTooLate(
            f"{reservation.pk} ends too soon for a payment that takes minutes",
            extra={"closed_at": format_instant(held_until)},
        )
    _take(reservation, used=used, at=at)
    return ExtensionHold.objects.create(
        reservation=reservation, quote=used, held_until=held_until, actor=actor, created_at=at
    )


@transaction.atomic
def make_held(*, hold_id: str, at: dt.datetime) -> Change:
    """Extend a reservation by what was kept for it and is paid for now, whenever that is.

    What was dropped meanwhile is taken again, at the price that was promised.

    :raises StateConflict: when the reservation is over, or has changed since; or it was made already.
    :raises CapacityTaken: when somebody has booked the GPUs since they were given back.
    :raises ExtensionRefused: when anything else came in the way.
    :raises LimitExceeded: when the tenant's limits do not allow it any more.
    """
    held = ExtensionHold.objects.select_related("reservation__organization", "quote").get(
        pk=hold_id
    )
    reservation = changes.locked(
        organization=held.reservation.organization, reservation_id=held.reservation_id
    )
    held.refresh_from_db(fields=["dropped_at", "made_at"])
    _check_status(reservation)
    if reservation.ends_at <= at:
        raise StateConflict(f"{reservation.pk} ended at {format_instant(reservation.ends_at)}")
    was = (held.quote.from_starts_at, held.quote.from_ends_at)
    if was != (reservation.starts_at, reservation.ends_at):
        raise StateConflict(f"{reservation.pk} has changed since the extension was ordered")
    if held.dropped_at is not None and extension_holds.open_of(reservation=reservation):
        raise StateConflict(f"another extension of {reservation.pk} waits for its payment")
    reaches = all(
        place.period.upper >= held.ends_at for place in extension_reach.places_of(reservation)
    )
    if held.dropped_at is not None or not reaches:
        _take(reservation, used=held.quote, at=at)
    if not ExtensionHold.objects.filter(pk=held.pk, made_at__isnull=True).update(made_at=at):
        raise StateConflict(f"{held.pk} was made already")
    return _make(reservation, used=held.quote, change_id=held.pk, at=at, actor=held.actor)


@transaction.atomic
def drop_held(*, hold_id: str, reason: ExtensionDropReason, at: dt.datetime) -> bool:
    """Give back what was kept for an extension, unless it was made or dropped; say whether this did it."""
    held = ExtensionHold.objects.select_related("reservation__organization").get(pk=hold_id)
    reservation = changes.locked(
        organization=held.reservation.organization, reservation_id=held.reservation_id
    )
    current = extension_holds.open_of(reservation=reservation)
    if current is None or current.pk != hold_id:
        return False
    return extension_holds.drop(reservation=reservation, reason=reason, at=at)


def _claim(
    *, organization: Organization, reservation_id: str, quote_id: str, at: dt.datetime
) -> tuple[Reservation, ChangeQuote]:
    """Lock a reservation that nothing is kept behind, and use a quote for it."""
    reservation = changes.locked(organization=organization, reservation_id=reservation_id)
    _check_status(reservation)
    extension_holds.require_none(reservation=reservation)
    return reservation, changes.use(reservation=reservation, quote_id=quote_id, kinds=KINDS, at=at)


def _take(reservation: Reservation, *, used: ChangeQuote, at: dt.datetime) -> None:
    """Let the allocations of a reservation reach to the end of a quote: all of them, or none."""
    window = used.window
    assert window is not None
    quotas.check(
        organization=reservation.organization,
        gpus=reservation.gpus,
        window=window,
        at=at,
        instead_of=reservation,
    )
    places = extension_reach.places_of(reservation)
    reach = extension_reach.reach_of(reservation=reservation, places=places, at=at)
    if reach.ends_at < window.ends_at and reach.limited_by is ExtensionLimit.NEXT_BOOKING:
        raise CapacityTaken("somebody has booked a GPU of this reservation since the quote")
    extension_reach.require(reservation, reach=reach, ends_at=window.ends_at)
    added = Window(reservation.ends_at, window.ends_at)
    turnaround = max(place.turnaround_seconds for place in places)
    extension_reach.end_lapsed_holds(
        places=places, window=added.followed_by(seconds=turnaround), at=at
    )
    for starts_at in {
        place.period.lower for place in places
    }:  # a lease that was replaced began later
        calendar.change_period(
            allocations=[place for place in places if place.period.lower == starts_at],
            window=Window(starts_at, window.ends_at),
        )


def _make(
    reservation: Reservation, *, used: ChangeQuote, change_id: str, at: dt.datetime, actor: str
) -> Change:
    """Write down an extension whose hours are taken, and let the leases go on."""
    window = used.window
    assert window is not None
    added = Window(reservation.ends_at, window.ends_at)
    change = changes.record(
        reservation=reservation,
        quote=used,
        window=window,
        money=change_rules.Difference(charge=used.charge_minor, refund=0, fee=0),
        gpu_seconds_added=reservation.gpus * added.seconds,
        gpu_seconds_released=0,
        released=[],
        at=at,
        actor=actor,
        change_id=change_id,
    )
    changes.rewrite(
        reservation=reservation,
        lots=Lots.from_json(used.lots),
        total_minor=used.total_minor,
    )
    if reservation.status == ReservationStatus.ACTIVE:
        leases.prolong(reservation=reservation, at=at)
    return change


def _floors(lots: Lots, *, places: Sequence[Allocation]) -> list[GpusAtFloor]:
    """Return what the dearest owner in each lot asks today."""
    return [
        GpusAtFloor(
            max(place.listing.floor_rate for place in places if place.lot == number), lot.gpus
        )
        for number, lot in enumerate(lots.lots)
    ]


def _check_status(reservation: Reservation) -> None:
    if reservation.status not in (ReservationStatus.SCHEDULED, ReservationStatus.ACTIVE):
        raise StateConflict(f"{reservation.pk} is {reservation.status}")
    changes.require_taken(reservation)
    changes.require_paid(reservation)


def _check(reservation: Reservation, *, rule: ChangeRule, at: dt.datetime) -> None:
    """Refuse a reservation that is not to be extended at all now.

    :raises StateConflict: when it is not paid, or over.
    :raises changes.PaymentHeld: while its price is only held.
    :raises ExtensionTooEarly: when its end is too far away; likewise `ExtensionTooLate`.
    """
    _check_status(reservation)
    opens_at = reservation.ends_at - dt.timedelta(seconds=rule.extension_opens_seconds)
    closes_at = reservation.ends_at - dt.timedelta(seconds=rule.extension_closes_seconds)
    if at < opens_at:
        raise ExtensionTooEarly(
            f"{reservation.pk} can be extended from {format_instant(opens_at)} on",
            extra={"opens_at": format_instant(opens_at)},
        )
    if at > closes_at:
        raise ExtensionTooLate(
            f"{reservation.pk} could be extended until {format_instant(closes_at)}",
            extra={"closed_at": format_instant(closes_at)},
        )


def _check_end(reservation: Reservation, *, ends_at: dt.datetime, at: dt.datetime) -> None:
    grid = settings.GRID_SECONDS
    if not is_on_grid(ends_at, grid_seconds=grid):
        raise WindowOffGrid(f"must be a multiple of {grid} s, UTC", pointer="/ends_at")
    if ends_at <= reservation.ends_at:
        raise WindowUpsideDown(
            f"must be later than {format_instant(reservation.ends_at)}", pointer="/ends_at"
        )
    horizon = calendar.horizon_at(at=at)
    if ends_at > horizon:
        raise BeyondHorizon(f"must end by {format_instant(horizon)}", pointer="/ends_at")
