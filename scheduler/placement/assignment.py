"""Take slots for a demand, so that rivals neither queue nor collide.

The exclusion constraint alone is safe but not live: racing buyers of one free GPU all wait for the same
row. So a buyer first locks the GPUs it wants with `FOR NO KEY UPDATE SKIP LOCKED` and lets a rival's go
by. When all that is left is in the hands of rivals, it waits for them once, in slot order and not for
long, because a rival may yet give up. The constraint has the last word in every case.
"""

import datetime as dt
from collections.abc import Callable, Sequence

from django.db import OperationalError, connection, transaction

from agents.models import SLOTS_PER_NODE
from scheduler import calendar, holds, repacking
from scheduler.calendar import CapacityTaken, Place
from scheduler.placement import supply as supplies
from scheduler.placement.demand import Demand
from scheduler.placement.planning import plan
from scheduler.placement.shares import NodeShare

ATTEMPTS_MAX = 8  # each one means that a rival was faster; after these the capacity counts as taken
LOCK_WAIT_MILLISECONDS_MAX = 1_000  # a loser must hear of it within two seconds

Take = Callable[[Sequence[Place]], None]


class _Contended(Exception):
    """A rival has locked some of the wanted slots."""

    def __init__(self, slots: set[int]) -> None:
        self.slots = slots


def assign(*, demand: Demand, take: Take, at: dt.datetime) -> list[Place]:
    """Choose places for a demand and give them to `take`; must run inside a transaction.

    The cheapest admissible listings serve first. Holds that have expired count as free and are ended here.
    Where nothing fits, promises that have not started may make room.

    :raises CapacityTaken: when there is no room any more.
    """
    contended: set[int] = set()
    supply = supplies.read(demand=demand, at=at)
    for _ in range(ATTEMPTS_MAX):
        shares = plan(supply, demand=demand, without=supply.masks(contended))
        patient = shares is None and bool(contended)
        if patient:
            contended = set()
            shares = plan(supply, demand=demand, without=supply.masks(contended))
        if shares is None:
            break
        try:
            with transaction.atomic():
                slots = _lock_patiently(shares) if patient else _lock(shares)
                lot_of = supply.lots_of(slots, demand=demand)
                assert lot_of is not None, "the plan keeps to the floors of the lots"
                places = supply.places(lot_of)
                _clear(places=places, demand=demand, at=at)
                take(places)
                return places
        except _Contended as rival:
            contended |= rival.slots
            if not patient:
                continue
        except CapacityTaken:
            contended = set()
        except OperationalError as error:
            if calendar.sqlstate(error) not in (
                calendar.LOCK_NOT_AVAILABLE,
                calendar.DEADLOCK_DETECTED,
            ):
                raise
        supply = supplies.read(demand=demand, at=at)
    room = repacking.make_room(supply=supply, demand=demand, take=take, at=at)
    if room is not None:
        return room
    raise CapacityTaken(
        f"{demand.gpus} × {demand.gpu_model_id} in {demand.region} are no longer free at this price"
    )


def _lock(shares: Sequence[NodeShare]) -> set[int]:
    """Lock what the shares need and let go by what rivals have.

    :raises _Contended: when that leaves too little; the locks fall with the caller's savepoint.
    """
    whole = [slot for share in shares if share.count == len(share.slots) for slot in share.slots]
    wanted = [(whole, len(whole))] if whole else []
    wanted += [(list(s.slots), s.count) for s in shares if s.count < len(s.slots)]
    locked: set[int] = set()
    for slots, count in wanted:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT slot FROM agents_gpu WHERE slot = ANY(%s)"
                " ORDER BY array_position(%s::int[], slot) LIMIT %s FOR NO KEY UPDATE SKIP LOCKED",
                [slots, slots, count],
            )
            got = {slot for (slot,) in cursor.fetchall()}
        if len(got) < count:
            raise _Contended(set(slots) - got)
        locked |= got
    return locked


def _lock_patiently(shares: Sequence[NodeShare]) -> set[int]:
    """Lock the first choice of the shares, waiting for rivals: all wait in the order of the slots."""
    slots = sorted(slot for share in shares for slot in share.slots[: share.count])
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('lock_timeout', %s, true)", [f"{LOCK_WAIT_MILLISECONDS_MAX}ms"]
        )
        cursor.execute(
            "SELECT slot FROM agents_gpu WHERE slot = ANY(%s) ORDER BY slot FOR NO KEY UPDATE",
            [slots],
        )
        cursor.execute("SET LOCAL lock_timeout TO DEFAULT")
    return set(slots)


def _clear(*, places: Sequence[Place], demand: Demand, at: dt.datetime) -> None:
    """End the expired holds on places that are locked.

    :raises CapacityTaken: when a rival took one of them before they were locked.
    """
    bases = {place.slot_lower // SLOTS_PER_NODE * SLOTS_PER_NODE for place in places}
    longest = demand.window.followed_by(seconds=max(each.turnaround_seconds for each in places))
    booked = [
        row
        for row in calendar.busy(slot_bases=bases, window=longest, at=at)
        if any(
            place.slot_lower < row.slot_upper
            and row.slot_lower < place.slot_upper
            and row.window.starts_at
            < demand.window.followed_by(seconds=place.turnaround_seconds).ends_at
            for place in places
        )
    ]
    if any(row.lapsed_quote_id is None for row in booked):
        raise CapacityTaken("a rival took a GPU of this window")
    if booked:
        holds.expire(quote_ids={str(row.lapsed_quote_id) for row in booked}, at=at)
