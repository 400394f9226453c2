"""Choose nodes of a supply for a demand: the rules of `scheduler.packing`, on what the database says."""

from collections.abc import Sequence
from decimal import Decimal

import numpy as np

from scheduler.packing.choice import best_row
from scheduler.placement.demand import Demand
from scheduler.placement.shares import NodeShare, fill
from scheduler.placement.supply import Masks, Rows, Supply
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
        exact = [NodeShare(node=s.node, slots=s.slots[: s.count], count=s.count) for s in found]
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
    everywhere: Masks = np.full(len(supply.nodes), ALL_SLOTS)
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
        inside = np.arange(len(supply.nodes)) == nodes[np.argmin(rooms[-1, nodes])]
        return np.where(inside, everywhere, np.uint16(0))
    if demand.spread is Spread.SINGLE_NODE or not len(supply.nodes):
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
        free = supply.free_node(row, usable=int(usable[row]))
        return [NodeShare(node=free.node, slots=free.slots, count=gpus)]
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
    return fill([supply.free_node(row, usable=int(usable[row])) for row in rows], gpus=gpus)
