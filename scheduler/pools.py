"""What is on offer: the GPUs of one model, region and tier, with the listings that sell them.

A pool is computed from the owners' wishes and the machines' state of this moment; it is never stored.
Whether a GPU is healthy, reports and is idle is knowledge of now, also for a window that starts later.

Machines of one owner that look alike to every listing come from PostgreSQL as one row, with 16 bits for the
GPUs of each node. So the work done in Python follows the number of owners, fabrics and listings, and the work
per node is done on arrays.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from django.conf import settings

from agents import supply
from agents.models import SLOTS_PER_NODE
from agents.supply import Blocks, Machines, Masks, Records, Supply
from marketplace.models import Listing
from marketplace.states import ListingMode, Tier

Island = tuple[
    str, str, str
]  # owner, region, fabric; a node without a fabric is an island of its own
Rows: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolNode:
    """One machine of a pool."""

    id: str
    slot_base: int
    island: Island
    fabric: str
    simulated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGpu:
    """One GPU on offer. `listings` are those that match it now, the cheapest first."""

    slot: int
    node: PoolNode
    listings: tuple[Listing, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sold:
    """What one listing sells of a pool just now: per node the bits of its GPUs."""

    listing: Listing
    masks: Masks


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """The GPUs of one model, region and tier. Nodes are ordered by island and block.

    `blocks`, `ids`, `simulated` and `masks` have one entry per node; `masks` are the bits of all GPUs that
    any listing sells. `island_starts` are the nodes with which the `islands` begin. The cheapest listing is
    first.
    """

    gpu_model_id: str
    region: str
    tier: Tier
    blocks: Blocks
    ids: tuple[str, ...]
    simulated: npt.NDArray[np.bool_]
    masks: Masks
    islands: tuple[Island, ...]
    fabrics: tuple[str, ...]
    island_starts: Rows
    sold: tuple[Sold, ...]

    @cached_property
    def gpus_listed(self) -> int:
        return int(np.bitwise_count(self.masks).sum(dtype=np.int64))

    @cached_property
    def listings(self) -> tuple[Listing, ...]:
        """Return every listing that sells a GPU of the pool, the cheapest first."""
        return tuple(each.listing for each in self.sold)

    @cached_property
    def floors(self) -> tuple[Decimal, ...]:
        """Return the distinct floors of the pool per GPU-hour, rising."""
        return tuple(sorted({listing.floor_rate for listing in self.listings}))

    @cached_property
    def island_of(self) -> Rows:
        """Return the number of each node's island."""
        numbers: Rows = np.zeros(len(self.blocks), dtype=np.int64)
        numbers[self.island_starts[1:]] = 1
        return np.cumsum(numbers)

    def node(self, row: int) -> PoolNode:
        """Return one node as an object."""
        island = int(self.island_of[row])
        return PoolNode(
            id=self.ids[row],
            slot_base=int(self.blocks[row]) * SLOTS_PER_NODE,
            island=self.islands[island],
            fabric=self.fabrics[island],
            simulated=bool(self.simulated[row]),
        )

    @cached_property
    def gpus(self) -> tuple[PoolGpu, ...]:
        """Return every GPU as an object, by island, node and slot: for small numbers of nodes."""
        found = []
        for row in range(len(self.blocks)):
            node = self.node(row)
            selling = [(s.listing, int(s.masks[row])) for s in self.sold if s.masks[row]]
            for bit in range(SLOTS_PER_NODE):
                listings = tuple(listing for listing, mask in selling if mask >> bit & 1)
                if listings:
                    found.append(PoolGpu(slot=node.slot_base + bit, node=node, listings=listings))
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """Machines of one kind, and the listings that sell their GPUs in one tier."""

    machines: Machines
    listings: tuple[Listing, ...]


def read(
    *, gpu_model_id: str | None, region: str | None, tier: Tier | None, at: dt.datetime
) -> list[Pool]:
    """Return the pools in which something is listed and sellable at this moment.

    Four queries; five where a listing sells only what is idle. `None` stands for every model, region or tier.
    """
    listings = Listing.objects.published().filter(currency=settings.CURRENCY)
    if gpu_model_id is not None:
        listings = listings.filter(gpu_model_id=gpu_model_id)
    if tier is not None:
        listings = listings.filter(tier=tier)
    if region is not None:
        listings = listings.filter(region__in=["", region])
    by_owner: dict[str, list[Listing]] = defaultdict(list)
    for listing in sorted(listings, key=_merit):
        by_owner[listing.organization_id].append(listing)
    if not by_owner:
        return []
    has = supply.read(gpu_model_id=gpu_model_id, region=region, organization_ids=by_owner, at=at)
    curious = {
        owner
        for owner, theirs in by_owner.items()
        if any(listing.mode == ListingMode.WHEN_IDLE for listing in theirs)
    }
    idle = supply.idle(organization_ids=curious, at=at) if curious else None
    members: dict[tuple[str, str, Tier], list[_Part]] = defaultdict(list)
    for machines in has.machines:
        by_pool: dict[tuple[str, Tier], list[Listing]] = defaultdict(list)
        for listing in by_owner[machines.organization_id]:
            if listing.gpu_model_id in has.blocks and _selects(listing, machines):
                by_pool[listing.gpu_model_id, Tier(listing.tier)].append(listing)
        for (model, its_tier), theirs in by_pool.items():
            part = _Part(machines=machines, listings=tuple(theirs))
            members[model, machines.region, its_tier].append(part)
    found = (
        _pool(key=key, parts=parts, has=has, idle=idle) for key, parts in sorted(members.items())
    )
    return [pool for pool in found if pool is not None]


def serves(listing: Listing, *, gpus: int, window_seconds: int) -> str | None:
    """Return why a listing refuses a request of this size and length, or `None` when it serves it."""
    if window_seconds < listing.duration_seconds_min:
        return "window_too_short"
    longest = listing.duration_seconds_max
    if longest is not None and window_seconds > longest:
        return "window_too_long"
    if gpus < listing.gpus_min:
        return "too_few_gpus"
    return None


def blackouts(listing: Listing) -> list[tuple[dt.datetime, dt.datetime]]:
    """Return the half-open periods in which a listing never sells."""
    return [
        (dt.datetime.fromisoformat(starts_at), dt.datetime.fromisoformat(ends_at))
        for starts_at, ends_at in listing.blackouts
    ]


def _selects(listing: Listing, machines: Machines) -> bool:
    return (
        listing.region in ("", machines.region)
        and listing.fabric in ("", machines.fabric)
        and listing.labels.items() <= machines.labels.items()
    )


def _pool(
    *,
    key: tuple[str, str, Tier],
    parts: Sequence[_Part],
    has: Supply,
    idle: Records | None,
) -> Pool | None:
    """Join the nodes of one model, region and tier; `None` when no GPU of them is on offer."""
    model, region, tier = key
    blocks = np.concatenate([part.machines.blocks for part in parts])
    names = [name for part in parts for name in part.machines.ids]
    islands, numbers = _islands(parts=parts, region=region)
    masks = has.masks_of(gpu_model_id=model, blocks=blocks)
    sold: dict[str, Sold] = {}
    first = 0
    for part in parts:
        rows = slice(first, first + len(part.machines.blocks))
        first = rows.stop
        for listing in part.listings:
            each = sold.setdefault(
                listing.id,
                Sold(listing=listing, masks=np.zeros(len(blocks), dtype=np.uint16)),
            )
            each.masks[rows] = masks[rows] & _quiet(listing, blocks=blocks[rows], idle=idle)
    union = np.bitwise_or.reduce([each.masks for each in sold.values()])
    order = np.lexsort((blocks, numbers))
    order = order[union[order] != 0]
    if not len(order):
        return None
    ordered = numbers[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    return Pool(
        gpu_model_id=model,
        region=region,
        tier=tier,
        blocks=blocks[order],
        ids=tuple(names[row] for row in order.tolist()),
        simulated=np.repeat(
            [part.machines.simulated for part in parts],
            [len(part.machines.blocks) for part in parts],
        )[order],
        masks=union[order],
        islands=tuple(islands[number][0] for number in ordered[starts].tolist()),
        fabrics=tuple(islands[number][1] for number in ordered[starts].tolist()),
        island_starts=starts,
        sold=tuple(
            Sold(listing=each.listing, masks=each.masks[order])
            for each in sorted(sold.values(), key=lambda each: _merit(each.listing))
            if each.masks.any()
        ),
    )


def _islands(*, parts: Sequence[_Part], region: str) -> tuple[list[tuple[Island, str]], Rows]:
    """Return the islands with their fabrics, sorted, and the number of each node's."""
    members: list[tuple[Island, str]] = []
    sizes: list[int] = []
    for part in parts:
        owner, fabric = part.machines.organization_id, part.machines.fabric
        places = [fabric] if fabric else part.machines.ids
        members += [((owner, region, place), fabric) for place in places]
        sizes += [len(part.machines.ids)] if fabric else [1] * len(places)
    islands = sorted(set(members))
    number_of = {island: number for number, island in enumerate(islands)}
    return islands, np.repeat(np.array([number_of[each] for each in members], np.int64), sizes)


def _quiet(listing: Listing, *, blocks: Blocks, idle: Records | None) -> Masks:
    """Return per block the bits of the GPUs that are as idle as a listing wants them."""
    if listing.mode == ListingMode.ALWAYS or idle is None:
        return np.full(len(blocks), 0xFFFF, dtype=np.uint16)
    slots = idle["slot"][idle["seconds"] >= listing.idle_for_seconds]
    order = np.argsort(blocks)
    masks: Masks = np.zeros(len(blocks), dtype=np.uint16)
    masks[order] = supply.masks_of_slots(slots=slots, blocks=blocks[order])
    return masks


def _merit(listing: Listing) -> tuple[Decimal, str]:
    return (listing.floor_rate, listing.id)
