"""Choose nodes of a supply for a demand: the rules of `scheduler.packing`, on what the database says."""

from collections.abc import Sequence
from decimal import Decimal

import numpy as np

from agents.supply import Masks
from scheduler.packing.choice import best_row
from scheduler.placement.demand import Demand
from scheduler.placement.shares import NodeShare
from scheduler.placement.supply import Rows, Supply
from scheduler.states import Spread

ALL_SLOTS = np.uint16(0xFFFF)


def plan(supply: Supply, *, demand: Demand, without: Masks) -> list[NodeShare] | None:
    """Choose among the cheapest listings that have room, lot by lot, in the order of their floors.

    Of several lots each gets just these slots: which slot is of which lot is decided here.
    """
    if len(demand.asks) == 1:
        return _cheapest(
            supply,
            gpus=demand.gpus,
            spread=demand.spread,
            floor_rate_max=demand.asks[0].floor_rate_max,
            without=without,
        )
    ground = _ground(supply, demand=demand, without=without)
    if ground is None:
        return None
    taken = without | ~ground
    shares: list[NodeShare] = []
    for ask in demand.asks:
        found = _cheapest(
            supply,
            gpus=ask.gpus,
            spread=Spread.ANY,
            floor_rate_max=ask.floor_rate_max,
            without=taken,
        )
        if found is None:
            return None
        exact = [NodeShare(slots=s.slots[: s.count], count=s.count) for s in found]
        taken = taken | supply.masks([slot for share in exact for slot in share.slots])
        shares += exact
    return shares


def _cheapest(
    supply: Supply, *, gpus: int, spread: Spread, floor_rate_max: Decimal, without: Masks
) -> list[NodeShare] | None:
    """Choose among the listings with the lowest floors that have room."""
    for floor in sorted(set(supply.floor_rates)):
        if floor > floor_rate_max:
            break
        usable = supply.usable(floor_rate_max=floor, without=without)
        if int(np.bitwise_count(usable).sum(dtype=np.int64)) >= gpus:
            shares = _choose(supply, usable=usable, gpus=gpus, spread=spread)
            if shares is not None:
                return shares
    return None


def _ground(supply: Supply, *, demand: Demand, without: Masks) -> Masks | None:
    """Return the slots among which all lots are to lie: of one node, else of the tightest island, or of all.

    There is room where each lot and those before it find enough GPUs at its floor.
    """
    everywhere: Masks = np.full(len(supply.blocks), ALL_SLOTS)
    needed = np.cumsum([ask.gpus for ask in demand.asks])
    rooms = np.array(
        [
            np.bitwise_count(supply.usable(floor_rate_max=ask.floor_rate_max, without=without))
            for ask in demand.asks
        ],
        dtype=np.int64,
    )
    if demand.spread is Spread.ANY:
        return everywhere if bool((rooms.sum(axis=1) >= needed).all()) else None
    nodes = np.flatnonzero((rooms >= needed[:, None]).all(axis=0))
    if len(nodes):
        inside = np.arange(len(supply.blocks)) == nodes[np.argmin(rooms[-1, nodes])]
        return np.where(inside, everywhere, np.uint16(0))
    if demand.spread is Spread.SINGLE_NODE or not len(supply.blocks):
        return None
    by_island = np.stack([np.bincount(supply.island_of, weights=room) for room in rooms])
    islands = np.flatnonzero((by_island >= needed[:, None]).all(axis=0))
    if not len(islands):
        return None
    inside = supply.island_of == islands[np.argmin(by_island[-1, islands])]
    return np.where(inside, everywhere, np.uint16(0))


def _choose(supply: Supply, *, usable: Masks, gpus: int, spread: Spread) -> list[NodeShare] | None:
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
        gpus=gpus,
    )
    if row is not None:
        return [supply.share(row, usable=int(usable[row]), count=gpus)]
    if spread is Spread.SINGLE_NODE:
        return None
    for counts in (np.where(is_idle, room, 0), room):
        by_island = np.bincount(supply.island_of, weights=counts)
        fitting = np.flatnonzero(by_island >= gpus)
        if len(fitting):
            island = fitting[np.argmin(by_island[fitting])]
            rows = np.flatnonzero((supply.island_of == island) & (counts > 0))
            return _filled(supply, rows=rows, usable=usable, gpus=gpus)
    if spread is Spread.ANY and int(room.sum()) >= gpus:
        return _filled(supply, rows=np.flatnonzero(room), usable=usable, gpus=gpus)
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
