"""A pool's calendar as arrays: which GPU is free over a window, at which floor, and how much is booked.

Derived in memory from the allocation rows of one read, for one answer. Time is cut at the instants at
which any booking begins or ends; a window is a range of these pieces, and prefix sums over the pieces
answer for every start at once. Instants are whole seconds since the Unix epoch.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from marketplace.core.windows import Window, to_seconds
from marketplace.models import Listing
from marketplace.states import ListingMode
from scheduler import pools
from scheduler.calendar import Busy
from scheduler.pools import Pool
from scheduler.prices import PriceTable

Seconds: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Counts: TypeAlias = npt.NDArray[np.int64]
Levels: TypeAlias = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Groups:
    """Consecutive GPUs of a pool that belong together: `starts` are the indices where a group begins."""

    starts: npt.NDArray[np.int64]

    def counts(self, chosen: Flags) -> Counts:
        """Return how many GPUs are chosen per row and group."""
        counts: Counts = np.add.reduceat(chosen.astype(np.int64), self.starts, axis=1)
        return counts


class Board:
    """One pool over one span of time, half-open."""

    def __init__(
        self, *, pool: Pool, busy: Sequence[Busy], span: Window, prices: PriceTable
    ) -> None:
        self.pool = pool
        self.prices = prices
        self.gpus_listed = len(pool.gpus)
        self.by_node = _groups([gpu.node.id for gpu in pool.gpus])
        self.by_island = _groups([gpu.node.island for gpu in pool.gpus])
        index = {gpu.slot: i for i, gpu in enumerate(pool.gpus)}
        cuts = {to_seconds(span.starts_at), to_seconds(span.ends_at)}
        for row in busy:
            cuts |= {to_seconds(row.window.starts_at), to_seconds(row.window.ends_at)}
        self.points: Seconds = np.array(sorted(cuts), dtype=np.int64)
        occupied = np.zeros((len(pool.gpus), len(self.points) - 1), dtype=bool)
        for row in busy:
            first, last = (
                int(np.searchsorted(self.points, to_seconds(instant)))
                for instant in (row.window.starts_at, row.window.ends_at)
            )
            for slot in range(row.slot_lower, row.slot_upper):
                if (place := index.get(slot)) is not None:
                    occupied[place, first:last] = True
        self._taken = np.zeros((len(self.points), len(pool.gpus)), dtype=np.int32)
        np.cumsum(occupied.T, axis=0, out=self._taken[1:])
        self._booked_now: Seconds = occupied.sum(axis=0, dtype=np.int64)
        self._booked_before: Seconds = np.concatenate(
            ([0], np.cumsum(self._booked_now * np.diff(self.points)))
        ).astype(np.int64)
        self._classes: dict[tuple[str, ...], int] = {}
        self._class_of = np.array(
            [
                self._classes.setdefault(
                    tuple(listing.id for listing in gpu.listings), len(self._classes)
                )
                for gpu in pool.gpus
            ],
            dtype=np.int64,
        )

    def free(self, *, starts: Seconds, ends: Seconds) -> Flags:
        """Say per window (row) and GPU (column) whether nothing is booked there."""
        first = np.searchsorted(self.points, starts, side="right") - 1
        last = np.searchsorted(self.points, ends, side="left")
        free: Flags = self._taken[last] == self._taken[first]
        return free

    def booked_gpu_seconds(self, *, starts: Seconds, ends: Seconds) -> Seconds:
        """Return per window how many GPU-seconds of the pool are booked in it."""
        return self._booked_until(ends) - self._booked_until(starts)

    def levels(
        self, *, starts: Seconds, ends: Seconds, listings: Sequence[Listing], at: dt.datetime
    ) -> Levels:
        """Return per window and GPU the index in `pool.floors` at which it is offered, or `len(pool.floors)`.

        A GPU that several of `listings` offer for a window counts once, at the cheapest of them.
        """
        floors = {floor: level for level, floor in enumerate(self.pool.floors)}
        by_class = np.full((len(starts), len(self._classes)), len(floors), dtype=np.int16)
        for listing in sorted(listings, key=lambda each: each.floor_rate, reverse=True):
            open_ = is_open(listing, starts=starts, ends=ends, at=at)
            for ids, number in self._classes.items():
                if listing.id in ids:
                    by_class[open_, number] = floors[listing.floor_rate]
        levels: Levels = by_class[:, self._class_of]
        return levels

    def _booked_until(self, instants: Seconds) -> Seconds:
        piece = np.clip(
            np.searchsorted(self.points, instants, side="right") - 1, 0, len(self._booked_now) - 1
        )
        booked: Seconds = self._booked_before[piece] + self._booked_now[piece] * (
            instants - self.points[piece]
        )
        return booked


def is_open(listing: Listing, *, starts: Seconds, ends: Seconds, at: dt.datetime) -> Flags:
    """Say per window whether it lies in a listing's period, outside its blackouts and near enough."""
    open_: Flags = starts >= to_seconds(listing.starts_at)
    if listing.ends_at is not None:
        open_ &= ends <= to_seconds(listing.ends_at)
    for starts_at, ends_at in pools.blackouts(listing):
        open_ &= (ends <= to_seconds(starts_at)) | (starts >= to_seconds(ends_at))
    if listing.mode == ListingMode.WHEN_IDLE:
        open_ &= starts <= to_seconds(at) + listing.rolling_seconds
    return open_


def _groups(keys: Sequence[object]) -> Groups:
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    return Groups(np.array(starts, dtype=np.int64))
