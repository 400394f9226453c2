"""Price windows on boards: the part that search, quotes and the curve have in common."""

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from django.conf import settings

from marketplace.core.money import Money
from marketplace.core.windows import Window, to_instant, to_seconds
from scheduler import calendar, placement, pools, prices
from scheduler.board import Board, Counts, Flags, Levels, Seconds
from scheduler.placement import Demand
from scheduler.pools import Pool
from scheduler.prices import PoolKey, PricedWindow
from scheduler.prices.packed import Micros
from scheduler.states import Spread

STARTS_DENSE_MAX = 5_000  # up to this many starts each one is priced: 180 days of hours are 4,320
CELLS_PER_STEP_MAX = 4_000_000  # starts × GPUs looked at in one go: some 40 MB of arrays


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A window that fits, not yet placed."""

    board: Board
    window: Window
    floor_rate: Decimal
    rate: Decimal

    @property
    def merit(self) -> tuple[Decimal, dt.datetime, str]:
        """Sort by this: the cheapest first, then the earliest."""
        return (self.rate, self.window.starts_at, self.board.pool.region)


def boards(found: Iterable[Pool], *, span: Window, at: dt.datetime) -> list[Board]:
    """Read the prices of some pools, and their calendar over a span of time; one query per pool."""
    pools_found = list(found)
    tables = prices.tables(keys=[key_of(pool) for pool in pools_found], at=at)
    return [
        Board(
            pool=pool,
            prices=tables[key_of(pool)],
            busy=[
                row
                for row in calendar.busy(
                    slot_bases={gpu.node.slot_base for gpu in pool.gpus}, window=span, at=at
                )
                if row.lapsed_quote_id is None
            ],
            span=span,
        )
        for pool in pools_found
    ]


def key_of(pool: Pool) -> PoolKey:
    """Return what a pool's prices are kept under."""
    return PoolKey(gpu_model_id=pool.gpu_model_id, region=pool.region, tier=pool.tier)


def starts_between(board: Board, *, wish: Wish, first: dt.datetime, last: dt.datetime) -> Seconds:
    """Return the starts that decide, rising: all grid points, or those beside an instant of change.

    Between two such instants what fits does not change and the price is linear in the start, so that the
    earliest and the cheapest start of each stretch lie at its ends.
    """
    grid = settings.GRID_SECONDS
    lower, upper = to_seconds(first), to_seconds(last)
    if (upper - lower) // grid < STARTS_DENSE_MAX:
        return np.arange(lower, upper + 1, grid, dtype=np.int64)
    changes = [board.points, board.prices.changes_seconds]
    for listing in board.pool.listings:
        ends = [listing.starts_at, listing.ends_at]
        ends += [instant for blackout in pools.blackouts(listing) for instant in blackout]
        ends.append(wish.at + dt.timedelta(seconds=listing.rolling_seconds))
        changes.append(np.array([to_seconds(i) for i in ends if i is not None], dtype=np.int64))
    points = np.concatenate(changes)
    below = (np.concatenate([points, points - wish.seconds])) // grid * grid
    near = np.concatenate([below - grid, below, below + grid, np.array([lower, upper])])
    return np.unique(near[(near >= lower) & (near <= upper)])


def evaluate(board: Board, *, wish: Wish, starts: Seconds) -> Iterator[Priced]:
    """Yield each of the starts at which the wish fits, at the lowest floor that has room for it."""
    pool = board.pool
    serving = [
        listing
        for listing in pool.listings
        if pools.serves(listing, gpus=wish.gpus, window_seconds=wish.seconds) is None
    ]
    if not serving or board.gpus_listed < wish.gpus:
        return
    step = max(1, CELLS_PER_STEP_MAX // board.gpus_listed)
    for offset in range(0, len(starts), step):
        some = starts[offset : offset + step]
        ends = some + wish.seconds
        free = board.free(starts=some, ends=ends)
        levels = board.levels(starts=some, ends=ends, listings=serving, at=wish.at)
        lowest = np.full(len(some), len(pool.floors), dtype=np.int16)
        for level in reversed(range(len(pool.floors))):
            lowest[
                room(board, chosen=free & (levels <= level), spread=wish.spread) >= wish.gpus
            ] = level
        rates = board.prices.window_rates(
            starts=some, seconds=wish.seconds, floor_rates=pool.floors
        )
        for place, (start, level) in enumerate(zip(some.tolist(), lowest.tolist(), strict=True)):
            if level < len(pool.floors):
                yield Priced(
                    board=board,
                    window=Window(to_instant(start), to_instant(start + wish.seconds)),
                    floor_rate=pool.floors[level],
                    rate=prices.as_rate(int(rates[level, place])),
                )


def room(board: Board, *, chosen: Flags, spread: Spread) -> Counts:
    """Return per row how many of the chosen GPUs one request of this spread can have."""
    if spread is Spread.ANY:
        every: Counts = chosen.sum(axis=1, dtype=np.int64)
        return every
    groups = board.by_node if spread is Spread.SINGLE_NODE else board.by_island
    most: Counts = groups.counts(chosen).max(axis=1)
    return most


def roomiest(board: Board, *, wish: Wish, starts: Seconds) -> int:
    """Return the largest number of GPUs that fit at one of the starts, whatever they cost."""
    most = 0
    ends = starts + wish.seconds
    step = max(1, CELLS_PER_STEP_MAX // board.gpus_listed)
    for offset in range(0, len(starts), step):
        some, until = starts[offset : offset + step], ends[offset : offset + step]
        levels = board.levels(starts=some, ends=until, listings=board.pool.listings, at=wish.at)
        chosen = board.free(starts=some, ends=until) & (levels < len(board.pool.floors))
        most = max(most, int(room(board, chosen=chosen, spread=wish.spread).max(initial=0)))
    return most


def offer(priced: Priced, *, wish: Wish) -> Offer:
    """Place a priced window, to tell how many nodes it takes and where they stand."""
    board = priced.board
    pool = board.pool
    starts = np.array([to_seconds(priced.window.starts_at)], dtype=np.int64)
    empty = board.free(starts=starts, ends=starts + wish.seconds)[0]
    free_slots = {gpu.slot for gpu, is_free in zip(pool.gpus, empty, strict=True) if is_free}
    demand = Demand(
        gpu_model_id=pool.gpu_model_id,
        region=pool.region,
        tier=pool.tier,
        gpus=wish.gpus,
        spread=wish.spread,
        window=priced.window,
        floor_rate_max=priced.floor_rate,
    )
    free = {
        gpu.slot: (gpu, listing)
        for gpu, listing in placement.offers(pool=pool, demand=demand, at=wish.at)
        if gpu.slot in free_slots
    }
    shares = placement.choose(
        nodes=placement.free_nodes(free=free, totals=placement.totals([pool])),
        gpus=wish.gpus,
        spread=wish.spread,
    )
    assert shares is not None, "the count of free GPUs and their placement disagree"
    price = board.prices.price(
        window=priced.window,
        floor_rate=priced.floor_rate,
        gpus=wish.gpus,
        currency=settings.CURRENCY,
    )
    fabrics = {share.node.fabric for share in shares}
    serving = {free[slot][1] for share in shares for slot in share.slots[: share.count]}
    return Offer(
        gpu_model=pool.gpu_model_id,
        gpus=wish.gpus,
        nodes=len(shares),
        region=pool.region,
        fabric=(fabrics.pop() or None) if len(fabrics) == 1 else None,
        tier=pool.tier,
        reclaim_notice_seconds=min(listing.reclaim_notice_seconds for listing in serving),
        window=priced.window,
        rate=price.rate,
        total=price.total,
        price_breakdown=price.breakdown,
        simulated=any(share.node.simulated for share in shares),
        floor_rate=priced.floor_rate,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One pool in one grid step: the level of each GPU's floor, which are free, and what each level costs."""

    window: Window
    board: Board
    levels: Levels
    free: Flags
    rate_micros: Micros

    @property
    def is_listed(self) -> Flags:
        listed: Flags = self.levels < len(self.board.pool.floors)
        return listed

    def rate(self, level: int) -> Decimal:
        """Return what one GPU-hour costs at a floor in this step."""
        return prices.as_rate(int(self.rate_micros[level]))

    def multiplier(self, level: int) -> Decimal:
        """Return that rate ÷ the base."""
        return self.board.prices.multiplier(
            rate_micros=int(self.rate_micros[level]), floor_rate=self.board.pool.floors[level]
        )


def steps(board: Board, *, starts: Seconds, at: dt.datetime) -> Iterator[Step]:
    """Yield the grid steps that begin at `starts`; lengths and sizes that listings ask for do not count."""
    grid = settings.GRID_SECONDS
    size = max(1, CELLS_PER_STEP_MAX // board.gpus_listed)
    for offset in range(0, len(starts), size):
        some = starts[offset : offset + size]
        ends = some + grid
        free = board.free(starts=some, ends=ends)
        levels = board.levels(starts=some, ends=ends, listings=board.pool.listings, at=at)
        rates = board.prices.window_rates(starts=some, seconds=grid, floor_rates=board.pool.floors)
        for row, start in enumerate(some.tolist()):
            yield Step(
                window=Window(to_instant(start), to_instant(start + grid)),
                board=board,
                levels=levels[row],
                free=free[row],
                rate_micros=rates[:, row],
            )
