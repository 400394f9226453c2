"""The forward clearing price of a firm pool: what makes the demand still to come fit the room that is left.

Per hour, with `D` the demand still to come if it were free, `C` the sellable share of the GPUs on offer at a
price, `B` those sold, `z` the rule's caution and `k = E[n²] ÷ E[n]` of the request sizes:

    x  = (−z√k + √(z²k + 4 (C − B))) ÷ 2        from  Dq + z√(kDq) = C − B,  x² = Dq
    q  = min(1, x² ÷ D)                          the share of the demand there is room for
    p* = median × e^(sigma Φ⁻¹(1 − q))             the price at which that share buys

Owners' floors are used in merit order: `p*` is the smallest price at which the GPUs whose floors it pays
have the room. It is never below the base rate nor above the cap, and the rate in force moves towards it as
far as one hour allows.
"""

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from scheduler.pricing import small_pool
from scheduler.pricing.forecast import Floats
from scheduler.pricing.limits import (
    Counts,
    Micros,
    cap_micros,
    gross_floors,
    paced,
)
from scheduler.pricing.rule import BASIS_POINTS, Rule

SHARE_MIN = 1e-6  # of the demand: beyond it a price says no more than "nothing is left"
DEMAND_MIN = 1e-6  # GPUs: below it there is none
TABLE_STEPS = 2_000  # of Φ⁻¹ between ± TABLE_END; interpolation is within 1e-5 of the function
TABLE_END = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is still to come per hour, in GPUs if free of charge, and how lumpy it is (E[n²] ÷ E[n])."""

    gpus: Floats
    size_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """What a pool offers per hour.

    `floor_micros[level]` are the distinct floors of its owners, rising; `capacity[level, hour]` the GPUs on
    offer at each, sold ones included; `sold[hour]` what is sold or held of them.
    """

    base_micros: int
    floor_micros: Micros
    capacity: Counts
    sold: Counts

    def __post_init__(self) -> None:
        assert self.base_micros > 0, self.base_micros
        assert self.capacity.shape == (len(self.floor_micros), len(self.sold)), self.capacity.shape
        assert np.all(np.diff(self.floor_micros) > 0), self.floor_micros

    @property
    def hours(self) -> int:
        return len(self.sold)

    @property
    def on_offer(self) -> Counts:
        total: Counts = self.capacity.sum(axis=0)
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """The rates of a pool's hours and what made them.

    `target_micros` is where the rate would stand without a limit on its pace; `fitting_basis_points` the
    share of the forecast demand that there is room for, -1 where there is no forecast.
    """

    rate_micros: Micros
    target_micros: Micros
    fitting_basis_points: Counts


def refresh(
    *,
    supply: Supply,
    demand: Demand | None,
    rule: Rule,
    opening: Micros,
    latest: Micros | None = None,
    base_holds_at_once: bool = False,
) -> Vector:
    """Return the next vector of a firm pool; all arrays begin with the running hour.

    `opening` is the vector in force when this clock hour began, so that two refreshes within one hour move a
    rate no further than one; `latest` the one in force now, where that is another (see `limits.paced`).
    A base that has risen lifts no rate further than an hour allows; `base_holds_at_once` is how it was before
    the second version of the method.
    """
    cap = cap_micros(base_micros=supply.base_micros, rule=rule)
    floors = gross_floors(floor_micros=supply.floor_micros, fee_basis_points=rule.fee_basis_points)
    on_offer = supply.on_offer
    if demand is None or int(on_offer.max(initial=0)) < rule.small_pool_gpus:
        target = np.maximum(
            small_pool.targets(
                base_micros=supply.base_micros, capacity=on_offer, sold=supply.sold, rule=rule
            ),
            _marginal_floors(floors=floors, supply=supply),
        )
        fitting = np.full(supply.hours, -1, dtype=np.int64)
    else:
        target, fitting = _clearing(supply=supply, demand=demand, floors=floors, rule=rule)
    target = np.clip(target, supply.base_micros, cap)
    rates = paced(
        target=target,
        opening=opening,
        latest=opening if latest is None else latest,
        up_per_hour=rule.up_per_hour,
        down_per_hour=rule.down_per_hour,
        no_fall_hours=rule.no_fall_hours,
    )
    # A cap that has fallen holds at once; towards a base that has risen the rates are on their way.
    rates = np.clip(rates, supply.base_micros if base_holds_at_once else 0, cap)
    return Vector(rate_micros=rates, target_micros=target, fitting_basis_points=fitting)


def _clearing(
    *, supply: Supply, demand: Demand, floors: Micros, rule: Rule
) -> tuple[Micros, Counts]:
    """Return per hour the smallest price that clears, and the share of demand there is room for at any."""
    gpus = np.maximum(demand.gpus, DEMAND_MIN)
    spread = float(rule.caution) * np.sqrt(demand.size_ratio)
    median = supply.base_micros * float(rule.value_median)
    sigma = float(rule.value_sigma)
    base = _sloped_base(supply=supply, rule=rule)
    cap = cap_micros(base_micros=supply.base_micros, rule=rule)
    sellable = int(rule.sellable_share * BASIS_POINTS)
    offered = np.zeros(supply.hours, dtype=np.int64)
    share = np.zeros(supply.hours)
    target = np.full(supply.hours, cap, dtype=np.int64)
    for floor, capacity in zip(floors, supply.capacity, strict=True):
        offered = offered + capacity
        room = np.maximum(offered * sellable // BASIS_POINTS - supply.sold, 0)
        root = (np.sqrt(spread * spread + 4 * room) - spread) / 2
        share = np.minimum(root * root / gpus, 1.0)
        price = np.where(share >= 1, 0, median * np.exp(sigma * _probit(1 - share)))
        clears = np.maximum(
            np.ceil(np.minimum(price, cap)).astype(np.int64), np.maximum(base, floor)
        )
        target = np.minimum(target, np.where(room > 0, clears, cap))
    # Where nothing is offered there is no scarcity to price.
    target = np.where(offered > 0, target, supply.base_micros)
    fitting = np.floor(share * BASIS_POINTS).astype(np.int64)
    return target, fitting


def _sloped_base(*, supply: Supply, rule: Rule) -> Micros:
    """Return `base × (1 + sold_slope × sold ÷ capacity)` per hour, rounded up."""
    offered = np.maximum(supply.on_offer, 1)
    added = int(rule.sold_slope * BASIS_POINTS) * np.clip(supply.sold, 0, offered)
    rates: Micros = supply.base_micros - (-supply.base_micros * added // (BASIS_POINTS * offered))
    return rates


def _marginal_floors(*, floors: Micros, supply: Supply) -> Micros:
    """Return per hour the floor of the next GPU in merit order; sold out, that of the last one."""
    left = np.cumsum(supply.capacity, axis=0) > supply.sold
    level = np.where(left.any(axis=0), left.argmax(axis=0), len(floors) - 1)
    marginal: Micros = np.where(supply.on_offer > 0, floors[level], 0)
    return marginal


def _probit(shares: Floats) -> Floats:
    """Return the standard normal quantiles, the ends cut at `SHARE_MIN`."""
    below, quantiles = _probit_table()
    return np.interp(np.clip(shares, SHARE_MIN, 1 - SHARE_MIN), below, quantiles)


@cache
def _probit_table() -> tuple[Floats, Floats]:
    normal = NormalDist()
    quantiles = np.linspace(-TABLE_END, TABLE_END, TABLE_STEPS + 1)
    return np.array([normal.cdf(quantile) for quantile in quantiles.tolist()]), quantiles
