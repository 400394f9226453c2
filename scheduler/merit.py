"""The cheapest way to have some GPUs in each window of a board: owners serve in the order of their floors.

A request lies on one node, on one island or anywhere, as its spread says: on one *ground*. On each ground the
GPUs of the lowest floors are used first, and the cheapest ground wins. So of any number of GPUs on a ground
each costs what it would cost if it was asked for after the cheaper ones, alone: splitting a request that may
lie anywhere makes it no cheaper. GPUs of one node or of one fabric are another product: two halves may lie on
two cheap nodes where the whole must take a dear one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.supply import Masks
from marketplace.models import Listing
from scheduler.board import Board, Columns, Counts, is_open
from scheduler.prices.packed import Micros
from scheduler.states import Spread

UNPRICED = np.iinfo(np.int64).max  # where nothing fits
CELLS_MAX = 2_000_000  # grounds × windows looked at in one go: arrays of some 50 MB
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """The GPUs for which one listing is the cheapest: bits by row and window; `level` is of its floor."""

    listing: Listing
    level: int
    rows: Rows
    masks: Masks


def steps(board: Board, *, listings: Sequence[Listing], columns: Columns) -> Iterator[Step]:
    """Yield what each of some listings can sell in some windows, the lowest floor first; no GPU twice."""
    level_of = {floor: level for level, floor in enumerate(board.pool.floors)}
    wanted = {listing.id for listing in listings}
    left = {turnaround: ~taken[:, columns] for turnaround, taken in board.taken.items()}
    starts, ends = board.starts[columns], board.ends[columns]
    for each in board.pool.sold:
        if each.listing.id not in wanted:
            continue
        open_ = is_open(each.listing, starts=starts, ends=ends, at=board.at)
        if not open_.any():
            continue
        rows = np.flatnonzero(each.masks)
        offered = np.multiply.outer(each.masks[rows], open_.astype(np.uint16))
        masks: Masks = left[each.listing.turnaround_seconds][rows] & offered
        for others in left.values():
            others[rows] &= ~masks
        yield Step(
            listing=each.listing,
            level=level_of[each.listing.floor_rate],
            rows=rows,
            masks=masks,
        )


def rates(board: Board, *, listings: Sequence[Listing], gpus: int, spread: Spread) -> Micros:
    """Return per window the mean rate of the cheapest way, micros per GPU-hour rounded up, or `UNPRICED`."""
    found: Micros = np.full(len(board.starts), UNPRICED, dtype=np.int64)
    if not listings or board.pool.gpus_listed < gpus:
        return found
    size = max(1, CELLS_MAX // len(board.pool.blocks))
    for offset in range(0, len(board.starts), size):
        columns = np.arange(offset, min(offset + size, len(board.starts)))
        costs = _costs(board, listings=listings, gpus=gpus, spread=spread, columns=columns)
        lowest = costs.min(axis=0)
        fits = lowest < UNPRICED
        found[columns[fits]] = -(-lowest[fits] // gpus)
    return found


def cheapest_ground(
    board: Board, *, found: Sequence[Step], gpus: int, spread: Spread, column: int
) -> Rows:
    """Return the rows among which a request costs least in one window, of equals those with the least room.

    `found` are the steps of that window alone, in which the request fits.
    """
    columns = np.array([column])
    costs = _sums(board, found=found, gpus=gpus, spread=spread, columns=columns)[:, 0]
    grounds = _grounds(board, spread=spread)
    rooms = np.zeros(len(costs), dtype=np.int64)
    for step in found:
        np.add.at(rooms, grounds[step.rows], np.bitwise_count(step.masks[:, 0]))
    best = np.flatnonzero(costs == costs.min())
    rows: Rows = np.flatnonzero(grounds == best[np.argmin(rooms[best])])
    return rows


def _costs(
    board: Board, *, listings: Sequence[Listing], gpus: int, spread: Spread, columns: Columns
) -> Micros:
    found = steps(board, listings=listings, columns=columns)
    return _sums(board, found=found, gpus=gpus, spread=spread, columns=columns)


def _sums(
    board: Board,
    *,
    found: Iterator[Step] | Sequence[Step],
    gpus: int,
    spread: Spread,
    columns: Columns,
) -> Micros:
    """Return per ground and window the sum of the mean rates of the cheapest GPUs, rounded up.

    Means are used as whole micros and a rest in seconds, so that nothing is rounded before the end.
    """
    seconds = board.seconds
    whole, rest = board.prices.window_means(
        starts=board.starts[columns], seconds=seconds, floor_rates=board.pool.floors
    )
    grounds = _grounds(board, spread=spread)
    shape = (int(grounds.max()) + 1, len(columns))
    have: Counts = np.zeros(shape, dtype=np.int64)
    micros: Micros = np.zeros(shape, dtype=np.int64)
    rests: Micros = np.zeros(shape, dtype=np.int64)
    for step in found:
        counts = np.bitwise_count(step.masks)
        firsts = np.flatnonzero(np.diff(grounds[step.rows], prepend=-1))
        on = grounds[step.rows][firsts]
        free = np.add.reduceat(counts, firsts, axis=0, dtype=np.int64)
        used = np.minimum(free, gpus - have[on])
        have[on] += used
        micros[on] += used * whole[step.level]
        rests[on] += used * rest[step.level]
    return np.where(have == gpus, micros - (-rests // seconds), UNPRICED)


def _grounds(board: Board, *, spread: Spread) -> Rows:
    """Return the number of each node's ground."""
    match spread:
        case Spread.ANY:
            return np.zeros(len(board.pool.blocks), dtype=np.int64)
        case Spread.SAME_FABRIC:
            return board.pool.island_of
        case Spread.SINGLE_NODE:
            return np.arange(len(board.pool.blocks), dtype=np.int64)
