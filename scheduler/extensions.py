"""A later end on the same GPUs: how far it can go, what it costs, and the deed.

The hours that are added cost what they cost today; those that were bought keep their price. The calendar's
constraint decides a race with another booking, and an extension that fails leaves everything as it was.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from django.conf import settings
from django.db import transaction

from agents import inventory
from marketplace.core.errors import DomainError, StateConflict
from marketplace.core.money import format_rate
from marketplace.core.windows import Window, format_instant, grid_floor, is_on_grid
from marketplace.models import Listing, Organization
from marketplace.states import ListingMode, ListingStatus
from scheduler import added_hours, calendar, change_rules, changes, holds, leases, pools, quotas
from scheduler.calendar import BeyondHorizon, Busy, CapacityTaken, WindowOffGrid, WindowUpsideDown
from scheduler.lots import GpusAtFloor, Lots
from scheduler.models import Allocation, Change, ChangeQuote, ChangeRule, Lease, Reservation
from scheduler.quotes import PriceAboveMax
from scheduler.states import ChangeKind, ExtensionLimit, LeaseStatus, ReservationStatus

KINDS = frozenset({ChangeKind.EXTENSION})


class ExtensionTooEarly(DomainError):
    code = "extension_too_early"
    title = "The reservation cannot be extended yet"


class ExtensionTooLate(DomainError):
    code = "extension_too_late"
    title = "The reservation cannot be extended any more"


class ExtensionRefused(DomainError):
    """It cannot go so far on these GPUs; `extra` says why, and how far it can go."""

    code = "extension_refused"
    title = "The reservation cannot be extended so far"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far a reservation can be extended, and what ends it there; its own end where not at all."""

    ends_at: dt.datetime
    limited_by: ExtensionLimit


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
    places = _places(reservation)
    reach = reach_of(reservation=reservation, places=places, at=at)
    _check_reach(reservation, reach=reach, ends_at=ends_at)
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
    reservation = changes.locked(organization=organization, reservation_id=reservation_id)
    _check_status(reservation)
    used = changes.use(reservation=reservation, quote_id=quote_id, kinds=KINDS, at=at)
    window = used.window
    assert window is not None
    quotas.check(
        organization=organization,
        gpus=reservation.gpus,
        window=window,
        at=at,
        instead_of=reservation,
    )
    places = _places(reservation)
    reach = reach_of(reservation=reservation, places=places, at=at)
    if reach.ends_at < window.ends_at and reach.limited_by is ExtensionLimit.NEXT_BOOKING:
        raise CapacityTaken("somebody has booked a GPU of this reservation since the quote")
    _check_reach(reservation, reach=reach, ends_at=window.ends_at)
    added = Window(reservation.ends_at, window.ends_at)
    turnaround = max(place.turnaround_seconds for place in places)
    _end_lapsed_holds(places=places, window=added.followed_by(seconds=turnaround), at=at)
    for starts_at in {
        place.period.lower for place in places
    }:  # a lease that was replaced began later
        calendar.change_period(
            allocations=[place for place in places if place.period.lower == starts_at],
            window=Window(starts_at, window.ends_at),
        )
    change = changes.record(
        reservation=reservation,
        quote=used,
        window=window,
        money=change_rules.Difference(charge=used.charge_minor, refund=0, fee=0),
        gpu_seconds_added=reservation.gpus * added.seconds,
        gpu_seconds_released=0,
        given_back_by_owner={},
        at=at,
        actor=actor,
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


def reach_of(*, reservation: Reservation, places: Sequence[Allocation], at: dt.datetime) -> Reach:
    """Return the longest possible extension on the same GPUs, on the market's grid, and what limits it."""
    end = reservation.ends_at
    bounds = [
        (calendar.horizon_at(at=at), ExtensionLimit.HORIZON),
        (quotas.latest_end(reservation=reservation, at=at), ExtensionLimit.TENANT_LIMIT),
    ]
    slots = {s for place in places for s in range(place.slots.lower, place.slots.upper)}
    if len(slots) < reservation.gpus:
        bounds.append((end, ExtensionLimit.HEALTH))
    if inventory.sellable_gpus(at=at).filter(slot__in=slots).count() < len(slots):
        bounds.append((end, ExtensionLimit.HEALTH))
    if Lease.objects.filter(reservation=reservation, status=LeaseStatus.RECLAIMING).exists():
        bounds.append((end, ExtensionLimit.RECLAIM_PENDING))
    for listing in {place.listing for place in places}:
        bounds += _bounds_of(listing, reservation=reservation, at=at)
    if (booking := _next_booking(places=places, reservation=reservation, at=at)) is not None:
        bounds.append((booking, ExtensionLimit.NEXT_BOOKING))
    nearest, limited_by = min(bounds, key=lambda bound: bound[0])
    on_grid = grid_floor(nearest, grid_seconds=settings.GRID_SECONDS)
    return Reach(ends_at=max(end, on_grid), limited_by=limited_by)


def _bounds_of(
    listing: Listing, *, reservation: Reservation, at: dt.datetime
) -> list[tuple[dt.datetime, ExtensionLimit]]:
    """Return until when an owner's wish lets one reservation go on."""
    end = reservation.ends_at
    bounds = []
    if listing.status != ListingStatus.PUBLISHED:
        bounds.append((end, ExtensionLimit.LISTING_WITHDRAWN))
    if listing.ends_at is not None:
        bounds.append((listing.ends_at, ExtensionLimit.LISTING_PERIOD))
    rolling = at + dt.timedelta(seconds=listing.rolling_seconds)
    if listing.mode == ListingMode.WHEN_IDLE and end > rolling:
        bounds.append((end, ExtensionLimit.LISTING_PERIOD))
    if listing.duration_seconds_max is not None:
        longest = dt.timedelta(seconds=listing.duration_seconds_max)
        bounds.append((reservation.starts_at + longest, ExtensionLimit.MAX_DURATION))
    bounds += [
        (starts_at, ExtensionLimit.BLACKOUT)
        for starts_at, ends_at in pools.blackouts(listing)
        if ends_at > end
    ]
    return bounds


def _next_booking(
    *, places: Sequence[Allocation], reservation: Reservation, at: dt.datetime
) -> dt.datetime | None:
    """Return when GPUs must be given back to be ready for whoever comes next; None: nobody is in sight.

    What begins before the end of the reservation is its own: its window, and the turn-round that would move.
    """
    end, horizon = reservation.ends_at, calendar.horizon_at(at=at)
    if horizon <= end:
        return None
    longest = max((place.turnaround_seconds for place in places), default=0)
    ahead = Window(end, horizon).followed_by(seconds=longest)
    rows = [
        row
        for row in _busy(places=places, window=ahead, at=at)
        if row.lapsed_quote_id is None and row.window.starts_at >= end
    ]
    return min(
        (
            max(end, row.window.starts_at - dt.timedelta(seconds=place.turnaround_seconds))
            for row in rows
            for place in places
            if row.slot_lower < place.slots.upper and place.slots.lower < row.slot_upper
        ),
        default=None,
    )


def _busy(*, places: Sequence[Allocation], window: Window, at: dt.datetime) -> list[Busy]:
    """Return what is booked on the GPUs of some places, and not on their neighbours."""
    rows = calendar.busy(
        slot_bases={place.node.slot_base for place in places}, window=window, at=at
    )
    return [
        row
        for row in rows
        if any(
            row.slot_lower < place.slots.upper and place.slots.lower < row.slot_upper
            for place in places
        )
    ]


def _end_lapsed_holds(*, places: Sequence[Allocation], window: Window, at: dt.datetime) -> None:
    rows = _busy(places=places, window=window, at=at)
    if lapsed := {row.lapsed_quote_id for row in rows if row.lapsed_quote_id is not None}:
        holds.expire(quote_ids=lapsed, at=at)


def _places(reservation: Reservation) -> list[Allocation]:
    return list(
        Allocation.objects.filter(reservation=reservation, live=True)
        .select_related("listing", "node")
        .order_by("pk")
    )


def _check_status(reservation: Reservation) -> None:
    if reservation.status not in (ReservationStatus.SCHEDULED, ReservationStatus.ACTIVE):
        raise StateConflict(f"{reservation.pk} is {reservation.status}")
    changes.require_taken(reservation)


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


def _check_reach(reservation: Reservation, *, reach: Reach, ends_at: dt.datetime) -> None:
    if ends_at <= reach.ends_at:
        return
    is_possible = reach.ends_at > reservation.ends_at
    longest = format_instant(reach.ends_at) if is_possible else None
    raise ExtensionRefused(
        f"at most until {longest}: {reach.limited_by}"
        if is_possible
        else f"not at all: {reach.limited_by}",
        pointer="/ends_at",
        extra={"reason": reach.limited_by.value, "longest_ends_at": longest},
    )
