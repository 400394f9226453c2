"""Let a request in that is refused a place although enough GPUs are free: others make room."""

import datetime as dt
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from scheduler.calendar import CapacityTaken, Place
from scheduler.packing import repack
from scheduler.placement import supply as supplies
from scheduler.placement.demand import Demand
from scheduler.placement.supply import Supply
from scheduler.repacking import moving, plan, promises
from scheduler.states import RepackingReason

TRIES = 8  # four sorted orders, four random ones; measured: more let almost nobody in
LIMIT_SECONDS = 0.050  # of arithmetic, within a request: its caller waits
ISLANDS_MAX = 3  # those with the most room: the search grows with the nodes that it may use
NODES_MAX = 96
MOVABLE_MAX = 300  # a try places so many in some 20 ms
SEED = 0  # the same refusal is searched in the same way


def make_room(
    *, supply: Supply, demand: Demand, take: Callable[[Sequence[Place]], None], at: dt.datetime
) -> list[Place] | None:
    """Move what has not started so that a demand fits, and give its places to `take`.

    `None`, and nothing has changed, when no way was found in time or a rival was in the way. Must run
    inside a transaction.
    """
    rows = _rows(supply, demand=demand)
    if not rows:
        return None
    movable = promises.movable(supply=supply, rows=rows, window=demand.window, at=at)
    if not 0 < len(movable) <= MOVABLE_MAX:
        return None
    board = plan.build(supply=supply, rows=rows, promises=movable, demand=demand, at=at)
    late_at = time.perf_counter() + LIMIT_SECONDS
    placed = repack.repack(
        board.layout,
        board.request(plan.NEWCOMER, demand=demand),
        now_hour=-1,
        tries=TRIES,
        rng=np.random.default_rng(SEED),
        is_late=lambda: time.perf_counter() > late_at,
    )
    slots = plan.slots_of_changes(board) if placed is not None else None
    if slots is None:
        return None
    lot_of = supply.lots_of(slots.pop(plan.NEWCOMER), demand=demand)
    if lot_of is None:
        return None
    places = supply.places(lot_of)
    try:
        with moving.all_or_nothing():
            moving.carry_out(
                supply=supply,
                promises=[board.promises[promise_id] for promise_id in sorted(slots)],
                slots=slots,
                reason=RepackingReason.MADE_ROOM,
                at=at,
            )
            take(places)
    except CapacityTaken:
        return None
    return places


def open_room(*, wish: Demand, region: str | None, at: dt.datetime) -> bool:
    """Move what has not started so that a wish could be met, in some region; say whether that worked.

    Nothing is taken for the wish: it is priced anew now. Must run inside a transaction.
    """
    for pool in supplies.pools():
        if (pool.gpu_model_id, pool.tier) == (wish.gpu_model_id, wish.tier) and (
            region is None or pool.region == region
        ):
            demand = replace(wish, region=pool.region)
            supply = supplies.read(demand=demand, at=at)
            if make_room(supply=supply, demand=demand, take=_take_nothing, at=at) is not None:
                return True
    return False


def _take_nothing(places: Sequence[Place]) -> None:
    """Leave the room that was made to whoever asks for it next."""


def _rows(supply: Supply, *, demand: Demand) -> list[int]:
    """Return the nodes of the islands with the most room, if enough GPUs are free at every hour."""
    if not len(supply.blocks):
        return []
    free = np.bitwise_count(supply.offered_at_all[:, None] & ~supply.taken_by_step)
    by_island = np.zeros((int(supply.island_of.max()) + 1, supply.steps), dtype=np.int64)
    np.add.at(by_island, supply.island_of, free)
    rows: list[int] = []
    for island in np.argsort(-by_island.min(axis=1), kind="stable")[:ISLANDS_MAX]:
        members = np.flatnonzero(supply.island_of == island).tolist()
        if len(rows) + len(members) <= NODES_MAX:
            rows += members
    enough = bool(rows) and int(free[rows].sum(axis=0, dtype=np.int64).min()) >= demand.gpus
    return rows if enough else []
