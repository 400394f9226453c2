"""The demand a backtest replays: made up by documented laws, or read from a file.

One pool of interchangeable GPUs over `HOURS` hours from empty; every window ends inside. The load is the
GPU-hours of all requests, whatever they would pay, as a multiple of the pool's.
"""

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from scheduler.pricing.forecast import FIT_HOURS, Requests
from scheduler.pricing.rule import HOURS_PER_WEEK

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Random: TypeAlias = np.random.Generator

HOURS = 56 * 24
GPUS = 1_024
BASE_RATE = 1.93  # the rate at which an unlimited pool earns most, for the values below
LOADS = (0.6, 1.2, 2.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
SIZE_SHARES = (0.741, 0.0525, 0.0525, 0.098, 0.026, 0.0145, 0.007)
# Log-uniform within each class, as jobs of a real cluster fall: hours from, to, share.
DURATIONS = {
    "long": ((1, 6, 0.50), (6, 24, 0.217), (24, 72, 0.069), (72, 504, 0.214)),
    "short": ((1, 6, 0.50), (6, 24, 0.30), (24, 72, 0.15), (72, 168, 0.05)),
}
VALUE_MEDIAN, VALUE_SIGMA = 2.5, 0.5  # per GPU-hour
# Lead below so many hours: value times so much.
VALUE_BY_LEAD = ((24.0, 1.15), (168.0, 1.0), (np.inf, 0.9))
CANDIDATES = 5  # starts that a flexible tenant considers
SHOCK_HOURS = 5 * 24  # from the middle on, in no forecast
SHOCK_EXTRA = 1.5
SHOCK_VALUE = 1.3
SHOCK_LEAD_HOURS, SHOCK_DURATION_HOURS = 72, 96  # at most
PEAK_MULTIPLE = 5  # an hour of a real series counts at most this multiple of the median


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Requests in the order in which they are asked, and what was asked before the market opened.

    Per request: `asked_hours` (fractions; before 0 for what was asked elsewhere before the opening),
    `comes_hours` when it comes to this market, `gpus`, `hours`, `value` per GPU-hour and its `scale` (what of
    it is no luck). Candidate `starts` of all requests lie
    one after the other, those of request `i` from `first[i]` on; `owner` is the request of each.
    """

    name: str
    asked_hours: Floats
    comes_hours: Floats
    gpus: Ints
    hours: Ints
    value: Floats
    scale: Floats
    starts: Ints
    owner: Ints
    first: Ints
    history: Requests
    capacity: int = GPUS
    horizon_hours: int = HOURS
    forecast_factor: float = 1.0
    base_rate: float = BASE_RATE

    def __len__(self) -> int:
        return len(self.gpus)

    @property
    def observed(self) -> Requests:
        """Return all requests as the market sees them: history first, wanted start, no value."""
        mine = self.starts[self.first]
        return Requests(
            asked_hours=np.concatenate(
                [self.history.asked_hours, np.floor(self.asked_hours).astype(np.int64)]
            ),
            start_hours=np.concatenate([self.history.start_hours, mine]),
            duration_hours=np.concatenate([self.history.duration_hours, self.hours]),
            gpus=np.concatenate([self.history.gpus, self.gpus]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandSet:
    """A family of demands, one per seed and load."""

    name: str
    mix: str
    is_real: bool
    seeds: tuple[int, ...]
    level_sigma: float = 0.0


TUNING_SEEDS = (101, 102, 103)
SETS = {
    "ali": DemandSet(name="ali", mix="long", is_real=True, seeds=(1, 2, 3, 4)),
    "wk17": DemandSet(name="wk17", mix="long", is_real=True, seeds=(13, 27, 41, 55)),
    "synthetic": DemandSet(name="synthetic", mix="short", is_real=False, seeds=(1, 2, 3, 4)),
    "synerr": DemandSet(
        name="synerr", mix="short", is_real=False, seeds=(1, 2, 3, 4), level_sigma=0.35
    ),
}
SERIES_WEEKS_SKIPPED, SERIES_WEEKS = 4, 14  # a real window begins in week 4 + seed mod 14


def generate(
    demand_set: DemandSet,
    *,
    load: float,
    seed: int,
    series: Floats | None = None,
    capacity: int = GPUS,
    hours: int = HOURS,
    with_shock: bool = True,
) -> Demand:
    """Make the demand of one seed; the same arguments give the same requests.

    `series` are hourly counts of a real cluster, needed where the set is real; the four weeks before the
    replayed ones become the history that the forecast is fitted on.
    """
    rng = np.random.default_rng([seed, int(load * 1000), sorted(DURATIONS).index(demand_set.mix)])
    weights = (
        _real_weights(series, seed=seed, hours=hours)
        if demand_set.is_real
        else _made_up_weights(rng, hours=hours)
    )
    mean_gpu_hours = float(np.dot(SIZES, SIZE_SHARES)) * _mean_hours(demand_set.mix)
    count = round(load * capacity * hours / mean_gpu_hours)
    ahead = weights[FIT_HOURS:]
    past = _draw(
        rng,
        weights=weights[:FIT_HOURS],
        count=round(count * weights[:FIT_HOURS].sum() / ahead.sum()),
        mix=demand_set.mix,
        end=FIT_HOURS + hours,
    )
    main = _draw(rng, weights=ahead, count=count, mix=demand_set.mix, end=hours)
    if with_shock:
        main = main.joined(_shock(rng, count=count, mix=demand_set.mix, hours=hours))
    factor = float(np.exp(rng.normal(0, demand_set.level_sigma))) if demand_set.level_sigma else 1.0
    return _finished(
        rng,
        drawn=main,
        past=past,
        name=f"{demand_set.name} {load} seed {seed}",
        capacity=capacity,
        hours=hours,
        forecast_factor=factor,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """Windows before values and flexibility: wanted starts, leads, lengths, sizes, and a value factor."""

    start: Ints
    lead: Floats
    hours: Ints
    gpus: Ints
    value_factor: Floats

    def joined(self, other: "_Drawn") -> "_Drawn":
        return _Drawn(
            start=np.concatenate([self.start, other.start]),
            lead=np.concatenate([self.lead, other.lead]),
            hours=np.concatenate([self.hours, other.hours]),
            gpus=np.concatenate([self.gpus, other.gpus]),
            value_factor=np.concatenate([self.value_factor, other.value_factor]),
        )


def _draw(
    rng: Random,
    *,
    weights: Floats,
    count: int,
    mix: str,
    end: int,
    lead_hours_max: float = np.inf,
    duration_hours_max: int = HOURS,
) -> _Drawn:
    """Draw windows that start in the hours of `weights` and end at `end` at the latest."""
    hours = len(weights)
    lengths = np.minimum(_durations(rng, mix=mix, count=count), min(duration_hours_max, end))
    cumulated = np.concatenate([[0.0], np.cumsum(weights)])
    drawn = rng.uniform(0, cumulated[np.minimum(end - lengths, hours - 1) + 1])
    starts = np.searchsorted(cumulated, drawn, side="right") - 1
    return _Drawn(
        start=starts.astype(np.int64),
        lead=np.minimum(_leads(rng, count=count), lead_hours_max),
        hours=lengths,
        gpus=rng.choice(np.array(SIZES, dtype=np.int64), size=count, p=_size_shares()),
        value_factor=np.ones(count),
    )


def _shock(rng: Random, *, count: int, mix: str, hours: int) -> _Drawn:
    """Return what a surprise adds: many short windows from the middle on, booked late, worth more."""
    weights = np.zeros(hours)
    weights[hours // 2 : hours // 2 + SHOCK_HOURS] = 1.0
    drawn = _draw(
        rng,
        weights=weights,
        count=round(count * SHOCK_HOURS / hours * SHOCK_EXTRA),
        mix=mix,
        end=hours,
        lead_hours_max=SHOCK_LEAD_HOURS,
        duration_hours_max=SHOCK_DURATION_HOURS,
    )
    return replace(drawn, value_factor=np.full(len(drawn.start), SHOCK_VALUE))


def _finished(
    rng: Random,
    *,
    drawn: _Drawn,
    past: _Drawn,
    name: str,
    capacity: int,
    hours: int,
    forecast_factor: float,
) -> Demand:
    """Give windows their values and their flexibility, and put them in the order of asking."""
    asked = drawn.start - drawn.lead
    # Those who would have asked before the opening come at some time between it and their start.
    comes = np.where(asked < 0, drawn.start * rng.random(len(asked)), asked)
    order = np.argsort(comes, kind="stable")
    start, lead, lengths = drawn.start[order], drawn.lead[order], drawn.hours[order]
    count = len(order)
    scale = drawn.value_factor[order] * np.select(
        [lead < below for below, _ in VALUE_BY_LEAD], [factor for _, factor in VALUE_BY_LEAD]
    )
    flexibility = rng.random(count)
    slack = np.select(
        [flexibility < 0.5, flexibility < 0.8],
        [np.zeros(count), rng.uniform(2, 24, count)],
        rng.uniform(24, 96, count),
    )
    latest = np.minimum(start + np.floor(slack).astype(np.int64), hours - lengths)
    starts, first = candidates(earliest=start, latest=latest)
    return Demand(
        name=name,
        asked_hours=asked[order],
        comes_hours=comes[order],
        gpus=drawn.gpus[order],
        hours=lengths,
        value=VALUE_MEDIAN * scale * np.exp(rng.normal(0, VALUE_SIGMA, count)),
        scale=scale,
        starts=starts,
        owner=np.repeat(np.arange(count), np.diff(first, append=len(starts))),
        first=first,
        history=Requests(
            asked_hours=np.floor(past.start - FIT_HOURS - past.lead).astype(np.int64),
            start_hours=past.start - FIT_HOURS,
            duration_hours=past.hours,
            gpus=past.gpus,
        ),
        capacity=capacity,
        horizon_hours=hours,
        forecast_factor=forecast_factor,
    )


def candidates(*, earliest: Ints, latest: Ints) -> tuple[Ints, Ints]:
    """Return up to five even starts per request from its earliest to its latest, and where each begins."""
    steps = np.arange(CANDIDATES) / (CANDIDATES - 1)
    grid = earliest[:, None] + np.floor((latest - earliest)[:, None] * steps).astype(np.int64)
    is_new = np.ones(grid.shape, dtype=bool)
    is_new[:, 1:] = np.diff(grid, axis=1) > 0
    counts = is_new.sum(axis=1)
    return grid[is_new], np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)


def _real_weights(series: Floats | None, *, seed: int, hours: int) -> Floats:
    if series is None:
        raise ValueError("a set of real arrivals needs the hourly counts of a cluster")
    begin = HOURS_PER_WEEK * (SERIES_WEEKS_SKIPPED + seed % SERIES_WEEKS)
    weights = np.minimum(series, PEAK_MULTIPLE * np.median(series))[
        begin - FIT_HOURS : begin + hours
    ]
    if len(weights) < FIT_HOURS + hours:
        raise ValueError(f"the series ends before hour {begin + hours}")
    return weights.astype(np.float64)


def _made_up_weights(rng: Random, *, hours: int) -> Floats:
    """Return a day's and a week's rhythm with days that differ."""
    hour = np.arange(FIT_HOURS + hours)
    daily = 1 + 0.45 * np.cos(2 * np.pi * (hour % 24 - 15) / 24)
    weekly = np.where(hour // 24 % 7 >= 5, 0.65, 1.1)
    days = np.exp(rng.normal(0, 0.18, len(hour) // 24 + 1))[hour // 24]
    return daily * weekly * days


def _durations(rng: Random, *, mix: str, count: int) -> Ints:
    classes = np.array(DURATIONS[mix])
    shares = classes[:, 2] / classes[:, 2].sum()
    chosen = classes[rng.choice(len(classes), size=count, p=shares)]
    logs = rng.uniform(np.log(chosen[:, 0]), np.log(chosen[:, 1]))
    lengths: Ints = np.maximum(1, np.round(np.exp(logs))).astype(np.int64)
    return lengths


def _mean_hours(mix: str) -> float:
    """Return the mean of the log-uniform classes."""
    whole = sum(share for *_, share in DURATIONS[mix])
    return sum(
        share / whole * (high - low) / math.log(high / low) for low, high, share in DURATIONS[mix]
    )


def _leads(rng: Random, *, count: int) -> Floats:
    kind = rng.random(count)
    return np.select(
        [kind < 0.40, kind < 0.75, kind < 0.95],
        [
            rng.exponential(3.0, count),
            np.exp(rng.uniform(np.log(6), np.log(168), count)),
            rng.uniform(7 * 24, 30 * 24, count),
        ],
        rng.uniform(30 * 24, 60 * 24, count),
    )


def _size_shares() -> Floats:
    shares: Floats = np.array(SIZE_SHARES)
    return shares / float(np.sum(shares))
