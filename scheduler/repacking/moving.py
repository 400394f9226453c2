"""Carry out moves: all in one transaction, or none."""

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from django.db import OperationalError, connection, transaction

from agents.models import SLOTS_PER_NODE
from marketplace.core.windows import Window
from scheduler import calendar, holds
from scheduler.calendar import CapacityTaken, Move, Place
from scheduler.models import Allocation, Quote, Repacking, Reservation
from scheduler.placement.supply import Supply
from scheduler.repacking.promises import MOVABLE_STATUSES, Promise, bound_from
from scheduler.states import QuoteStatus, RepackingReason

ACTOR = "scheduler"


def carry_out(
    *,
    supply: Supply,
    promises: Sequence[Promise],
    slots: dict[str, set[int]],
    reason: RepackingReason,
    at: dt.datetime,
) -> None:
    """Give each promise its new slots and write it down. Must run inside a transaction.

    Nobody is waited for: a promise that somebody starts, pays, cancels or moves at this moment, and a GPU
    that a rival is about to take, make the whole move fail.

    :raises CapacityTaken: then; the caller's savepoint undoes what was done.
    """
    _lock_promises(promises, at=at)
    _check_places(promises)
    _lock_slots({slot for its_slots in slots.values() for slot in its_slots})
    moves = []
    for promise in promises:
        lot_of = supply.lots_of(slots[promise.id], demand=promise.demand)
        if lot_of is None:
            raise CapacityTaken("a promise that was to make room would be too cheap for its owner")
        places = supply.places(lot_of)
        _end_lapsed_holds(places=places, window=promise.demand.window, at=at)
        moves.append(
            Move(
                allocation_ids=tuple(held.allocation_id for held in promise.held),
                places=tuple(places),
                window=promise.demand.window,
            )
        )
    calendar.replace_places(moves=moves, at=at)
    Repacking.objects.bulk_create(
        Repacking(
            reservation_id=promise.id if promise.is_reservation else None,
            quote_id=None if promise.is_reservation else promise.id,
            reason=reason,
            actor=ACTOR,
            at=at,
            from_places=_written(supply.places(dict.fromkeys(promise.slots, 0))),
            to_places=_written(move.places),
        )
        for promise, move in zip(promises, moves, strict=True)
    )


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """Undo what the block did when a rival was in the way, and say so with one refusal.

    :raises CapacityTaken: then.
    """
    try:
        with transaction.atomic():
            yield
    except OperationalError as error:
        if calendar.sqlstate(error) in (calendar.LOCK_NOT_AVAILABLE, calendar.DEADLOCK_DETECTED):
            raise CapacityTaken("a rival was in the way") from error
        raise


def _lock_promises(promises: Sequence[Promise], *, at: dt.datetime) -> None:
    """Lock the rows that everybody changes who starts, pays, cancels or uses one of the promises.

    :raises CapacityTaken: when somebody has one, or one may not move any more.
    """
    reservation_ids = [promise.id for promise in promises if promise.is_reservation]
    quote_ids = [promise.id for promise in promises if not promise.is_reservation]
    bound = bound_from(at=at)
    reservations = Reservation.objects.filter(
        pk__in=reservation_ids, status__in=MOVABLE_STATUSES, starts_at__gt=bound
    )
    quotes = Quote.objects.filter(
        pk__in=quote_ids, status=QuoteStatus.OPEN, expires_at__gt=at, starts_at__gt=bound
    )
    for wanted, rows in ((reservation_ids, reservations), (quote_ids, quotes)):
        if wanted:
            locked = rows.order_by("pk").select_for_update(no_key=True, skip_locked=True)
            if len(locked.values_list("pk")) < len(wanted):
                raise CapacityTaken("a promise that was to make room is being changed")


def _check_places(promises: Sequence[Promise]) -> None:
    """Refuse when a promise has other places, or another window, than when the move was thought out.

    :raises CapacityTaken: then.
    """
    expected = {
        (held.allocation_id, held.slot_lower, held.slot_upper, promise.demand.window)
        for promise in promises
        for held in promise.held
    }
    places = Allocation.objects.filter(pk__in=[pk for pk, *_ in expected], live=True)
    found = {
        (p.pk, p.slots.lower, p.slots.upper, Window(p.period.lower, p.period.upper)) for p in places
    }
    if found != expected:
        raise CapacityTaken("a promise that was to make room has changed")


def _lock_slots(slots: set[int]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT slot FROM agents_gpu WHERE slot = ANY(%s) ORDER BY slot"
            " FOR NO KEY UPDATE SKIP LOCKED",
            [sorted(slots)],
        )
        if len(cursor.fetchall()) < len(slots):
            raise CapacityTaken("a rival is about to take one of the GPUs")


def _end_lapsed_holds(*, places: Sequence[Place], window: Window, at: dt.datetime) -> None:
    bases = {place.slot_lower // SLOTS_PER_NODE * SLOTS_PER_NODE for place in places}
    longest = window.followed_by(seconds=max(place.turnaround_seconds for place in places))
    lapsed = {
        row.lapsed_quote_id
        for row in calendar.busy(slot_bases=bases, window=longest, at=at)
        if row.lapsed_quote_id is not None
    }
    if lapsed:
        holds.expire(quote_ids=lapsed, at=at)


def _written(places: Sequence[Place]) -> list[dict[str, str | int]]:
    return [
        {
            "node_id": place.node_id,
            "slot_lower": place.slot_lower,
            "slot_upper": place.slot_upper,
        }
        for place in places
    ]
