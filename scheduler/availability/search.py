"""Search: priced windows that fit, the cheapest first; or else why not, and the nearest that would work."""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum

from django.conf import settings

from marketplace import catalog
from marketplace.core.errors import InvalidValue
from marketplace.core.windows import (
    Window,
    grid_ceiling,
    grid_floor,
    to_seconds,
)
from marketplace.states import Tier
from scheduler import board, offerings, pools
from scheduler.availability.words import check_gpus, check_region, parse_spread, parse_tier
from scheduler.board import Board
from scheduler.calendar import WindowOffGrid, WindowUpsideDown, horizon_at
from scheduler.offerings import Offer, Sheet, Wish
from scheduler.pools import Pool
from scheduler.states import Spread

OFFERS_MAX = 20  # more choices than that are read by nobody
LEAD_SECONDS = 5  # an offer that starts sooner would begin before it can be quoted and reserved
NEAR_DAYS = 7  # a later start within a week is nearer than another place, or fewer GPUs


class Change(StrEnum):
    """In what the nearest thing that would work differs from what was asked for."""

    HIGHER_PRICE = "higher_price"
    LATER_START = "later_start"
    OTHER_REGION = "other_region"
    OTHER_TIER = "other_tier"
    FEWER_GPUS = "fewer_gpus"


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
    nearest_change: Change | None = None


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
    quest = _Quest(
        query=query,
        tier=tier,
        wish=Wish(
            gpus=query.gpus,
            seconds=query.duration // dt.timedelta(seconds=1),
            spread=spread,
            at=at,
        ),
        first=to_seconds(first),
        last=to_seconds(last),
    )
    found = quest.pools()
    sheets = quest.sheets(found)
    choices = offerings.cheapest(sheets, limit=query.limit, rate_max=query.max_rate)
    if choices:
        return SearchResult(offers=[offerings.offer(c, wish=quest.wish) for c in choices])
    dearer = offerings.cheapest(sheets, limit=1)
    if dearer:
        return SearchResult(
            offers=[],
            no_offer_reason="price_above_max",
            nearest=offerings.offer(dearer[0], wish=quest.wish),
            nearest_change=Change.HIGHER_PRICE,
        )
    reason = offerings.refusal(found, wish=quest.wish)
    change, nearest = next(quest.alternatives(found), (None, None))
    return SearchResult(
        offers=[],
        no_offer_reason=reason or "not_enough_capacity",
        nearest=nearest,
        nearest_change=change,
    )


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
    tables = offerings.tables(found, at=at)
    sheets = [
        offerings.sheet(
            board.of_window(pool=pool, prices=tables[pool], window=window, at=at), wish=wish
        )
        for pool in found
    ]
    choices = offerings.cheapest(sheets, limit=1)
    if choices:
        return offerings.offer(choices[0], wish=wish), None
    return None, offerings.refusal(found, wish=wish) or "not_enough_capacity"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quest:
    """A search with its range of starts, seconds since the Unix epoch, both ends included."""

    query: OfferingQuery
    tier: Tier
    wish: Wish
    first: int
    last: int

    def pools(self) -> list[Pool]:
        return pools.read(
            gpu_model_id=self.query.gpu_model,
            region=self.query.region,
            tier=self.tier,
            at=self.wish.at,
        )

    def sheets(self, found: Sequence[Pool]) -> list[Sheet]:
        """Price every start of the range in some pools."""
        return [offerings.sheet(each, wish=self.wish) for each in self.boards(found)]

    def boards(self, found: Sequence[Pool]) -> Iterator[Board]:
        tables = offerings.tables(found, at=self.wish.at)
        for pool in found:
            yield board.over_grid(
                pool=pool,
                prices=tables[pool],
                first=self.first,
                last=self.last,
                seconds=self.wish.seconds,
                step=settings.GRID_SECONDS,
                at=self.wish.at,
            )

    def alternatives(self, found: Sequence[Pool]) -> Iterator[tuple[Change, Offer]]:
        """Yield what would work instead, the nearest first; each is looked for when it is asked for."""
        grid = settings.GRID_SECONDS
        horizon = to_seconds(horizon_at(at=self.wish.at)) // grid * grid - self.wish.seconds
        near = min(horizon, self.last + NEAR_DAYS * 86_400 // grid * grid)
        yield from self._later(found, first=self.last + grid, last=near)
        if self.query.region is not None:
            elsewhere = replace(self, query=replace(self.query, region=None))
            yield from elsewhere.best(Change.OTHER_REGION)
        for tier in Tier:
            if tier != self.tier:
                yield from replace(self, tier=tier).best(Change.OTHER_TIER)
        yield from self._smaller(found)
        yield from self._later(found, first=near + grid, last=horizon)

    def best(self, change: Change) -> Iterator[tuple[Change, Offer]]:
        """Yield the best offer of the range, if there is any."""
        sheets = self.sheets(self.pools())
        for choice in offerings.cheapest(sheets, limit=1, rate_max=self.query.max_rate):
            yield change, offerings.offer(choice, wish=self.wish)

    def _later(
        self, found: Sequence[Pool], *, first: int, last: int
    ) -> Iterator[tuple[Change, Offer]]:
        if first <= last:
            sheets = replace(self, first=first, last=last).sheets(found)
            choice = offerings.earliest(sheets, rate_max=self.query.max_rate)
            if choice is not None:
                yield Change.LATER_START, offerings.offer(choice, wish=self.wish)

    def _smaller(self, found: Sequence[Pool]) -> Iterator[tuple[Change, Offer]]:
        """Yield the best offer of as many GPUs as fit into the range."""
        gpus = max(
            (each.roomiest(spread=self.wish.spread) for each in self.boards(found)), default=0
        )
        if 0 < gpus < self.wish.gpus:
            fewer = replace(self, wish=replace(self.wish, gpus=gpus))
            sheets = fewer.sheets(found)
            for choice in offerings.cheapest(sheets, limit=1, rate_max=self.query.max_rate):
                yield Change.FEWER_GPUS, offerings.offer(choice, wish=fewer.wish)
