"""Price windows on boards and choose among them: what search, quotes and the curve have in common."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt
from django.conf import settings

from marketplace.core.money import RATE_DECIMAL_PLACES, Money
from marketplace.core.windows import Window, to_instant
from marketplace.models import Listing
from scheduler import pools, prices
from scheduler.board import Board, Levels
from scheduler.pools import Pool
from scheduler.prices import PoolKey, PricedWindow, PriceTable
from scheduler.prices.packed import Micros
from scheduler.states import Spread

UNPRICED = np.iinfo(np.int64).max  # where nothing fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A priced window that can be reserved now. `fabric` is `None` where there is more than one, or none."""

    gpu_model: str
    gpus: int
    nodes: int
    region: str
    fabric: str | None
    tier: str
    reclaim_notice_seconds: int
    window: Window
    rate: Decimal
    total: Money
    price_breakdown: dict[str, object]
    simulated: bool
    floor_rate: Decimal
    listing_ids: tuple[str, ...]
    price: PricedWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How many GPUs, for how long, how close together."""

    gpus: int
    seconds: int
    spread: Spread
    at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sheet:
    """A board with a price for each window in which a wish fits.

    `levels` are the lowest floors with room, as indices in `pool.floors`; `rates` are micros per GPU-hour as
    the tenant sees them, `UNPRICED` where the wish does not fit.
    """

    board: Board
    listings: tuple[Listing, ...]
    levels: Levels
    rates: Micros


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """One window of a sheet."""

    sheet: Sheet
    column: int

    @property
    def rate(self) -> Decimal:
        return prices.as_rate(int(self.sheet.rates[self.column]))

    @property
    def window(self) -> Window:
        start = int(self.sheet.board.starts[self.column])
        return Window(to_instant(start), to_instant(start + self.sheet.board.seconds))


def sheet(board: Board, *, wish: Wish) -> Sheet:
    """Price every window of a board for a wish, each at the lowest floor that has room for it."""
    listings = board.admitted(gpus=wish.gpus)
    levels = board.levels(listings=listings, gpus=wish.gpus, spread=wish.spread)
    return Sheet(board=board, listings=listings, levels=levels, rates=rates(board, levels=levels))


def tables(found: Iterable[Pool], *, at: dt.datetime) -> dict[Pool, PriceTable]:
    """Return the prices of some pools that are in force; one query."""
    keys = {
        pool: PoolKey(gpu_model_id=pool.gpu_model_id, region=pool.region, tier=pool.tier)
        for pool in found
    }
    known = prices.tables(keys=keys.values(), at=at)
    return {pool: known[key] for pool, key in keys.items()}


def rates(board: Board, *, levels: Levels) -> Micros:
    """Return per window the mean rate at its floor, micros per GPU-hour, or `UNPRICED` without one."""
    micros: Micros = np.full(len(levels), UNPRICED, dtype=np.int64)
    fits = np.flatnonzero(levels < len(board.pool.floors))
    if len(fits):
        found = board.prices.window_rates(
            starts=board.starts[fits], seconds=board.seconds, floor_rates=board.pool.floors
        )
        micros[fits] = found[levels[fits], np.arange(len(fits))]
    return micros


def cheapest(
    sheets: Sequence[Sheet], *, limit: int, rate_max: Decimal | None = None
) -> list[Choice]:
    """Return the best windows of some sheets: the cheapest first, then the earliest, then by region."""
    return _first(sheets, limit=limit, rate_max=rate_max, by_time=False)


def earliest(sheets: Sequence[Sheet], *, rate_max: Decimal | None) -> Choice | None:
    """Return the window that starts first, the cheapest of those that do."""
    found = _first(sheets, limit=1, rate_max=rate_max, by_time=True)
    return found[0] if found else None


def offer(choice: Choice, *, wish: Wish) -> Offer:
    """Describe a window: what it costs, on how many nodes it lies, and which listings would serve."""
    board, column = choice.sheet.board, choice.column
    pool, level = board.pool, int(choice.sheet.levels[column])
    columns = np.array([column])
    free = board.free(listings=choice.sheet.listings, level=level, columns=columns)[:, 0]
    rows = _nodes(pool=pool, counts=np.bitwise_count(free).astype(np.int64), wish=wish)
    serving = []
    unserved = free[rows]
    for each in pool.sold:
        if each.listing in choice.sheet.listings and each.listing.floor_rate <= pool.floors[level]:
            taken = board.taken_for(each.listing, column=column)[rows]
            its = each.masks[rows] & unserved & ~taken
            if its.any() and board.opens(each.listing, column=column):
                serving.append(each.listing)
                unserved &= ~its
    price = board.prices.price(
        window=choice.window,
        floor_rate=pool.floors[level],
        gpus=wish.gpus,
        currency=settings.CURRENCY,
    )
    fabrics = {pool.fabrics[island] for island in pool.island_of[rows].tolist()}
    return Offer(
        gpu_model=pool.gpu_model_id,
        gpus=wish.gpus,
        nodes=len(rows),
        region=pool.region,
        fabric=(fabrics.pop() or None) if len(fabrics) == 1 else None,
        tier=pool.tier,
        reclaim_notice_seconds=min(listing.reclaim_notice_seconds for listing in serving),
        window=choice.window,
        rate=price.rate,
        total=price.total,
        price_breakdown=price.breakdown,
        simulated=bool(pool.simulated[rows].any()),
        floor_rate=pool.floors[level],
        listing_ids=tuple(sorted(listing.pk for listing in serving)),
        price=price,
    )


def refusal(found: Sequence[Pool], *, wish: Wish) -> str | None:
    """Return why no listing of the pools serves a wish, or `None` when one of them does."""
    reasons = [
        pools.serves(listing, gpus=wish.gpus, window_seconds=wish.seconds)
        for pool in found
        for listing in pool.listings
    ]
    return reasons[0] if reasons and all(reasons) else None


def _first(
    sheets: Sequence[Sheet], *, limit: int, rate_max: Decimal | None, by_time: bool
) -> list[Choice]:
    """Return the first windows in the order of rate and start, or of start and rate."""
    dearest = UNPRICED - 1
    if rate_max is not None:
        dearest = min(dearest, int(rate_max.scaleb(RATE_DECIMAL_PLACES)))
    found = [
        (number, column)
        for number, each in enumerate(sheets)
        if len(column := np.flatnonzero(each.rates <= dearest))
    ]
    if not found:
        return []
    numbers = np.concatenate([np.full(len(column), number) for number, column in found])
    columns = np.concatenate([column for _, column in found])
    micros = np.concatenate([sheets[number].rates[column] for number, column in found])
    starts = np.concatenate([sheets[number].board.starts[column] for number, column in found])
    regions = np.array([each.board.pool.region for each in sheets])[numbers]
    keys = (regions, micros, starts) if by_time else (regions, starts, micros)
    order = np.lexsort(keys)[:limit]
    return [
        Choice(sheet=sheets[number], column=column)
        for number, column in zip(numbers[order].tolist(), columns[order].tolist(), strict=True)
    ]


def _nodes(*, pool: Pool, counts: npt.NDArray[np.int64], wish: Wish) -> npt.NDArray[np.int64]:
    """Return the nodes on which a request would lie: one that fits tightest, else the tightest island.

    A quote promises no node by name; where it will lie is decided when it is reserved.
    """
    fitting = np.flatnonzero(counts >= wish.gpus)
    if len(fitting):
        return fitting[[np.argmin(counts[fitting])]]
    rooms = np.add.reduceat(counts, pool.island_starts)
    islands = np.flatnonzero(rooms >= wish.gpus)
    if len(islands):
        members = np.flatnonzero(pool.island_of == islands[np.argmin(rooms[islands])])
    else:
        assert wish.spread is Spread.ANY, "the count of free GPUs and their places disagree"
        members = np.arange(len(counts))
    fullest = members[np.argsort(-counts[members], kind="stable")]
    needed = int(np.searchsorted(np.cumsum(counts[fullest]), wish.gpus)) + 1
    return fullest[:needed]
