"""What may serve a demand, as arrays: a row per node, a bit per slot of its block.

Read in few queries whose answers are small: the listings, the machines, the bits of their GPUs, and what the
calendar says of the window. Objects for nodes and single GPUs are made for the few that are chosen, not for
the pool.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
import numpy.typing as npt
from django.conf import settings

from agents import supply as machines_supply
from agents.models import SLOTS_PER_NODE, Node
from agents.supply import Blocks, Machines, Masks
from marketplace.core.windows import Window, to_seconds
from marketplace.models import Listing
from marketplace.states import ListingMode, ListingStatus, Tier
from scheduler import occupancy
from scheduler.calendar import Place
from scheduler.placement.demand import Demand, serves
from scheduler.placement.shares import NodeShare, run_lengths
from scheduler.pool_keys import PoolKey
from scheduler.pools import Island

Rows = npt.NDArray[np.int64]

STEPS_MAX = 720  # a window that is no whole hours is looked at in at most so many steps


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Supply:
    """The sellable nodes of one model, region and tier that some admitted listing covers.

    `blocks`, which rise, and `ids` have an entry per node, and `island_of` the number of its island.
    `offered[i]` are the slots that `listings[i]` sells, the cheapest listing first by `floor_rates[i]`, with
    which it counts; `ready[i]` those of them that nobody has in its turn-round after the window. `taken` are
    the slots that somebody has in some part of the window, `taken_by_step` those of each of its steps.
    """

    blocks: Blocks
    ids: tuple[str, ...]
    island_of: Rows
    sellable: Masks
    listings: tuple[Listing, ...]
    floor_rates: tuple[Decimal, ...]
    offered: Masks
    ready: Masks
    taken: Masks
    taken_by_step: Masks

    @property
    def steps(self) -> int:
        return int(self.taken_by_step.shape[1])

    def slot_base(self, row: int) -> int:
        """Return the first slot of a node's block."""
        return int(self.blocks[row]) * SLOTS_PER_NODE

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

    @property
    def turnaround_seconds_max(self) -> int:
        """Return the longest turn-round that one of the listings asks."""
        return max((listing.turnaround_seconds for listing in self.listings), default=0)

    def usable(self, *, floor_rate_max: Decimal, without: Masks) -> Masks:
        """Return per node the slots that are free and sold at a floor up to this, less some."""
        within = [i for i, floor in enumerate(self.floor_rates) if floor <= floor_rate_max]
        usable: Masks = np.bitwise_or.reduce(self.ready[within], axis=0) & ~self.taken & ~without
        return usable

    def share(self, row: int, *, usable: int, count: int) -> NodeShare:
        """Return a share of a node: slots of the cheapest listing and of the tightest run come first."""
        slots = self._slots(row, mask=usable)
        run_of = run_lengths(slots)
        preferred = sorted(
            slots, key=lambda s: (self.floor_rates[self._seller(row, s)], run_of[s], s)
        )
        return NodeShare(slots=tuple(preferred), count=count)

    def listing_of(self, row: int, slot: int) -> Listing:
        """Return the cheapest admitted listing that sells a slot."""
        return self.listings[self._seller(row, slot)]

    def lots_of(self, slots: Iterable[int], *, demand: Demand) -> dict[int, int] | None:
        """Return the lot of each slot that a demand gets: the cheapest listings serve the lowest floors.

        `None` when a listing asks more than the lot that is left for it.
        """
        if len(demand.asks) == 1:
            return dict.fromkeys(slots, demand.asks[0].lot)
        floors = {
            slot: demand.floor_of(self.listing_of(self._row_of(slot), slot)) for slot in slots
        }
        places = [ask for ask in demand.asks for _ in range(ask.gpus)]
        cheapest = sorted(floors, key=lambda slot: (floors[slot], slot))
        dealt = list(zip(cheapest, places, strict=True))
        if any(floors[slot] > ask.floor_rate_max for slot, ask in dealt):
            return None
        return {slot: ask.lot for slot, ask in dealt}

    def places(self, lot_of: Mapping[int, int]) -> list[Place]:
        """Return the runs of neighbouring slots of one node, one listing and one lot."""
        places: list[Place] = []
        for slot in sorted(lot_of):
            row = self._row_of(slot)
            listing = self.listing_of(row, slot)
            place = Place(
                node_id=self.ids[row],
                listing_id=listing.id,
                slot_lower=slot,
                slot_upper=slot + 1,
                lot=lot_of[slot],
                turnaround_seconds=listing.turnaround_seconds,
            )
            last = places[-1] if places else None
            if last is not None and place == replace(
                last, slot_lower=last.slot_upper, slot_upper=last.slot_upper + 1
            ):
                places[-1] = replace(last, slot_upper=slot + 1)
            else:
                places.append(place)
        return places

    def _row_of(self, slot: int) -> int:
        return int(np.searchsorted(self.blocks, slot // SLOTS_PER_NODE))

    def _seller(self, row: int, slot: int) -> int:
        """Return the number of the cheapest listing that sells a slot, if one can with time to turn round.

        Where others will have moved away none can yet.
        """
        bit = 1 << slot % SLOTS_PER_NODE
        return next(
            i
            for masks_of in (self.ready, self.offered)
            for i, masks in enumerate(masks_of)
            if int(masks[row]) & bit
        )

    def masks(self, slots: Collection[int]) -> Masks:
        """Return the bits of some slots, per node."""
        numbers = np.array(sorted(slots), dtype=np.int64)
        return machines_supply.masks_of_slots(slots=numbers, blocks=self.blocks)

    def _slots(self, row: int, *, mask: int) -> list[int]:
        base = self.slot_base(row)
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
    has = machines_supply.read(
        gpu_model_id=pool.gpu_model_id,
        region=pool.region,
        organization_ids={listing.organization_id for listing in listings},
        at=at,
    )
    groups = [
        (machines, covering)
        for machines in has.machines
        if (covering := [i for i, listing in enumerate(listings) if covers(listing, machines)])
    ]
    if not groups or pool.gpu_model_id not in has.blocks:
        return _nothing(listings=listings)
    blocks = np.concatenate([machines.blocks for machines, _ in groups])
    ids = [node_id for machines, _ in groups for node_id in machines.ids]
    islands, numbers = _islands([machines for machines, _ in groups])
    sellable = has.masks_of(gpu_model_id=pool.gpu_model_id, blocks=blocks)
    offered = np.zeros((len(listings), len(blocks)), dtype=np.uint16)
    first = 0
    for machines, covering in groups:
        rows = slice(first, first + len(machines.blocks))
        first = rows.stop
        offered[covering, rows] = sellable[rows]
    kept = np.argsort(blocks)
    if demand is not None and not demand.takes_any_node:
        may = [demand.may_serve(ids[row], islands[numbers[row]]) for row in kept.tolist()]
        kept = kept[may]
    blocks, offered = blocks[kept], offered[:, kept]
    _leave_busy_out(offered, listings=listings, blocks=blocks, at=at)
    covered = np.flatnonzero(offered.any(axis=0))
    kept, blocks = kept[covered], blocks[covered]
    steps = _taken_by_step(blocks=blocks, window=window, at=at) & sellable[kept, None]
    return Supply(
        blocks=blocks,
        ids=tuple(ids[row] for row in kept.tolist()),
        island_of=_numbered(numbers[kept]),
        sellable=sellable[kept],
        listings=listings,
        floor_rates=tuple(
            listing.floor_rate if demand is None else demand.floor_of(listing)
            for listing in listings
        ),
        offered=offered[:, covered],
        ready=_ready(
            offered=offered[:, covered],
            listings=listings,
            blocks=blocks,
            ends_at=window.ends_at,
            at=at,
        ),
        taken=np.bitwise_or.reduce(steps, axis=1),
        taken_by_step=steps,
    )


def _ready(
    *,
    offered: Masks,
    listings: Sequence[Listing],
    blocks: Blocks,
    ends_at: dt.datetime,
    at: dt.datetime,
) -> Masks:
    """Return per listing and node the slots that nobody has in the listing's turn-round after a window."""
    ready = offered.copy()
    for seconds in {listing.turnaround_seconds for listing in listings} - {0}:
        after = Window(ends_at, ends_at + dt.timedelta(seconds=seconds))
        alike = [i for i, each in enumerate(listings) if each.turnaround_seconds == seconds]
        ready[alike] &= ~occupancy.during(blocks=blocks, window=after, at=at)
    return ready


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
    # As text: every buyer asks this, and Django takes longer to write it than PostgreSQL to answer.
    found = Listing.objects.raw(
        "SELECT * FROM marketplace_listing WHERE status = %(published)s AND currency = %(currency)s"
        " AND gpu_model_id = %(model)s AND tier = %(tier)s AND region IN ('', %(region)s)",
        {
            "published": ListingStatus.PUBLISHED.value,
            "currency": settings.CURRENCY,
            "model": pool.gpu_model_id,
            "tier": pool.tier.value,
            "region": pool.region,
        },
    )
    return tuple(sorted(found, key=lambda listing: (listing.floor_rate, listing.id)))


def covers(listing: Listing, machines: Machines) -> bool:
    """Say whether a listing of the region selects machines."""
    return (
        listing.organization_id == machines.organization_id
        and listing.fabric in ("", machines.fabric)
        and listing.labels.items() <= machines.labels.items()
    )


def _nothing(*, listings: tuple[Listing, ...]) -> Supply:
    """Return the supply of a pool in which no machine is on offer."""
    none = np.zeros(0, dtype=np.uint16)
    return Supply(
        blocks=np.zeros(0, dtype=np.int32),
        ids=(),
        island_of=np.zeros(0, dtype=np.int64),
        sellable=none,
        listings=listings,
        floor_rates=tuple(listing.floor_rate for listing in listings),
        offered=np.zeros((len(listings), 0), dtype=np.uint16),
        ready=np.zeros((len(listings), 0), dtype=np.uint16),
        taken=none,
        taken_by_step=np.zeros((0, 1), dtype=np.uint16),
    )


def _islands(groups: Sequence[Machines]) -> tuple[list[Island], Rows]:
    """Return the islands of some machines, and per machine the number of its own."""
    numbers: dict[Island, int] = {}
    found: list[int] = []
    sizes: list[int] = []
    for machines in groups:
        places = [machines.fabric] if machines.fabric else machines.ids
        islands = ((machines.organization_id, machines.region, place) for place in places)
        found += [numbers.setdefault(island, len(numbers)) for island in islands]
        sizes += [len(machines.ids)] if machines.fabric else [1] * len(places)
    return list(numbers), np.repeat(np.array(found, dtype=np.int64), sizes)


def _numbered(numbers: Rows) -> Rows:
    """Return numbers from 0 on in the place of some, in the order in which they first come."""
    _, firsts, places = np.unique(numbers, return_index=True, return_inverse=True)
    rank: Rows = np.argsort(np.argsort(firsts))
    return rank[places]


def _leave_busy_out(
    offered: npt.NDArray[np.uint16],
    *,
    listings: Sequence[Listing],
    blocks: Blocks,
    at: dt.datetime,
) -> None:
    """Take from what listings of idle GPUs offer those that have not been idle for as long as they ask."""
    curious = [i for i, listing in enumerate(listings) if listing.mode == ListingMode.WHEN_IDLE]
    if not curious:
        return
    owners = {listings[i].organization_id for i in curious}
    idle = machines_supply.idle(organization_ids=owners, at=at)
    for i in curious:
        slots = idle["slot"][idle["seconds"] >= listings[i].idle_for_seconds]
        offered[i] &= machines_supply.masks_of_slots(slots=slots, blocks=blocks)


def _taken_by_step(*, blocks: Blocks, window: Window, at: dt.datetime) -> Masks:
    """Return per node and step of the window the slots that somebody has in some part of the step."""
    if not len(blocks):
        return np.zeros((0, 1), dtype=np.uint16)
    first = to_seconds(window.starts_at)
    hour = occupancy.HOUR_SECONDS
    if first % hour == 0 and window.seconds % hour == 0:
        return occupancy.read(
            blocks=blocks, first_hour=first // hour, hours=window.seconds // hour, at=at
        )
    count = max(1, min(STEPS_MAX, window.seconds // settings.GRID_SECONDS))
    masks = np.zeros((len(blocks), count), dtype=np.uint16)
    occupancy.paint(
        masks=masks,
        blocks=blocks,
        taken=occupancy.taken_between(blocks=blocks, window=window, at=at),
        first=first,
        step=-(-window.seconds // count),
    )
    return masks
