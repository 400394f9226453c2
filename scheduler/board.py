"""A pool over a span of time, as arrays: where a request fits at each of many starts, and at which floor.

Rows are nodes, columns are starts; in each cell 16 bits say which GPUs of the node are taken at any time of
the window that begins there. So a search over all starts is a few passes over one array. Instants are whole
seconds since the Unix epoch.
"""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from agents.supply import Masks
from marketplace.core.windows import Window, to_instant, to_seconds
from marketplace.models import Listing
from marketplace.states import ListingMode
from scheduler import occupancy, pools
from scheduler.pools import Pool
from scheduler.prices import PriceTable
from scheduler.states import Spread

Seconds: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Counts: TypeAlias = npt.NDArray[np.int64]
Levels: TypeAlias = npt.NDArray[np.int64]
Columns: TypeAlias = npt.NDArray[np.int64]

CELLS_MAX = 8_000_000  # nodes × starts looked at in one go: arrays of some 50 MB


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Board:
    """A pool, and which of its slots are taken in each window of one length.

    Window i is `[starts[i], starts[i] + seconds)`. `taken` has, by the turn-rounds in seconds that the pool's
    listings ask, a row per node and a column per window: what is taken in the window or in the turn-round
    after it, for whoever comes next must not find the machine unready.
    """

    pool: Pool
    prices: PriceTable
    starts: Seconds
    seconds: int
    taken: Mapping[int, Masks]
    at: dt.datetime

    @property
    def ends(self) -> Seconds:
        return self.starts + self.seconds

    def admitted(self, *, gpus: int) -> tuple[Listing, ...]:
        """Return the listings of the pool that sell this many GPUs for this long, the cheapest first."""
        return tuple(
            listing
            for listing in self.pool.listings
            if pools.serves(listing, gpus=gpus, window_seconds=self.seconds) is None
        )

    def opens(self, listing: Listing, *, column: int) -> bool:
        """Say whether a listing sells in a window."""
        some = slice(column, column + 1)
        return bool(is_open(listing, starts=self.starts[some], ends=self.ends[some], at=self.at)[0])

    def free(self, *, listings: Sequence[Listing], level: int, columns: Columns) -> Masks:
        """Return the GPUs that some listings offer and nobody has, at floors up to `pool.floors[level]`.

        Only the windows in `columns` are looked at.
        """
        free: Masks | None = None
        for seconds in {listing.turnaround_seconds for listing in listings}:
            alike = [each for each in listings if each.turnaround_seconds == seconds]
            untaken: Masks = ~self.taken[seconds][:, columns]
            always, at_times = self._offered(listings=alike, level=level, columns=columns)
            part: Masks = always[:, np.newaxis] & untaken
            for masks, open_ in at_times:
                rows = np.flatnonzero(masks)
                part[rows] |= _where(open_, masks[rows]) & untaken[rows]
            free = part if free is None else free | part
        assert free is not None, "free for which listings?"
        return free

    def floors_listed(self) -> Levels:
        """Return per window the lowest index in `pool.floors` that is offered, or their number."""
        level_of = {floor: level for level, floor in enumerate(self.pool.floors)}
        lowest: Levels = np.full(len(self.starts), len(self.pool.floors), dtype=np.int64)
        for listing in reversed(self.pool.listings):
            open_ = is_open(listing, starts=self.starts, ends=self.ends, at=self.at)
            lowest[open_] = level_of[listing.floor_rate]
        return lowest

    def offered(self, *, level: int) -> Masks:
        """Return the GPUs that any listing offers in the first window, at floors up to a level."""
        always, _ = self._offered(
            listings=self.pool.listings, level=level, columns=np.zeros(1, dtype=np.int64)
        )
        return always

    def listed(self, *, listings: Sequence[Listing]) -> Counts:
        """Return per window how many GPUs some listings offer, taken or not."""
        return np.concatenate(
            [self._listed(listings=listings, columns=columns) for columns in self._parts()]
        )

    def rooms(self, *, listings: Sequence[Listing], spread: Spread) -> Counts:
        """Return per window how many GPUs one request of this spread can have, whatever they cost."""
        top = len(self.pool.floors) - 1
        return np.concatenate(
            [
                self.room(listings=listings, level=top, spread=spread, columns=columns)
                for columns in self._parts()
            ]
        )

    def roomiest(self, *, spread: Spread) -> int:
        """Return the largest number of GPUs that fit in one of the windows, whatever they cost."""
        return int(self.rooms(listings=self.pool.listings, spread=spread).max())

    def _parts(self) -> Iterator[Columns]:
        """Yield the columns, some at a time."""
        size = max(1, CELLS_MAX // len(self.pool.blocks))
        for offset in range(0, len(self.starts), size):
            yield np.arange(offset, min(offset + size, len(self.starts)))

    def _listed(self, *, listings: Sequence[Listing], columns: Columns) -> Counts:
        top = len(self.pool.floors) - 1
        always, at_times = self._offered(listings=listings, level=top, columns=columns)
        counts: Counts = np.full(
            len(self.starts[columns]), np.bitwise_count(always).sum(dtype=np.int64)
        )
        if at_times:
            rows = np.flatnonzero(np.bitwise_or.reduce([masks for masks, _ in at_times]))
            some: Masks = np.repeat(always[rows, np.newaxis], len(counts), axis=1)
            for masks, open_ in at_times:
                some |= _where(open_, masks[rows])
            counts += np.bitwise_count(some).sum(axis=0, dtype=np.int64)
            counts -= np.bitwise_count(always[rows]).sum(dtype=np.int64)
        return counts

    def _offered(
        self, *, listings: Sequence[Listing], level: int, columns: Columns
    ) -> tuple[Masks, list[tuple[Masks, Flags]]]:
        """Return what is offered in all of the windows, and what in some, with the word in which."""
        starts, ends = self.starts[columns], self.ends[columns]
        wanted = {listing.id for listing in listings}
        always: Masks = np.zeros(len(self.pool.blocks), dtype=np.uint16)
        at_times: list[tuple[Masks, Flags]] = []
        for each in self.pool.sold:
            if each.listing.id in wanted and each.listing.floor_rate <= self.pool.floors[level]:
                open_ = is_open(each.listing, starts=starts, ends=ends, at=self.at)
                if open_.all():
                    always |= each.masks
                elif open_.any():
                    at_times.append((each.masks, open_))
        return always, at_times

    def levels(self, *, listings: Sequence[Listing], gpus: int, spread: Spread) -> Levels:
        """Return per window the lowest index in `pool.floors` with room for a request, or their number."""
        floors = len(self.pool.floors)
        lowest: Levels = np.full(len(self.starts), floors, dtype=np.int64)
        if not listings or self.pool.gpus_listed < gpus:
            return lowest
        for columns in self._parts():
            lowest[columns] = self._lowest(
                listings=listings, gpus=gpus, spread=spread, columns=columns
            )
        return lowest

    def room(
        self,
        *,
        listings: Sequence[Listing],
        level: int,
        spread: Spread,
        columns: Columns,
    ) -> Counts:
        """Return per window how many GPUs one request of this spread can have, at floors up to a level."""
        free = self.free(listings=listings, level=level, columns=columns)
        counts = np.bitwise_count(free)
        most: Counts
        match spread:
            case Spread.ANY:
                most = counts.sum(axis=0, dtype=np.int64)
            case Spread.SINGLE_NODE:
                most = counts.max(axis=0).astype(np.int64)
            case Spread.SAME_FABRIC:
                islands = np.add.reduceat(counts, self.pool.island_starts, axis=0, dtype=np.int32)
                most = islands.max(axis=0).astype(np.int64)
        return most

    def _lowest(
        self,
        *,
        listings: Sequence[Listing],
        gpus: int,
        spread: Spread,
        columns: Columns,
    ) -> Levels:
        """Bisect the floors, all windows at once: more listings never leave less room."""
        floors = len(self.pool.floors)
        top = self.room(listings=listings, level=floors - 1, spread=spread, columns=columns)
        upper: Levels = np.where(top >= gpus, floors - 1, floors)
        lower: Levels = np.where(top >= gpus, 0, floors)
        while (unsure := lower < upper).any():
            middle = (lower + upper) // 2
            for level in np.unique(middle[unsure]).tolist():
                some = np.flatnonzero(unsure & (middle == level))
                fits = (
                    self.room(listings=listings, level=level, spread=spread, columns=columns[some])
                    >= gpus
                )
                upper[some[fits]] = level
                lower[some[~fits]] = level + 1
        return upper


def over_grid(
    *,
    pool: Pool,
    prices: PriceTable,
    first: int,
    last: int,
    seconds: int,
    step: int,
    at: dt.datetime,
) -> Board:
    """Return the board of all windows of a length that start on the grid from `first` to `last`.

    `seconds` is a multiple of `step`, and the starts lie on the grid. Turn-rounds count in whole steps: as
    windows do, whoever comes next begins on one.
    """
    length, starts = seconds // step, np.arange(first, last + 1, step, dtype=np.int64)
    steps = {each: -(-each // step) for each in _turnarounds(pool)}
    span = Window(to_instant(first), to_instant(last + seconds + max(steps.values()) * step))
    busy = occupancy.on_grid(blocks=pool.blocks, span=span, step_seconds=step, at=at)
    return Board(
        pool=pool,
        prices=prices,
        starts=starts,
        seconds=seconds,
        taken={
            turnaround: sliding_or(busy[:, : len(starts) - 1 + length + more], length=length + more)
            for turnaround, more in steps.items()
        },
        at=at,
    )


def of_window(*, pool: Pool, prices: PriceTable, window: Window, at: dt.datetime) -> Board:
    """Return the board of one window, on the grid or not."""
    return Board(
        pool=pool,
        prices=prices,
        starts=np.array([to_seconds(window.starts_at)], dtype=np.int64),
        seconds=window.seconds,
        taken={
            turnaround: occupancy.during(
                blocks=pool.blocks, window=window.followed_by(seconds=turnaround), at=at
            )[:, np.newaxis]
            for turnaround in _turnarounds(pool)
        },
        at=at,
    )


def _turnarounds(pool: Pool) -> set[int]:
    """Return the turn-rounds that the listings of a pool ask, in seconds."""
    return {listing.turnaround_seconds for listing in pool.listings}


def _where(open_: Flags, masks: Masks) -> Masks:
    """Return a row per mask and a column per flag: the mask where the flag is set."""
    return np.multiply.outer(masks, open_.astype(np.uint16))


def sliding_or(masks: Masks, *, length: int) -> Masks:
    """Return per row and column the union of `length` neighbours; each pass doubles how many are joined."""
    assert 1 <= length <= masks.shape[1], (length, masks.shape)
    joined, width = masks, 1
    while 2 * width <= length:
        joined = joined[:, :-width] | joined[:, width:]
        width *= 2
    if width < length:
        rest = length - width
        joined = joined[:, :-rest] | joined[:, rest:]
    return joined


def is_open(listing: Listing, *, starts: Seconds, ends: Seconds, at: dt.datetime) -> Flags:
    """Say per window whether it lies in a listing's period, outside its blackouts and near enough.

    The turn-round after it may lie outside of the period and in a blackout: the machine is back with its
    owner then, whose cleaning disturbs nobody.
    """
    open_: Flags = starts >= to_seconds(listing.starts_at)
    if listing.ends_at is not None:
        open_ &= ends <= to_seconds(listing.ends_at)
    for starts_at, ends_at in pools.blackouts(listing):
        open_ &= (ends <= to_seconds(starts_at)) | (starts >= to_seconds(ends_at))
    if listing.mode == ListingMode.WHEN_IDLE:
        open_ &= starts <= to_seconds(at) + listing.rolling_seconds
    return open_
