"""Price windows on boards and choose among them: what search, quotes and the curve have in common."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
from django.conf import settings

from marketplace.core.money import RATE_DECIMAL_PLACES, Money
from marketplace.core.windows import Window, to_instant
from marketplace.models import Listing
from scheduler import merit, pools, prices
from scheduler.board import Board, Counts, Flags, Levels
from scheduler.lots import GpusAtFloor, Lot, Lots
from scheduler.merit import UNPRICED, Rows, Step
from scheduler.pool_keys import PoolKey
from scheduler.pools import Pool
from scheduler.prices import PricedWindow, PriceTable
from scheduler.prices.packed import Micros
from scheduler.states import Spread


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
    lots: Lots
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

    `rates` are micros per GPU-hour as the tenant sees them, the mean over all GPUs; `UNPRICED` where the wish
    does not fit.
    """

    board: Board
    listings: tuple[Listing, ...]
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
    """Price every window of a board for a wish, each GPU at the lowest floor that has room for it."""
    listings = board.admitted(gpus=wish.gpus)
    if len({listing.floor_rate for listing in listings}) > 1:
        found = merit.rates(board, listings=listings, gpus=wish.gpus, spread=wish.spread)
    else:
        levels = board.levels(listings=listings, gpus=wish.gpus, spread=wish.spread)
        found = rates(board, levels=levels)
    return Sheet(board=board, listings=listings, rates=found)


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
    board, pool = choice.sheet.board, choice.sheet.board.pool
    found = list(
        merit.steps(board, listings=choice.sheet.listings, columns=np.array([choice.column]))
    )
    if len({step.level for step in found}) == 1:
        floors: Sequence[GpusAtFloor] = [GpusAtFloor(found[0].listing.floor_rate, wish.gpus)]
        ground = np.arange(len(pool.blocks))
    else:
        ground = merit.cheapest_ground(
            board, found=found, gpus=wish.gpus, spread=wish.spread, column=choice.column
        )
        used = _floors(found, ground=_chosen(pool, ground), wish=wish)
        floors = board.prices.pooled(used, window=choice.window)
    price = board.prices.price(window=choice.window, floors=floors, currency=settings.CURRENCY)
    rows = _rows(pool=pool, found=found, ground=_chosen(pool, ground), floors=floors, wish=wish)
    chosen = _chosen(pool, rows)
    serving = [
        step.listing
        for step in found
        if step.listing.floor_rate <= floors[-1].floor_rate and step.masks[chosen[step.rows]].any()
    ]
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
        lots=_named(price.lots, serving=serving),
        price=price,
    )


def _chosen(pool: Pool, rows: Rows) -> Flags:
    """Return a flag per node of a pool."""
    chosen: Flags = np.zeros(len(pool.blocks), dtype=bool)
    chosen[rows] = True
    return chosen


def _floors(found: Sequence[Step], *, ground: Flags, wish: Wish) -> list[GpusAtFloor]:
    """Return how many GPUs of a ground are used of each listing: the lowest floors first."""
    floors: Counter[Decimal] = Counter()
    missing = wish.gpus
    for step in found:
        free = int(np.bitwise_count(step.masks[ground[step.rows]]).sum(dtype=np.int64))
        used = min(free, missing)
        if used:
            floors[step.listing.floor_rate] += used
            missing -= used
    assert not missing, "the price of a window and its places disagree"
    return [GpusAtFloor(floor_rate, gpus) for floor_rate, gpus in floors.items()]


def _rows(
    *,
    pool: Pool,
    found: Sequence[Step],
    ground: Flags,
    floors: Sequence[GpusAtFloor],
    wish: Wish,
) -> Rows:
    """Return the nodes on which a request would lie: all that the cheaper lots need, and few for the dearest.

    A quote promises no node by name; where it will lie is decided when it is reserved.
    """
    cheaper = floors[-2].floor_rate if len(floors) > 1 else None
    needed: Counts = np.zeros(len(pool.blocks), dtype=np.int64)
    counts: Counts = np.zeros(len(pool.blocks), dtype=np.int64)
    for step in found:
        if step.listing.floor_rate <= floors[-1].floor_rate:
            is_cheaper = cheaper is not None and step.listing.floor_rate <= cheaper
            free = np.bitwise_count(step.masks[:, 0])
            (needed if is_cheaper else counts)[step.rows] += free
    if cheaper is None:
        return _nodes(pool=pool, counts=counts, wish=wish)
    used = ground & (needed > 0)
    missing = floors[-1].gpus - int(counts[used].sum())
    others = np.flatnonzero(ground & ~used)
    fullest = others[np.argsort(-counts[others], kind="stable")]
    few = int(np.searchsorted(np.cumsum(counts[fullest]), missing)) + 1 if missing > 0 else 0
    return np.union1d(np.flatnonzero(used), fullest[:few])


def _named(lots: Lots, *, serving: Sequence[Listing]) -> Lots:
    """Return lots with the listings that would serve each: those up to its floor that no cheaper lot has."""
    found: list[Lot] = []
    rest = sorted(serving, key=lambda listing: listing.floor_rate)
    for lot in lots.lots:
        its = [listing.pk for listing in rest if listing.floor_rate <= lot.floor_rate]
        rest = rest[len(its) :]
        found.append(replace(lot, listing_ids=tuple(sorted(its))))
    return Lots(tuple(found))


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


def _nodes(*, pool: Pool, counts: Counts, wish: Wish) -> Rows:
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
