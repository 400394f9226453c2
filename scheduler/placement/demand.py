"""What is to be placed, and which listings sell it."""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from marketplace.core.windows import Window, to_seconds
from marketplace.models import Listing
from marketplace.states import Tier
from scheduler import pools
from scheduler.board import is_open
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
    if listing.floor_rate > demand.floor_rate_max and listing.id not in demand.listing_ids:
        return False
    return admits(listing, gpus=demand.gpus, window=demand.window, at=at)


def admits(listing: Listing, *, gpus: int, window: Window, at: dt.datetime) -> bool:
    """Say whether a listing sells this many GPUs for this window."""
    if pools.serves(listing, gpus=gpus, window_seconds=window.seconds) is not None:
        return False
    starts, ends = (np.array([to_seconds(i)]) for i in (window.starts_at, window.ends_at))
    return bool(is_open(listing, starts=starts, ends=ends, at=at)[0])
