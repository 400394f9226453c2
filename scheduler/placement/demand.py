"""What is to be placed, and which listings sell it."""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from marketplace.core.windows import Window, to_seconds
from marketplace.models import Listing
from marketplace.states import Tier
from scheduler import pools
from scheduler.board import is_open
from scheduler.pools import Pool, PoolGpu
from scheduler.states import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is to be placed: GPUs of one region and tier, of listings with at most this floor.

    `listing_ids` names listings that serve whatever their floor is now: the price was promised on them.
    What comes in the place of something else keeps off `without_nodes`, and stays in `islands`, `None`: all.
    """

    gpu_model_id: str
    region: str
    tier: Tier
    gpus: int
    spread: Spread
    window: Window
    floor_rate_max: Decimal
    listing_ids: frozenset[str] = frozenset()
    without_nodes: frozenset[str] = frozenset()
    islands: frozenset[pools.Island] | None = None

    def may_serve(self, node: pools.PoolNode) -> bool:
        """Say whether a node is none of those that are left out."""
        return node.id not in self.without_nodes and (
            self.islands is None or node.island in self.islands
        )


def serves(listing: Listing, *, demand: Demand, at: dt.datetime) -> bool:
    """Say whether a listing of the demand's model, region and tier sells it at the promised price."""
    if listing.floor_rate > demand.floor_rate_max and listing.id not in demand.listing_ids:
        return False
    return admits(listing, gpus=demand.gpus, window=demand.window, at=at)


def admits(listing: Listing, *, gpus: int, window: Window, at: dt.datetime) -> bool:
    """Say whether a listing sells this many GPUs for this window."""
    if pools.serves(listing, gpus=gpus, window_seconds=window.seconds) is not None:
        return False
    starts, ends = (np.array([to_seconds(i)]) for i in (window.starts_at, window.ends_at))
    return bool(is_open(listing, starts=starts, ends=ends, at=at)[0])


def offers(*, pool: Pool, demand: Demand, at: dt.datetime) -> Iterator[tuple[PoolGpu, Listing]]:
    """Yield each GPU that is on offer for a demand, with the cheapest listing that sells it."""
    admitted = {listing.id for listing in pool.listings if serves(listing, demand=demand, at=at)}
    for gpu in pool.gpus:
        if not demand.may_serve(gpu.node):
            continue
        for listing in gpu.listings:
            if listing.id in admitted:
                yield gpu, listing
                break


def totals(found: Sequence[Pool]) -> dict[str, int]:
    """Return how many GPUs of some pools each node has."""
    counts: dict[str, int] = defaultdict(int)
    for pool in found:
        for gpu in pool.gpus:
            counts[gpu.node.id] += 1
    return counts
