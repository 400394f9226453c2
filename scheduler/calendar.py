"""The fleet's calendar: which windows can be asked for at all, and who has which slots when.

The only module that writes allocations. `allocation_no_overlap` has the last word about every one of
them; its refusal is `CapacityTaken` to the caller.
"""

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from django.conf import settings
from django.db import DatabaseError, IntegrityError, connection, transaction
from psycopg.types.range import Int4Range, TimestamptzRange

from agents.models import SLOTS_PER_NODE
from marketplace.core.errors import DomainError
from marketplace.core.windows import Window, format_instant, is_on_grid
from scheduler.models import Allocation

OVERLAP_CONSTRAINT = "allocation_no_overlap"
LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED = "55P03", "40P01"


class CapacityTaken(DomainError):
    """Somebody else was faster: the GPUs of the window are gone."""

    code = "capacity_taken"
    title = "The capacity is gone"


class WindowOffGrid(DomainError):
    code = "off_grid"
    title = "The window is not on the market's grid"


class WindowUpsideDown(DomainError):
    code = "window_upside_down"
    title = "The window does not end after it starts"


class WindowInPast(DomainError):
    code = "window_in_past"
    title = "The window has begun already"


class BeyondHorizon(DomainError):
    code = "beyond_horizon"
    title = "The window ends further ahead than anything is sold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """What one allocation occupies, its turn-round included.

    `lapsed_quote_id` names the expired hold that it serves, which counts as free.
    """

    slot_lower: int
    slot_upper: int
    window: Window
    lapsed_quote_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A run of one node's slots, half-open, that one listing sells, for one lot of a promise.

    The turn-round is the one that the listing asks.
    """

    node_id: str
    listing_id: str
    slot_lower: int
    slot_upper: int
    lot: int = 0
    turnaround_seconds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Give up some live allocations of one promise, and take other places for it, over a window."""

    allocation_ids: tuple[int, ...]
    places: tuple[Place, ...]
    window: Window


def horizon_at(*, at: dt.datetime) -> dt.datetime:
    """Return the instant by which every window must have ended."""
    return at + dt.timedelta(days=settings.HORIZON_DAYS)


def check_window(*, starts_at: dt.datetime | None, ends_at: dt.datetime, at: dt.datetime) -> Window:
    """Return the window that a request names; `starts_at` `None` is now, to the next whole second.

    :raises WindowOffGrid: when an end is not on the grid of `settings.GRID_SECONDS`.
    :raises WindowUpsideDown: when it does not end after it starts.
    :raises WindowInPast: when it starts before `at`.
    :raises BeyondHorizon: when it ends later than `settings.HORIZON_DAYS` from `at`.
    """
    grid = settings.GRID_SECONDS
    for name, instant in (("starts_at", starts_at), ("ends_at", ends_at)):
        if instant is not None and not is_on_grid(instant, grid_seconds=grid):
            raise WindowOffGrid(f"must be a multiple of {grid} s, UTC", pointer=f"/{name}")
    begin = starts_at or (at + dt.timedelta(seconds=1)).replace(microsecond=0)
    if not begin < ends_at:
        raise WindowUpsideDown("must be later than the start", pointer="/ends_at")
    if begin < at:
        raise WindowInPast(f"it is {format_instant(at)} already", pointer="/starts_at")
    if ends_at > horizon_at(at=at):
        raise BeyondHorizon(f"must end within {settings.HORIZON_DAYS} days", pointer="/ends_at")
    return Window(begin, ends_at)


def busy(*, slot_bases: Iterable[int], window: Window, at: dt.datetime) -> list[Busy]:
    """Return what is occupied of some nodes' blocks in a window; one query.

    It goes down the index of the exclusion constraint once per run of blocks: the cost follows the size
    of the pool and what is booked in the window, not what is booked in all.
    """
    with connection.cursor() as cursor:
        blocks: list[object] = list(_blocks(slot_bases))
        cursor.execute(
            """
            SELECT lower(a.slots), upper(a.slots), lower(a.occupied), upper(a.occupied),
                   CASE WHEN q.status = 'open' AND q.expires_at <= %(at)s THEN q.id END
              FROM unnest(%(blocks)s::int4range[]) AS pool (block)
              JOIN scheduler_allocation a
                ON a.slots && pool.block AND a.occupied && tstzrange(%(from)s, %(to)s)
              LEFT JOIN scheduler_quote q ON q.id = a.quote_id
            """,
            {"at": at, "blocks": blocks, "from": window.starts_at, "to": window.ends_at},
        )
        return [
            Busy(
                slot_lower=lower,
                slot_upper=upper,
                window=Window(starts_at, ends_at),
                lapsed_quote_id=lapsed,
            )
            for lower, upper, starts_at, ends_at, lapsed in cursor.fetchall()
        ]


def take_for_quote(
    *, places: Sequence[Place], window: Window, quote_id: str, at: dt.datetime
) -> None:
    """Hold places for a quote, all or none.

    :raises CapacityTaken: when one of them is taken.
    """
    _take(places=places, window=window, quote_id=quote_id, reservation_id=None, at=at)


def take_for_reservation(
    *, places: Sequence[Place], window: Window, reservation_id: str, at: dt.datetime
) -> None:
    """Give places to a reservation, all or none.

    :raises CapacityTaken: when one of them is taken.
    """
    _take(places=places, window=window, quote_id=None, reservation_id=reservation_id, at=at)


def hand_hold_over(*, quote_id: str, reservation_id: str) -> int:
    """Turn a quote's held places into a reservation's; return how many slots those are."""
    held = Allocation.objects.filter(quote_id=quote_id, live=True)
    slots: int = sum(place.slots.upper - place.slots.lower for place in held)
    held.update(quote=None, reservation_id=reservation_id)
    return slots


def bind(*, lease_of: Mapping[int, str]) -> None:
    """Write leases on places, by the places' keys; one statement however many they are."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE scheduler_allocation a SET lease_id = b.lease_id"
            " FROM unnest(%s::bigint[], %s::text[]) AS b (id, lease_id) WHERE a.id = b.id",
            [list(lease_of), list(lease_of.values())],
        )


def free_holds(*, quote_ids: Sequence[str]) -> int:
    """Put what quotes hold back on sale; return the number of places."""
    return Allocation.objects.filter(quote_id__in=quote_ids, live=True).update(live=False)


def free_reservation(*, reservation_id: str) -> int:
    """Put all that a reservation has back on sale; return the number of places."""
    return Allocation.objects.filter(reservation_id=reservation_id, live=True).update(live=False)


def free_lease(*, lease_id: str, at: dt.datetime) -> int:
    """Close the places of a lease that is over; return their number.

    Their turn-round runs from now, or from the end of the window where that is over already: who comes next
    may be booked right behind it. It runs after a handover that failed, too: the machine was touched.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE scheduler_allocation SET live = false, free_at = CASE WHEN turnaround_seconds > 0
                THEN greatest(least(%(at)s, upper(period)), lower(period))
                    + make_interval(secs => turnaround_seconds) END
             WHERE live AND lease_id = %(lease)s
            """,
            {"at": at, "lease": lease_id},
        )
        return int(cursor.rowcount)


def forget_turnrounds(*, at: dt.datetime) -> int:
    """Drop from the calendar the turn-rounds that are over; return their number."""
    return Allocation.objects.filter(free_at__lte=at).update(free_at=None)


@transaction.atomic
def change_period(*, allocations: Sequence[Allocation], window: Window) -> None:
    """Give some live allocations another window on the slots that they have, all or none.

    Their turn-round moves with the end: within one tenant's window there is none.

    :raises CapacityTaken: when somebody has one of the slots then, or one of the allocations is over.
    """
    ids = [place.pk for place in allocations]
    with _overlap_is_taken():
        changed = Allocation.objects.filter(pk__in=ids, live=True).update(period=_period(window))
        if changed != len(ids):
            raise CapacityTaken("these GPUs were given back meanwhile")
    for place in allocations:
        place.period = _period(window)


@transaction.atomic
def replace_places(*, moves: Sequence[Move], at: dt.datetime) -> list[list[Allocation]]:
    """Make some moves at once, all or none; return the new allocations of each.

    All that is given up is free before anything is taken, so that promises may exchange their places. What
    is new has no lease yet.

    :raises CapacityTaken: when somebody has one of the new places, or an old one is over.
    """
    ids = [pk for move in moves for pk in move.allocation_ids]
    # In one order, so that two who move the same places wait for each other and cannot deadlock.
    old = {
        place.pk: place
        for place in Allocation.objects.filter(pk__in=ids, live=True)
        .order_by("pk")
        .select_for_update(no_key=True)
    }
    if len(old) != len(ids):
        raise CapacityTaken("these GPUs were given back meanwhile")
    Allocation.objects.filter(pk__in=ids).update(live=False)
    taken = []
    for move in moves:
        given_up = [old[pk] for pk in move.allocation_ids]
        quote_id, reservation_id = given_up[0].quote_id, given_up[0].reservation_id
        assert {(p.quote_id, p.reservation_id) for p in given_up} == {(quote_id, reservation_id)}
        assert sum(p.slots.upper - p.slots.lower for p in given_up) == sum(
            p.slot_upper - p.slot_lower for p in move.places
        ), "a move neither adds GPUs nor loses any"
        taken.append(
            _take(
                places=move.places,
                window=move.window,
                quote_id=quote_id,
                reservation_id=reservation_id,
                at=at,
            )
        )
    return taken


def sqlstate(error: DatabaseError) -> str | None:
    """Return PostgreSQL's code of an error, as in appendix A of its manual."""
    cause = error.__cause__
    return cause.sqlstate if isinstance(cause, psycopg.Error) else None


def _take(
    *,
    places: Sequence[Place],
    window: Window,
    quote_id: str | None,
    reservation_id: str | None,
    at: dt.datetime,
) -> list[Allocation]:
    rows = [
        Allocation(
            node_id=place.node_id,
            listing_id=place.listing_id,
            quote_id=quote_id,
            reservation_id=reservation_id,
            slots=Int4Range(place.slot_lower, place.slot_upper),
            lot=place.lot,
            period=_period(window),
            turnaround_seconds=place.turnaround_seconds,
            created_at=at,
        )
        for place in places
    ]
    with _overlap_is_taken():
        return Allocation.objects.bulk_create(rows)


@contextmanager
def _overlap_is_taken() -> Iterator[None]:
    """Say `CapacityTaken` when the block gave a GPU to two; the caller's savepoint undoes what was done."""
    try:
        yield
    except IntegrityError as error:
        cause = error.__cause__
        if isinstance(cause, psycopg.Error) and cause.diag.constraint_name == OVERLAP_CONSTRAINT:
            raise CapacityTaken("somebody else took a GPU of this window") from error
        raise


def _period(window: Window) -> TimestamptzRange:
    return TimestamptzRange(window.starts_at, window.ends_at)


def _blocks(slot_bases: Iterable[int]) -> list[Int4Range]:
    """Join neighbouring blocks, so that a pool of neighbours is one range."""
    runs: list[list[int]] = []
    for base in sorted(set(slot_bases)):
        if runs and runs[-1][1] == base:
            runs[-1][1] = base + SLOTS_PER_NODE
        else:
            runs.append([base, base + SLOTS_PER_NODE])
    return [Int4Range(lower, upper) for lower, upper in runs]
