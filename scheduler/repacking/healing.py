"""The full pass: bring shares of nodes together, so that whole nodes become free again."""

import datetime as dt
from collections.abc import Sequence

import numpy as np
import structlog

from marketplace.core.windows import Window
from scheduler import calendar
from scheduler.calendar import CapacityTaken
from scheduler.packing.choice import choose
from scheduler.packing.layout import Layout, Piece, Placement, Request
from scheduler.placement import supply as supplies
from scheduler.placement.supply import Supply
from scheduler.repacking import moving, plan, promises
from scheduler.repacking.promises import Promise
from scheduler.states import RepackingReason

log = structlog.get_logger(__name__)

MOVES_MAX = 5_000  # per pass; the next night goes on


def heal(*, at: dt.datetime) -> int:
    """Move promises of less than a node to where they start fewer nodes; return how many moved.

    Island by island and one transaction per move: nobody waits for it, and it may run twice, side by side
    or break off at any point.
    """
    moved = 0
    for pool in supplies.pools():
        listings = supplies.listings_of(pool)
        soon = promises.bound_from(at=at)
        supply = supplies.read_pool(
            pool=pool, listings=listings, window=Window(soon, soon + dt.timedelta(hours=1)), at=at
        )
        for island in np.unique(supply.island_of):
            rows = np.flatnonzero(supply.island_of == island).tolist()
            moved += _heal_island(supply, rows=rows, moves_max=MOVES_MAX - moved, at=at)
    log.info("healed", promises_moved=moved)
    return moved


def _heal_island(supply: Supply, *, rows: list[int], moves_max: int, at: dt.datetime) -> int:
    ahead = Window(promises.bound_from(at=at), calendar.horizon_at(at=at))
    movable = promises.movable(supply=supply, rows=rows, window=ahead, at=at)
    if len(rows) < 2 or not movable:
        return 0
    board = plan.build(supply=supply, rows=rows, promises=movable, demand=None, at=at)
    moved = 0
    for promise in sorted(movable, key=lambda p: (p.demand.window.starts_at, p.id)):
        if moved == moves_max:
            break
        moved += _improve(board, promise=promise, at=at)
    return moved


def _improve(board: plan.Board, *, promise: Promise, at: dt.datetime) -> bool:
    """Move one promise if another node is busy for more of its window; say whether it moved."""
    layout = board.layout
    old = layout.placements[promise.id]
    if len(old.pieces) > 1 or old.request.gpus == layout.gpus_per_node:
        return False
    layout.take(promise.id)
    pieces = choose(layout, old.request)
    assert pieces is not None, "it fits where it was"
    if _hours_started(layout, old.request, pieces) >= _hours_started(
        layout, old.request, old.pieces
    ):
        layout.put(old)
        return False
    layout.put(Placement(request=old.request, pieces=pieces))
    slots = plan.slots_of_one(board, request_id=promise.id)
    if slots is not None:
        try:
            with moving.all_or_nothing():
                moving.carry_out(
                    supply=board.supply,
                    promises=[promise],
                    slots={promise.id: slots},
                    reason=RepackingReason.HEALED,
                    at=at,
                )
        except CapacityTaken:
            slots = None  # a rival was faster: what it did is seen by the next pass
    if slots is None:
        layout.take(promise.id)
        layout.put(old)
        return False
    board.slots[promise.id] = slots
    return True


def _hours_started(layout: Layout, request: Request, pieces: Sequence[Piece]) -> int:
    """Return for how many hours a node is busy for this request alone."""
    hours = slice(request.start_hour, request.end_hour)
    return sum(int((layout.used[piece.row, hours] == 0).sum()) for piece in pieces)
