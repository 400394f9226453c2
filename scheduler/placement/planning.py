"""Choose nodes of a supply for a demand: the rules of `scheduler.packing`, on what the database says."""

from collections.abc import Sequence

import numpy as np

from agents.supply import Masks
from scheduler.packing.choice import best_row
from scheduler.placement.demand import Demand
from scheduler.placement.shares import NodeShare
from scheduler.placement.supply import Rows, Supply
from scheduler.states import Spread


def plan(supply: Supply, *, demand: Demand, without: Masks) -> list[NodeShare] | None:
    """Choose among the cheapest listings that have room, in the order of their floors."""
    for floor in sorted({listing.floor_rate for listing in supply.listings}):
        usable = supply.usable(floor_rate_max=floor, without=without)
        if int(np.bitwise_count(usable).sum(dtype=np.int64)) >= demand.gpus:
            shares = _choose(supply, usable=usable, demand=demand)
            if shares is not None:
                return shares
    return None


def _choose(supply: Supply, *, usable: Masks, demand: Demand) -> list[NodeShare] | None:
    """Take one node, else the tightest island, and for `ANY` the whole region; or return `None`.

    An island that can give idle nodes comes before one that must scrape shares together.
    """
    sizes: Rows = np.bitwise_count(supply.sellable).astype(np.int64)
    room: Rows = np.bitwise_count(usable).astype(np.int64)
    is_idle = (supply.idle_steps == supply.steps) & (room == sizes)
    idle_nodes = np.bincount(supply.island_of, weights=is_idle)[supply.island_of]
    row = best_row(
        room=room,
        idle_hours=supply.idle_steps,
        left_over=sizes * supply.steps - supply.busy_gpu_steps,
        idle_nodes=idle_nodes.astype(np.int64),
        hours=supply.steps,
        gpus=demand.gpus,
    )
    if row is not None:
        return [supply.share(row, usable=int(usable[row]), count=demand.gpus)]
    if demand.spread is Spread.SINGLE_NODE:
        return None
    for gpus in (np.where(is_idle, room, 0), room):
        by_island = np.bincount(supply.island_of, weights=gpus)
        fitting = np.flatnonzero(by_island >= demand.gpus)
        if len(fitting):
            island = fitting[np.argmin(by_island[fitting])]
            rows = np.flatnonzero((supply.island_of == island) & (gpus > 0))
            return _filled(supply, rows=rows, usable=usable, gpus=demand.gpus)
    if demand.spread is Spread.ANY and int(room.sum()) >= demand.gpus:
        return _filled(supply, rows=np.flatnonzero(room), usable=usable, gpus=demand.gpus)
    return None


def _filled(
    supply: Supply, *, rows: Sequence[int] | Rows, usable: Masks, gpus: int
) -> list[NodeShare]:
    """Take the fullest nodes whole, and the rest where the least is left over. There is room enough."""
    left = np.asarray(rows)
    room: Rows = np.bitwise_count(usable[left]).astype(np.int64)
    order = np.argsort(-room, kind="stable")
    left, room = left[order], room[order]
    is_untouched = room == np.bitwise_count(supply.sellable[left])
    shares: list[NodeShare] = []
    missing = gpus
    while missing:
        fitting = np.flatnonzero(room >= missing)
        place = 0
        if len(fitting):
            breaks_one = is_untouched[fitting] & (room[fitting] > missing)
            place = int(fitting[np.lexsort((left[fitting], room[fitting], breaks_one))[0]])
        row = int(left[place])
        count = min(missing, int(room[place]))
        shares.append(supply.share(row, usable=int(usable[row]), count=count))
        missing -= count
        left, room, is_untouched = (np.delete(x, place) for x in (left, room, is_untouched))
    return shares
