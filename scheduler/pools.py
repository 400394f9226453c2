"""What is on offer: the GPUs of one model, region and tier, each with the listings that sell it.

A pool is computed from the owners' wishes and the machines' state of this moment; it is never stored.
Whether a GPU is healthy, reports and is idle is knowledge of now, also for a window that starts later.
"""

import datetime as dt
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal

from django.conf import settings

from agents import idleness, inventory
from marketplace.models import Listing
from marketplace.states import ListingMode, Tier

Island = tuple[
    str, str, str
]  # owner, region, fabric; a node without a fabric is an island of its own


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The GPUs of one model, region and tier, ordered by island, node and slot."""

    gpu_model_id: str
    region: str
    tier: Tier
    gpus: tuple[PoolGpu, ...]

    @property
    def listings(self) -> tuple[Listing, ...]:
        """Return every listing that sells a GPU of the pool, the cheapest first."""
        found = {listing.id: listing for gpu in self.gpus for listing in gpu.listings}
        return tuple(sorted(found.values(), key=_merit))

    @property
    def floors(self) -> tuple[Decimal, ...]:
        """Return the distinct floors of the pool per GPU-hour, rising."""
        return tuple(sorted({listing.floor_rate for listing in self.listings}))


def read(
    *, gpu_model_id: str | None, region: str | None, tier: Tier | None, at: dt.datetime
) -> list[Pool]:
    """Return the pools in which something is listed and sellable at this moment; two queries.

    `None` stands for every model, region or tier.
    """
    listings = Listing.objects.published().filter(currency=settings.CURRENCY)
    gpus = inventory.sellable_gpus(at=at)
    if gpu_model_id is not None:
        listings, gpus = (
            listings.filter(gpu_model_id=gpu_model_id),
            gpus.filter(gpu_model_id=gpu_model_id),
        )
    if tier is not None:
        listings = listings.filter(tier=tier)
    if region is not None:
        listings = listings.filter(region__in=["", region])
        gpus = gpus.filter(node__region=region)
    by_seller: dict[tuple[str, str], list[Listing]] = defaultdict(list)
    for listing in sorted(listings, key=_merit):
        by_seller[listing.organization_id, listing.gpu_model_id].append(listing)
    if not by_seller:
        return []
    rows = gpus.filter(node__organization_id__in={owner for owner, _ in by_seller}).values_list(
        "slot",
        "gpu_model_id",
        "idle_state",
        "idle_since",
        "offered_again_at",
        "node_id",
        "node__slot_base",
        "node__organization_id",
        "node__region",
        "node__fabric",
        "node__labels",
        "node__simulated",
    )
    nodes: dict[str, PoolNode] = {}
    matched: dict[str, list[Listing]] = {}
    members: dict[tuple[str, str, Tier], list[PoolGpu]] = defaultdict(list)
    for (
        slot,
        model,
        idle_state,
        idle_since,
        again_at,
        node_id,
        base,
        owner,
        place,
        fabric,
        labels,
        sim,
    ) in rows:
        if node_id not in nodes:
            nodes[node_id] = PoolNode(
                id=node_id,
                slot_base=base,
                island=(owner, place, fabric or node_id),
                fabric=fabric,
                simulated=sim,
            )
        key = f"{node_id} {model}"
        if key not in matched:
            matched[key] = [
                listing
                for listing in by_seller.get((owner, model), ())
                if listing.region in ("", place)
                and listing.fabric in ("", fabric)
                and listing.labels.items() <= labels.items()
            ]
        idle_seconds = idleness.offered_idle_seconds(
            idle_state=idle_state, idle_since=idle_since, offered_again_at=again_at, at=at
        )
        by_tier: dict[Tier, list[Listing]] = defaultdict(list)
        for listing in matched[key]:
            if listing.mode == ListingMode.ALWAYS or idle_seconds >= listing.idle_for_seconds:
                by_tier[Tier(listing.tier)].append(listing)
        for its_tier, its_listings in by_tier.items():
            members[model, place, its_tier].append(
                PoolGpu(slot=slot, node=nodes[node_id], listings=tuple(its_listings))
            )
    return [
        Pool(
            gpu_model_id=model,
            region=place,
            tier=its_tier,
            gpus=tuple(sorted(found, key=lambda g: (g.node.island, g.node.slot_base, g.slot))),
        )
        for (model, place, its_tier), found in sorted(members.items())
    ]


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


def _merit(listing: Listing) -> tuple[Decimal, str]:
    return (listing.floor_rate, listing.id)
