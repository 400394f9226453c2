"""What may serve a demand, as arrays: a row per node, a bit per slot of its block.

Read in four queries whose answers are small: the listings, the nodes, one array of the slots that are
sellable, and what the calendar says of the window. Objects for single GPUs are made for the few nodes that
are chosen, not for the pool.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
import numpy.typing as npt
from django.conf import settings
from django.contrib.postgres.aggregates import ArrayAgg

from agents import idleness, inventory
from agents.models import SLOTS_PER_NODE, Node
from marketplace.core.windows import Window, to_seconds
from marketplace.models import Listing
from marketplace.states import ListingMode, Tier
from scheduler import occupancy
from scheduler.calendar import Place
from scheduler.placement.demand import Demand, serves
from scheduler.placement.shares import FreeNode, run_lengths
from scheduler.pool_keys import PoolKey
from scheduler.pools import Island, PoolNode

Masks = npt.NDArray[np.uint16]
Rows = npt.NDArray[np.int64]

STEPS_MAX = 720  # a window that is no whole hours is looked at in at most so many steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """The sellable nodes of one model, region and tier that some admitted listing covers.

    `offered[i]` are the slots that `listings[i]` sells, the cheapest listing first by `floor_rates[i]`, with
    which it counts; `taken` are the slots that somebody has in some part of the window, `taken_by_step` those
    of each of its steps.
    """

    nodes: tuple[PoolNode, ...]
    island_of: Rows
    sellable: Masks
    listings: tuple[Listing, ...]
    floor_rates: tuple[Decimal, ...]
    offered: Masks
    taken: Masks
    taken_by_step: Masks

    @property
    def steps(self) -> int:
        return int(self.taken_by_step.shape[1])

    @property
    def idle_steps(self) -> Rows:
        """Return per node in how many steps of the window nothing of it is taken."""
        idle: Rows = (self.taken_by_step == 0).sum(axis=1)
        return idle

    @property
    def busy_gpu_steps(self) -> Rows:
        """Return per node how many of its GPUs are taken, summed over the steps of the window."""
        busy: Rows = np.bitwise_count(self.taken_by_step).sum(axis=1, dtype=np.int64)
        return busy

    @property
    def offered_at_all(self) -> Masks:
        """Return per node the slots that some listing sells."""
        offered: Masks = np.bitwise_or.reduce(self.offered, axis=0)
        return offered

    def usable(self, *, floor_rate_max: Decimal, without: Masks) -> Masks:
        """Return per node the slots that are free and sold at a floor up to this, less some."""
        within = [i for i, floor in enumerate(self.floor_rates) if floor <= floor_rate_max]
        usable: Masks = np.bitwise_or.reduce(self.offered[within], axis=0) & ~self.taken & ~without
        return usable

    def free_node(self, row: int, *, usable: int) -> FreeNode:
        """Return one node with its usable slots, those of the cheapest listing and tightest run first."""
        slots = self._slots(row, mask=usable)
        run_of = run_lengths(slots)
        return FreeNode(
            node=self.nodes[row],
            slots=tuple(
                sorted(slots, key=lambda s: (self.floor_rates[self._seller(row, s)], run_of[s], s))
            ),
            gpus_total=int(self.sellable[row]).bit_count(),
        )

    def listing_of(self, row: int, slot: int) -> Listing:
        """Return the cheapest admitted listing that sells a slot."""
        return self.listings[self._seller(row, slot)]

    def lots_of(self, slots: Iterable[int], *, demand: Demand) -> dict[int, int] | None:
        """Return the lot of each slot that a demand gets: the cheapest listings serve the lowest floors.

        `None` when a listing asks more than the lot that is left for it.
        """
        if len(demand.asks) == 1:
            return dict.fromkeys(slots, demand.asks[0].lot)
        row_of = self._row_of
        floors = {
            slot: demand.floor_of(self.listing_of(row_of[_base(slot)], slot)) for slot in slots
        }
        places = [ask for ask in demand.asks for _ in range(ask.gpus)]
        cheapest = sorted(floors, key=lambda slot: (floors[slot], slot))
        dealt = list(zip(cheapest, places, strict=True))
        if any(floors[slot] > ask.floor_rate_max for slot, ask in dealt):
            return None
        return {slot: ask.lot for slot, ask in dealt}

    def places(self, lot_of: Mapping[int, int]) -> list[Place]:
        """Return the runs of neighbouring slots of one node, one listing and one lot."""
        row_of = self._row_of
        places: list[Place] = []
        for slot in sorted(lot_of):
            row = row_of[_base(slot)]
            place = Place(
                node_id=self.nodes[row].id,
                listing_id=self.listing_of(row, slot).id,
                slot_lower=slot,
                slot_upper=slot + 1,
                lot=lot_of[slot],
            )
            last = places[-1] if places else None
            if last is not None and place == replace(
                last, slot_lower=last.slot_upper, slot_upper=last.slot_upper + 1
            ):
                places[-1] = replace(last, slot_upper=slot + 1)
            else:
                places.append(place)
        return places

    @property
    def _row_of(self) -> dict[int, int]:
        return {node.slot_base: row for row, node in enumerate(self.nodes)}

    def _seller(self, row: int, slot: int) -> int:
        """Return the number of the cheapest listing that sells a slot."""
        bit = 1 << (slot - self.nodes[row].slot_base)
        return next(i for i, masks in enumerate(self.offered) if int(masks[row]) & bit)

    def masks(self, slots: Collection[int]) -> Masks:
        """Return the bits of some slots, per node."""
        return _masks(list(slots), nodes=self.nodes)

    def _slots(self, row: int, *, mask: int) -> list[int]:
        base = self.nodes[row].slot_base
        return [base + bit for bit in range(SLOTS_PER_NODE) if mask >> bit & 1]


def read(*, demand: Demand, at: dt.datetime) -> Supply:
    """Return what may serve a demand at this moment. Holds that have expired count as free."""
    pool = PoolKey(gpu_model_id=demand.gpu_model_id, region=demand.region, tier=demand.tier)
    listings = [listing for listing in listings_of(pool) if serves(listing, demand=demand, at=at)]
    cheapest_first = tuple(sorted(listings, key=demand.floor_of))
    return read_pool(pool=pool, listings=cheapest_first, window=demand.window, demand=demand, at=at)


def read_pool(
    *,
    pool: PoolKey,
    listings: tuple[Listing, ...],
    window: Window,
    at: dt.datetime,
    demand: Demand | None = None,
) -> Supply:
    """Return the nodes that some listings cover, the cheapest first; `demand` may leave nodes out."""
    nodes, labels = _nodes(pool=pool, listings=listings, demand=demand)
    sellable = _sellable(pool=pool, nodes=nodes, at=at) if nodes else np.zeros(0, np.uint16)
    offered = np.zeros((len(listings), len(nodes)), dtype=np.uint16)
    for i, listing in enumerate(listings):
        covers = [
            node.island[0] == listing.organization_id
            and listing.fabric in ("", node.fabric)
            and (not listing.labels or listing.labels.items() <= its_labels.items())
            for node, its_labels in zip(nodes, labels, strict=True)
        ]
        offered[i, covers] = sellable[covers]
        if listing.mode == ListingMode.WHEN_IDLE:
            offered[i] &= _idle(pool=pool, listing=listing, nodes=nodes, at=at)
    covered = np.flatnonzero(offered.any(axis=0)) if listings else np.zeros(0, np.int64)
    kept = tuple(nodes[row] for row in covered)
    steps = _taken_by_step(nodes=kept, window=window, at=at) & sellable[covered, None]
    islands: dict[Island, int] = {}
    return Supply(
        nodes=kept,
        island_of=np.array(
            [islands.setdefault(node.island, len(islands)) for node in kept], dtype=np.int64
        ),
        sellable=sellable[covered],
        listings=listings,
        floor_rates=tuple(
            listing.floor_rate if demand is None else demand.floor_of(listing)
            for listing in listings
        ),
        offered=offered[:, covered],
        taken=np.bitwise_or.reduce(steps, axis=1),
        taken_by_step=steps,
    )


def pools() -> list[PoolKey]:
    """Return the models, regions and tiers in which something is listed."""
    regions: dict[str, set[str]] = defaultdict(set)
    for owner, region in (
        Node.objects.order_by().values_list("organization_id", "region").distinct()
    ):
        regions[owner].add(region)
    return sorted(
        {
            PoolKey(gpu_model_id=listing.gpu_model_id, region=region, tier=Tier(listing.tier))
            for listing in Listing.objects.published()
            for region in regions[listing.organization_id]
            if listing.region in ("", region)
        }
    )


def listings_of(pool: PoolKey) -> tuple[Listing, ...]:
    """Return the published listings of a pool, the cheapest first."""
    found = Listing.objects.published().filter(
        currency=settings.CURRENCY,
        gpu_model_id=pool.gpu_model_id,
        tier=pool.tier,
        region__in=["", pool.region],
    )
    return tuple(sorted(found, key=lambda listing: (listing.floor_rate, listing.id)))


def _nodes(
    *, pool: PoolKey, listings: Sequence[Listing], demand: Demand | None
) -> tuple[list[PoolNode], list[dict[str, str]]]:
    """Return the machines of the listings' owners in the region, in the order of their blocks."""
    columns = ["id", "slot_base", "organization_id", "region", "fabric", "simulated"]
    if asks_labels := any(listing.labels for listing in listings):
        columns.append("labels")
    rows = (
        Node.objects.filter(
            organization_id__in={listing.organization_id for listing in listings},
            region=pool.region,
        )
        .order_by("slot_base")
        .values_list(*columns)
    )
    nodes, labels = [], []
    for node_id, base, owner, region, fabric, simulated, *rest in rows:
        node = PoolNode(
            id=node_id,
            slot_base=base,
            island=(owner, region, fabric or node_id),
            fabric=fabric,
            simulated=simulated,
        )
        if demand is not None and not demand.may_serve(node):
            continue
        nodes.append(node)
        labels.append(rest[0] if asks_labels else {})
    return nodes, labels


def _sellable(*, pool: PoolKey, nodes: Sequence[PoolNode], at: dt.datetime) -> Masks:
    owners = {node.island[0] for node in nodes}
    found = (
        inventory.sellable_gpus(at=at)
        .filter(
            gpu_model_id=pool.gpu_model_id,
            node__region=pool.region,
            node__organization_id__in=owners,
        )
        .aggregate(slots=ArrayAgg("slot", default=[]))
    )
    return _masks(found["slots"], nodes=nodes)


def _idle(*, pool: PoolKey, listing: Listing, nodes: Sequence[PoolNode], at: dt.datetime) -> Masks:
    """Return the slots of an owner's GPUs that have been idle for as long as its listing asks."""
    rows = (
        inventory.sellable_gpus(at=at)
        .filter(
            gpu_model_id=pool.gpu_model_id,
            node__region=pool.region,
            node__organization_id=listing.organization_id,
        )
        .values_list("slot", "idle_state", "idle_since", "offered_again_at")
    )
    idle = [
        slot
        for slot, idle_state, idle_since, offered_again_at in rows
        if idleness.offered_idle_seconds(
            idle_state=idle_state, idle_since=idle_since, offered_again_at=offered_again_at, at=at
        )
        >= listing.idle_for_seconds
    ]
    return _masks(idle, nodes=nodes)


def _base(slot: int) -> int:
    """Return the first slot of the block in which a slot lies."""
    return slot // SLOTS_PER_NODE * SLOTS_PER_NODE


def _masks(slots: Sequence[int], *, nodes: Sequence[PoolNode]) -> Masks:
    """Return the bits of some slots in their nodes' blocks; slots of other nodes are left out."""
    masks = np.zeros(len(nodes), dtype=np.uint16)
    if not slots or not nodes:
        return masks
    bases = np.array([node.slot_base for node in nodes], dtype=np.int64)
    numbers = np.array(slots, dtype=np.int64)
    blocks = numbers // SLOTS_PER_NODE * SLOTS_PER_NODE
    rows = np.minimum(np.searchsorted(bases, blocks), len(bases) - 1)
    known = bases[rows] == blocks
    bits = (1 << (numbers[known] - blocks[known])).astype(np.uint16)
    np.bitwise_or.at(masks, rows[known], bits)
    return masks


def _taken_by_step(*, nodes: Sequence[PoolNode], window: Window, at: dt.datetime) -> Masks:
    """Return per node and step of the window the slots that somebody has in some part of the step."""
    if not nodes:
        return np.zeros((0, 1), dtype=np.uint16)
    blocks = np.array([node.slot_base // SLOTS_PER_NODE for node in nodes], dtype=np.int32)
    first = to_seconds(window.starts_at)
    hour = occupancy.HOUR_SECONDS
    if first % hour == 0 and window.seconds % hour == 0:
        return occupancy.read(
            blocks=blocks, first_hour=first // hour, hours=window.seconds // hour, at=at
        )
    count = max(1, min(STEPS_MAX, window.seconds // settings.GRID_SECONDS))
    masks = np.zeros((len(nodes), count), dtype=np.uint16)
    occupancy.paint(
        masks=masks,
        blocks=blocks,
        taken=occupancy.taken_between(blocks=blocks, window=window, at=at),
        first=first,
        step=-(-window.seconds // count),
    )
    return masks
