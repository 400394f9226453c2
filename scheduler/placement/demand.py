"""What is to be placed, and which listings sell it."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from marketplace.core.windows import Window, to_seconds
from marketplace.models import Listing
from marketplace.states import Tier
from scheduler import pools
from scheduler.board import is_open
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

    @property
    def takes_any_node(self) -> bool:
        """Say that no node is left out."""
        return not self.without_nodes and self.islands is None

    def may_serve(self, node_id: str, island: pools.Island) -> bool:
        """Say whether a node is none of those that are left out."""
        return node_id not in self.without_nodes and (
            self.islands is None or island in self.islands
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
