"""How far a reservation can be extended on its own GPUs, and what ends it there."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings

from agents import inventory
from marketplace.core.errors import DomainError
from marketplace.core.windows import Window, format_instant, grid_floor
from marketplace.models import Listing
from marketplace.states import ListingMode, ListingStatus
from scheduler import calendar, holds, pools, quotas
from scheduler.calendar import Busy
from scheduler.models import Allocation, Lease, Reservation
from scheduler.states import ExtensionLimit, LeaseStatus


class ExtensionRefused(DomainError):
    """It cannot go so far on these GPUs; `extra` says why, and how far it can go."""

    code = "extension_refused"
    title = "The reservation cannot be extended so far"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far a reservation can be extended, and what ends it there; its own end where not at all."""

    ends_at: dt.datetime
    limited_by: ExtensionLimit


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


def end_lapsed_holds(*, places: Sequence[Allocation], window: Window, at: dt.datetime) -> None:
    rows = _busy(places=places, window=window, at=at)
    if lapsed := {row.lapsed_quote_id for row in rows if row.lapsed_quote_id is not None}:
        holds.expire(quote_ids=lapsed, at=at)


def places_of(reservation: Reservation) -> list[Allocation]:
    return list(
        Allocation.objects.filter(reservation=reservation, live=True)
        .select_related("listing", "node")
        .order_by("pk")
    )


def require(reservation: Reservation, *, reach: Reach, ends_at: dt.datetime) -> None:
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
