"""Ways to price the hours of a pool: ours, and those it has to beat.

A policy sees what the market sees: what is sold, and what was asked until now.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from scheduler.backtest.demand import Demand, Floats, Ints
from scheduler.pricing import Rule, clearing, forecast
from scheduler.pricing.limits import MICROS_PER_UNIT, aligned

REFIT_HOURS = 24  # the shape of demand changes slowly; its level is relearnt every hour
FLOOR_SHARE = (
    0.44  # of the base rate: what every owner asks; 1.00 for the tenant with a fee of 15 %
)


class Policy(Protocol):
    """Prices per hour of the replay, per GPU-hour, as tenants see them."""

    name: str

    def open(self, demand: Demand) -> None:
        """Begin a replay."""
        ...

    def rates(self, *, hour: int, sold: Ints) -> Floats:
        """Return the rates in force in an hour; those of past hours do not matter."""
        ...


@dataclass(slots=True)
class Static:
    """One price for every hour."""

    price: float
    name: str = "static"
    _rates: Floats = field(default_factory=lambda: np.zeros(0))

    def open(self, demand: Demand) -> None:
        self._rates = np.full(demand.horizon_hours, self.price)

    def rates(self, *, hour: int, sold: Ints) -> Floats:
        return self._rates


@dataclass(slots=True)
class TimeOfWeek:
    """Dearer in hours of the week that are usually busy: price × (usual use ÷ its mean)^0.5."""

    price: float
    name: str = "time_of_week"
    _rates: Floats = field(default_factory=lambda: np.zeros(0))

    def open(self, demand: Demand) -> None:
        shape = forecast.fit(requests=demand.observed, now_hour=0, rule=Rule())
        assert shape is not None, "a replay has a history"
        # Three weeks of the profile let the use of long windows build up before the week that is read.
        weekly = shape.starts_by_hour_of_week
        use = np.convolve(np.tile(weekly, 4), shape.survival)[3 * len(weekly) : 4 * len(weekly)]
        profile = np.sqrt(use / use.mean())
        self._rates = self.price * profile[np.arange(demand.horizon_hours) % len(weekly)]

    def rates(self, *, hour: int, sold: Ints) -> Floats:
        return self._rates


@dataclass(slots=True)
class LinearSurge:
    """Start × (1 + share sold), at once."""

    price: float
    name: str = "linear_surge"
    _capacity: int = 0

    def open(self, demand: Demand) -> None:
        self._capacity = demand.capacity

    def rates(self, *, hour: int, sold: Ints) -> Floats:
        return self.price * (1 + sold / self._capacity)


@dataclass(slots=True)
class Clearing:
    """The market's own method, through the code that the market runs.

    The forecast is fitted anew every day on the four weeks before. `forecast_factor` and `is_flat` spoil it
    on purpose; the demand may bring a factor of its own.
    """

    name: str = "clearing"
    rule: Rule = field(default_factory=Rule)
    forecast_factor: float = 1.0
    is_flat: bool = False
    keeps_history: bool = False
    history: list[Ints] = field(default_factory=list)
    violations: int = 0
    _demand: Demand | None = None
    _observed: forecast.Requests | None = None
    _shape: forecast.Shape | None = None
    _micros: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def open(self, demand: Demand) -> None:
        self._demand, self._observed, self._shape = demand, demand.observed, None
        self._micros = np.zeros(demand.horizon_hours, dtype=np.int64)
        self.history, self.violations = [], 0

    def rates(self, *, hour: int, sold: Ints) -> Floats:
        demand, observed = self._demand, self._observed
        assert demand is not None, "open first"
        assert observed is not None, "open first"
        hours = demand.horizon_hours - hour
        if hour % REFIT_HOURS == 0:
            self._shape = self._fitted(observed, hour=hour, factor=demand.forecast_factor)
        remaining = None
        if self._shape is not None:
            learnt = forecast.learn(
                shape=self._shape, requests=observed, now_hour=hour, rule=self.rule
            )
            remaining = clearing.Demand(
                gpus=forecast.remaining(
                    shape=self._shape, learnt=learnt, first_hour=hour, hours=hours, rule=self.rule
                ),
                size_ratio=self._shape.size_ratio,
            )
        opening = aligned(micros=self._micros, first_hour=0, to_first_hour=hour, hours=hours)
        vector = clearing.refresh(
            supply=clearing.Supply(
                base_micros=base_micros(demand),
                floor_micros=np.array([floor_micros(demand)], dtype=np.int64),
                capacity=np.full((1, hours), demand.capacity, dtype=np.int64),
                sold=sold[hour:],
            ),
            demand=remaining,
            rule=self.rule,
            opening=opening,
        )
        self.violations += self._broken(demand, opening=opening, rates=vector.rate_micros)
        self._micros[hour:] = vector.rate_micros
        if self.keeps_history:
            self.history.append(self._micros.copy())
        rates: Floats = self._micros / MICROS_PER_UNIT
        return rates

    def _fitted(
        self, observed: forecast.Requests, *, hour: int, factor: float
    ) -> forecast.Shape | None:
        shape = forecast.fit(requests=observed, now_hour=hour, rule=self.rule)
        if shape is None:
            return None
        shape = shape.scaled(factor * self.forecast_factor)
        return shape.flat() if self.is_flat else shape

    def _broken(self, demand: Demand, *, opening: Ints, rates: Ints) -> int:
        """Count the hours whose rate broke a limit: floor, cap, pace, or the ratchet of the last hours."""
        known = opening > 0
        up, down = 1 + self.rule.up_per_hour, 1 - self.rule.down_per_hour
        kept = rates * (10_000 - self.rule.fee_basis_points)
        broken = kept < floor_micros(demand) * 10_000
        broken |= rates > int(base_micros(demand) * self.rule.cap_multiple)
        broken |= known & ((rates > opening * float(up)) | (rates < opening * float(down)))
        near = slice(0, self.rule.no_fall_hours)
        broken[near] |= (rates < opening)[near]
        return int(broken.sum())


def base_micros(demand: Demand) -> int:
    """Return the base rate of a demand's pool."""
    return round(demand.base_rate * MICROS_PER_UNIT)


def floor_micros(demand: Demand) -> int:
    """Return what every owner of a demand's pool asks."""
    return round(FLOOR_SHARE * demand.base_rate * MICROS_PER_UNIT)
