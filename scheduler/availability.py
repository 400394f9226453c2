"""What can be had, when and for how much: offerings, the price curve, the state of the market.

Only reads. Nothing of it is stored, and nothing is promised: a quote is.
"""

import datetime as dt
from collections import defaultdict
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
from django.conf import settings

from marketplace import catalog
from marketplace.core.errors import InvalidValue
from marketplace.core.limits import GPUS_PER_REQUEST_MAX
from marketplace.core.text import check_text
from marketplace.core.windows import (
    Window,
    grid_ceiling,
    grid_floor,
    is_on_grid,
    to_instant,
    to_seconds,
)
from marketplace.models import GpuModel
from marketplace.states import Tier
from scheduler import offerings, pools
from scheduler.board import Board
from scheduler.calendar import WindowOffGrid, WindowUpsideDown, horizon_at
from scheduler.offerings import Offer, Priced, Step, Wish
from scheduler.states import Spread

OFFERS_MAX = 20  # more choices than that are read by nobody
REGION_LENGTH_MAX = 60  # as the column
LEAD_SECONDS = 5  # an offer that starts sooner would begin before it can be quoted and reserved
CURVE_POINTS_MAX = 4_320  # 180 days of hours, or three days of the demo's minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferingQuery:
    """What a tenant looks for. Rates are per GPU-hour, fee included."""

    gpu_model: str
    gpus: int
    duration: dt.timedelta
    earliest_start: dt.datetime
    latest_end: dt.datetime
    region: str | None = None
    tier: str = Tier.FIRM
    max_rate: Decimal | None = None
    spread: str | None = None
    limit: int = OFFERS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Offers, the cheapest first; without any, the reason and the nearest thing that would work."""

    offers: list[Offer]
    no_offer_reason: str | None = None
    nearest: Offer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One step of the curve. A rate is what one GPU costs, fee included; `None` where none is free."""

    window: Window
    rate: Decimal | None
    floor: Decimal | None
    multiplier: Decimal | None
    gpus_listed: int
    gpus_free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """What the market has of one model in the current grid step, over all regions and tiers."""

    gpu_model: GpuModel
    regions: list[str]
    gpus_listed: int
    gpus_free_now: int
    rate_from: Decimal | None
    rate_to: Decimal | None
    currency: str
    simulated: bool


def search(*, query: OfferingQuery, at: dt.datetime) -> SearchResult:
    """Find windows that fit a query: the cheapest first, then the earliest.

    The range from `earliest_start` to `latest_end` is a wish and need not lie on the grid; what of it is
    past, or beyond the horizon, is left out.

    :raises NoSuchModel: when the catalogue does not have the model.
    :raises WindowOffGrid: when the duration is no whole number of grid steps.
    :raises WindowUpsideDown: when the range does not end after it starts.
    :raises InvalidValue: when a number or a word is out of range.
    """
    check_gpus(query.gpus)
    tier, spread = parse_tier(query.tier), parse_spread(query.spread)
    catalog.get_gpu_model(gpu_model_id=query.gpu_model, pointer="/gpu_model")
    check_region(query.region)
    grid = settings.GRID_SECONDS
    if not 1 <= query.limit <= OFFERS_MAX:
        raise InvalidValue(f"must be from 1 to {OFFERS_MAX}", pointer="/limit")
    if query.duration <= dt.timedelta(0) or query.duration % dt.timedelta(seconds=grid):
        raise WindowOffGrid(f"must be a multiple of {grid} s", pointer="/duration")
    if not query.earliest_start < query.latest_end:
        raise WindowUpsideDown("must be later than earliest_start", pointer="/latest_end")
    soonest = max(query.earliest_start, at + dt.timedelta(seconds=LEAD_SECONDS))
    first = grid_ceiling(soonest, grid_seconds=grid)
    last_end = min(query.latest_end, horizon_at(at=at))
    if last_end - first < query.duration:
        cut_short = query.latest_end - first >= query.duration
        return SearchResult(
            offers=[], no_offer_reason="beyond_horizon" if cut_short else "range_too_short"
        )
    last = grid_floor(last_end - query.duration, grid_seconds=grid)
    found = pools.read(gpu_model_id=query.gpu_model, region=query.region, tier=tier, at=at)
    seconds = query.duration // dt.timedelta(seconds=1)
    wish = Wish(gpus=query.gpus, seconds=seconds, spread=spread, at=at)
    priced = _priced(
        offerings.boards(found, span=Window(first, last + query.duration), at=at),
        wish=wish,
        first=first,
        last=last,
    )
    affordable = [p for p in priced if query.max_rate is None or p.rate <= query.max_rate]
    if affordable:
        return SearchResult(
            offers=[offerings.offer(p, wish=wish) for p in affordable[: query.limit]]
        )
    if priced:
        dearer = offerings.offer(priced[0], wish=wish)
        return SearchResult(offers=[], no_offer_reason="price_above_max", nearest=dearer)
    reason = offerings.refusal(found, wish=wish)
    if reason is not None:
        return SearchResult(offers=[], no_offer_reason=reason)
    nearest = _later(found, wish=wish, after=last) or _smaller(
        found, wish=wish, first=first, last=last
    )
    return SearchResult(offers=[], no_offer_reason="not_enough_capacity", nearest=nearest)


def price_window(
    *,
    gpu_model: str,
    gpus: int,
    region: str | None,
    tier: Tier,
    spread: Spread,
    window: Window,
    at: dt.datetime,
) -> tuple[Offer | None, str | None]:
    """Price one window in the cheapest region with room; without any, return the reason."""
    found = pools.read(gpu_model_id=gpu_model, region=region, tier=tier, at=at)
    wish = Wish(gpus=gpus, seconds=window.seconds, spread=spread, at=at)
    starts = np.array([to_seconds(window.starts_at)], dtype=np.int64)
    priced = [
        p
        for board in offerings.boards(found, span=window, at=at)
        for p in offerings.evaluate(board, wish=wish, starts=starts)
    ]
    if priced:
        return offerings.offer(min(priced, key=lambda p: p.merit), wish=wish), None
    return None, offerings.refusal(found, wish=wish) or "not_enough_capacity"


def price_curve(
    *, gpu_model: str, region: str | None, tier: str, window: Window, at: dt.datetime
) -> list[CurvePoint]:
    """Return per grid step what one GPU costs where it is cheapest, and how many are listed and free.

    Lengths and sizes that listings ask for are not looked at: a step is no offer.

    :raises NoSuchModel: when the catalogue does not have the model.
    :raises WindowOffGrid: when an end of the window is not on the grid.
    :raises InvalidValue: when it has more than `CURVE_POINTS_MAX` steps, or the tier is unknown.
    """
    catalog.get_gpu_model(gpu_model_id=gpu_model, pointer="/gpu_model")
    check_region(region)
    grid = settings.GRID_SECONDS
    for pointer, instant in (("/from", window.starts_at), ("/to", window.ends_at)):
        if not is_on_grid(instant, grid_seconds=grid):
            raise WindowOffGrid(f"must be a multiple of {grid} s, UTC", pointer=pointer)
    if window.seconds // grid > CURVE_POINTS_MAX:
        raise InvalidValue(f"must be at most {CURVE_POINTS_MAX} steps of {grid} s", pointer="/to")
    found = pools.read(gpu_model_id=gpu_model, region=region, tier=parse_tier(tier), at=at)
    begin, end = to_seconds(window.starts_at), to_seconds(window.ends_at)
    starts = np.arange(begin, end, grid, dtype=np.int64)
    by_window: dict[Window, list[Step]] = {}
    for start in starts.tolist():
        by_window[_grid_step(start)] = []
    for board in offerings.boards(found, span=window, at=at):
        for step in offerings.steps(board, starts=starts, at=at):
            by_window[step.window].append(step)
    return [_point(its_window, steps) for its_window, steps in by_window.items()]


def market_summary(*, at: dt.datetime) -> list[ModelSummary]:
    """Return every model of the catalogue with what is listed and free now, and the range of rates now."""
    begin = to_seconds(grid_floor(at, grid_seconds=settings.GRID_SECONDS))
    found = pools.read(gpu_model_id=None, region=None, tier=None, at=at)
    listed: dict[str, set[int]] = defaultdict(set)
    free: dict[str, set[int]] = defaultdict(set)
    rates: dict[str, list[Decimal]] = defaultdict(list)
    regions: dict[str, set[str]] = defaultdict(set)
    simulated: set[str] = set()
    for board in offerings.boards(found, span=_grid_step(begin), at=at):
        pool = board.pool
        for step in offerings.steps(board, starts=np.array([begin], dtype=np.int64), at=at):
            for place in np.flatnonzero(step.is_listed):
                gpu = pool.gpus[place]
                listed[pool.gpu_model_id].add(gpu.slot)
                regions[pool.gpu_model_id].add(pool.region)
                if gpu.node.simulated:
                    simulated.add(pool.gpu_model_id)
            free[pool.gpu_model_id] |= {
                pool.gpus[place].slot for place in np.flatnonzero(step.is_listed & step.free)
            }
            for level in np.unique(step.levels[step.is_listed]):
                rates[pool.gpu_model_id].append(step.rate(int(level)))
    return [
        ModelSummary(
            gpu_model=model,
            regions=sorted(regions[model.pk]),
            gpus_listed=len(listed[model.pk]),
            gpus_free_now=len(free[model.pk]),
            rate_from=min(rates[model.pk], default=None),
            rate_to=max(rates[model.pk], default=None),
            currency=settings.CURRENCY,
            simulated=model.pk in simulated,
        )
        for model in GpuModel.objects.order_by("pk")
    ]


def check_gpus(gpus: int) -> None:
    """Refuse a number of GPUs that nobody can mean.

    :raises InvalidValue: when it is below 1 or above `GPUS_PER_REQUEST_MAX`.
    """
    if not 1 <= gpus <= GPUS_PER_REQUEST_MAX:
        raise InvalidValue(f"must be from 1 to {GPUS_PER_REQUEST_MAX}", pointer="/gpus")


def check_region(region: str | None) -> None:
    """Refuse text that can be no region's name; an unknown region simply has nothing on offer.

    :raises InvalidValue: then.
    """
    if region is not None:
        check_text(region, length_max=REGION_LENGTH_MAX, pointer="/region")


def parse_tier(text: str) -> Tier:
    """Return the tier of this name.

    :raises InvalidValue: when there is none.
    """
    if text not in Tier.values:
        raise InvalidValue(f"must be one of {', '.join(Tier.values)}", pointer="/tier")
    return Tier(text)


def parse_spread(text: str | None) -> Spread:
    """Return a spread; `None` is one fabric, and within it one node if one has room.

    :raises InvalidValue: when there is no such spread.
    """
    if text is None:
        return Spread.SAME_FABRIC
    if text not in Spread.values:
        raise InvalidValue(f"must be one of {', '.join(Spread.values)}", pointer="/spread")
    return Spread(text)


def _priced(
    boards: list[Board], *, wish: Wish, first: dt.datetime, last: dt.datetime
) -> list[Priced]:
    priced = [
        p
        for board in boards
        for p in offerings.evaluate(
            board,
            wish=wish,
            starts=offerings.starts_between(board, wish=wish, first=first, last=last),
        )
    ]
    return sorted(priced, key=lambda p: p.merit)


def _later(found: list[pools.Pool], *, wish: Wish, after: dt.datetime) -> Offer | None:
    """Return the earliest offer that starts after `after`, within the horizon."""
    grid = settings.GRID_SECONDS
    first = after + dt.timedelta(seconds=grid)
    last = grid_floor(
        horizon_at(at=wish.at) - dt.timedelta(seconds=wish.seconds), grid_seconds=grid
    )
    if last < first:
        return None
    span = Window(first, last + dt.timedelta(seconds=wish.seconds))
    priced = _priced(
        offerings.boards(found, span=span, at=wish.at), wish=wish, first=first, last=last
    )
    earliest = min(priced, key=lambda p: (p.window.starts_at, p.merit), default=None)
    return offerings.offer(earliest, wish=wish) if earliest else None


def _smaller(
    found: list[pools.Pool], *, wish: Wish, first: dt.datetime, last: dt.datetime
) -> Offer | None:
    """Return the best offer of as many GPUs as fit into the range."""
    span = Window(first, last + dt.timedelta(seconds=wish.seconds))
    boards = offerings.boards(found, span=span, at=wish.at)
    gpus = max(
        (
            offerings.roomiest(
                board,
                wish=wish,
                starts=offerings.starts_between(board, wish=wish, first=first, last=last),
            )
            for board in boards
        ),
        default=0,
    )
    if gpus == 0:
        return None
    smaller = replace(wish, gpus=gpus)
    priced = _priced(boards, wish=smaller, first=first, last=last)
    return offerings.offer(priced[0], wish=smaller) if priced else None


def _grid_step(start: int) -> Window:
    return Window(to_instant(start), to_instant(start + settings.GRID_SECONDS))


def _point(window: Window, steps: list[Step]) -> CurvePoint:
    """Join the pools of all regions in one step; the cheapest free GPU gives the price."""
    cheapest = min(
        (
            (step.rate(level), step.multiplier(level))
            for step in steps
            if (step.is_listed & step.free).any()
            for level in (int(step.levels[step.free].min()),)
        ),
        default=None,
    )
    floors = [
        step.board.pool.floors[int(step.levels.min())] for step in steps if step.is_listed.any()
    ]
    return CurvePoint(
        window=window,
        rate=cheapest[0] if cheapest else None,
        floor=min(floors, default=None),
        multiplier=cheapest[1] if cheapest else None,
        gpus_listed=sum(int(step.is_listed.sum()) for step in steps),
        gpus_free=sum(int((step.is_listed & step.free).sum()) for step in steps),
    )
