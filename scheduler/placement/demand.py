"""What is to be placed, and which listings sell it."""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from marketplace.core.windows import Window, to_seconds
from marketplace.models import Listing
from marketplace.states import Tier
from scheduler import pools
from scheduler.board import is_open
from scheduler.pools import Pool, PoolGpu
from scheduler.states import Spread
from scheduler.tariffs import as_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The GPUs of one lot: of listings with at most this floor.

    `listing_ids` names listings that serve whatever their floor is now: the price was promised on them.
    """

    gpus: int
    floor_rate_max: Decimal
    listing_ids: frozenset[str] = frozenset()
    lot: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is to be placed: GPUs of one region and tier, lot by lot, the lowest floor first.

    What comes in the place of something else keeps off `without_nodes`, and stays in `islands`, `None`: all.
    """

    gpu_model_id: str
    region: str
    tier: Tier
    spread: Spread
    window: Window
    asks: tuple[Ask, ...]
    without_nodes: frozenset[str] = frozenset()
    islands: frozenset[pools.Island] | None = None

    def __post_init__(self) -> None:
        floors = [ask.floor_rate_max for ask in self.asks]
        assert floors, "something is asked for"
        assert floors == sorted(floors), floors

    @property
    def gpus(self) -> int:
        return sum(ask.gpus for ask in self.asks)

    def floor_of(self, listing: Listing) -> Decimal:
        """Return the floor with which a listing counts: no more than that of a lot that names it."""
        named = (ask.floor_rate_max for ask in self.asks if listing.id in ask.listing_ids)
        return min(listing.floor_rate, min(named, default=listing.floor_rate))

    def may_serve(self, node: pools.PoolNode) -> bool:
        """Say whether a node is none of those that are left out."""
        return node.id not in self.without_nodes and (
            self.islands is None or node.island in self.islands
        )


def serves(listing: Listing, *, demand: Demand, at: dt.datetime) -> bool:
    """Say whether a listing of the demand's model, region and tier sells it at the promised price."""
    if demand.floor_of(listing) > demand.asks[-1].floor_rate_max:
        return False
    return admits(listing, gpus=demand.gpus, window=demand.window, at=at)


def serves_every_lot(listing: Listing, *, demand: Demand, at: dt.datetime) -> bool:
    """Say whether a listing sells any GPU of a demand, also those with the lowest floor."""
    return demand.floor_of(listing) <= demand.asks[0].floor_rate_max and serves(
        listing, demand=demand, at=at
    )


def asks_of(
    lots: Sequence[Mapping[str, Any]], *, gpus: Mapping[int, int] | None = None
) -> tuple[Ask, ...]:
    """Return what stored lots ask for; `gpus` says how many of which lots, `None`: all of them.

    The floors of a lot may differ from hour to hour: only a listing that all hours pay may serve.
    """
    wanted = {number: row["gpus"] for number, row in enumerate(lots)} if gpus is None else gpus
    asks = [
        Ask(
            lot=number,
            gpus=count,
            floor_rate_max=as_rate(min(micros for _, _, micros in lots[number]["floors"])),
            listing_ids=frozenset(lots[number]["listing_ids"]),
        )
        for number, count in wanted.items()
    ]
    return tuple(sorted(asks, key=lambda ask: (ask.floor_rate_max, ask.lot)))


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
