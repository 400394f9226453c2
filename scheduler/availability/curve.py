"""The market step by step: what one GPU costs, how many are listed and free; the curve and the summary."""

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from django.conf import settings

from agents.supply import Masks
from marketplace import catalog
from marketplace.core.errors import InvalidValue
from marketplace.core.windows import (
    Window,
    grid_floor,
    is_on_grid,
    to_instant,
    to_seconds,
)
from marketplace.models import GpuModel
from scheduler import board, offerings, pools, prices
from scheduler.availability.words import check_region, parse_tier
from scheduler.board import Board
from scheduler.calendar import WindowOffGrid
from scheduler.offerings import Sheet
from scheduler.pools import Pool
from scheduler.states import Spread

CURVE_POINTS_MAX = 4_320  # 180 days of hours, or three days of the demo's minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One step of the curve. A rate is what one GPU costs, fee included; `None` where none is free."""

    window: Window
    rate: Decimal | None
    floor: Decimal | None
    multiplier: Decimal | None
    gpus_listed: int
    gpus_free: int

    @property
    def gpus_sold(self) -> int:
        """Return how many of the listed GPUs are sold, held or turning round."""
        return self.gpus_listed - self.gpus_free


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


def price_curve(
    *, gpu_model: str, region: str | None, tier: str, window: Window, at: dt.datetime
) -> list[CurvePoint]:
    """Return per grid step what one GPU costs where it is cheapest, and how many are listed and free.

    Lengths and sizes that listings ask for are not looked at: a step is no offer. A step after which a GPU
    could not turn round before it is promised again is not free: nobody can have it.

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
    tables = offerings.tables(found, at=at)
    begin, end = to_seconds(window.starts_at), to_seconds(window.ends_at)
    curves = [
        _curve(
            board.over_grid(
                pool=pool,
                prices=tables[pool],
                first=begin,
                last=end - grid,
                seconds=grid,
                step=grid,
                at=at,
            )
        )
        for pool in found
    ]
    return [
        _point(curves, column=column, window=_grid_step(start))
        for column, start in enumerate(range(begin, end, grid))
    ]


def market_summary(*, at: dt.datetime) -> list[ModelSummary]:
    """Return every model of the catalogue with what is listed and free now, and the range of rates now."""
    grid = settings.GRID_SECONDS
    begin = to_seconds(grid_floor(at, grid_seconds=grid))
    listed: dict[str, list[tuple[Pool, Masks]]] = defaultdict(list)
    free: dict[str, list[tuple[Pool, Masks]]] = defaultdict(list)
    rates: dict[str, list[Decimal]] = defaultdict(list)
    found = pools.read(gpu_model_id=None, region=None, tier=None, at=at)
    for pool, table in offerings.tables(found, at=at).items():
        now = board.over_grid(
            pool=pool,
            prices=table,
            first=begin,
            last=begin,
            seconds=grid,
            step=grid,
            at=at,
        )
        costs = table.window_rates(starts=now.starts, seconds=grid, floor_rates=pool.floors)
        model, seen = pool.gpu_model_id, np.zeros(len(pool.blocks), dtype=np.uint16)
        for level in range(len(pool.floors)):
            offered = now.offered(level=level)
            if (offered & ~seen).any():
                rates[model].append(prices.as_rate(int(costs[level, 0])))
            seen = offered
        listed[model].append((pool, seen))
        free_now = now.free(
            listings=pool.listings, level=len(pool.floors) - 1, columns=np.zeros(1, dtype=np.int64)
        )
        free[model].append((pool, free_now[:, 0]))
    return [
        ModelSummary(
            gpu_model=model,
            regions=sorted({pool.region for pool, masks in listed[model.pk] if masks.any()}),
            gpus_listed=_distinct(listed[model.pk]),
            gpus_free_now=_distinct(free[model.pk]),
            rate_from=min(rates[model.pk], default=None),
            rate_to=max(rates[model.pk], default=None),
            currency=settings.CURRENCY,
            simulated=any(
                bool(pool.simulated[masks != 0].any()) for pool, masks in listed[model.pk]
            ),
        )
        for model in GpuModel.objects.order_by("pk")
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Curve:
    """One pool, step by step: the sheet of one GPU for one step, and how many are listed and free."""

    sheet: Sheet
    levels: board.Levels
    floors: board.Levels
    listed: board.Counts
    free: board.Counts


def _curve(steps: Board) -> _Curve:
    every = steps.pool.listings
    levels = steps.levels(listings=every, gpus=1, spread=Spread.ANY)
    return _Curve(
        sheet=Sheet(
            board=steps,
            listings=every,
            rates=offerings.rates(steps, levels=levels),
        ),
        levels=levels,
        floors=steps.floors_listed(),
        listed=steps.listed(listings=every),
        free=steps.rooms(listings=every, spread=Spread.ANY),
    )


def _point(curves: Sequence[_Curve], *, column: int, window: Window) -> CurvePoint:
    """Join the pools of all regions in one step; the cheapest free GPU gives the price."""
    free = [curve for curve in curves if curve.free[column]]
    cheapest = min(free, key=lambda curve: int(curve.sheet.rates[column]), default=None)
    rate = multiplier = None
    if cheapest is not None:
        steps, micros = cheapest.sheet.board, int(cheapest.sheet.rates[column])
        rate = prices.as_rate(micros)
        multiplier = steps.prices.multiplier(
            rate_micros=micros, floor_rate=steps.pool.floors[int(cheapest.levels[column])]
        )
    floors = [
        curve.sheet.board.pool.floors[int(curve.floors[column])]
        for curve in curves
        if curve.listed[column]
    ]
    return CurvePoint(
        window=window,
        rate=rate,
        floor=min(floors, default=None),
        multiplier=multiplier,
        gpus_listed=sum(int(curve.listed[column]) for curve in curves),
        gpus_free=sum(int(curve.free[column]) for curve in curves),
    )


def _distinct(parts: Sequence[tuple[Pool, Masks]]) -> int:
    """Count the GPUs of some pools once each: firm and reclaimable listings may sell the same."""
    if not parts:
        return 0
    blocks = np.concatenate([pool.blocks for pool, _ in parts])
    masks = np.concatenate([masks for _, masks in parts])
    order = np.argsort(blocks)
    firsts = np.flatnonzero(np.diff(blocks[order], prepend=-1))
    union = np.bitwise_or.reduceat(masks[order], firsts)
    return int(np.bitwise_count(union).sum(dtype=np.int64))


def _grid_step(start: int) -> Window:
    return Window(to_instant(start), to_instant(start + settings.GRID_SECONDS))
