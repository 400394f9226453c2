"""What nobody can beat: bounds on revenue and welfare by the linear program over all requests.

`dual` minimises the program's dual by descent, which bounds it from above at every step; `exact_welfare` and
`exact_revenue` solve it with HiGHS and show how near the descent comes.

- Revenue: a seller who knows every arrival, window, flexibility and scale of value, but not the luck in it.
- Welfare: the same with the values themselves known.

Both relax whole requests to fractions. They bound the *expected* revenue: one lucky run may pass 1.
"""

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from scheduler.backtest.demand import VALUE_MEDIAN, VALUE_SIGMA, Demand, Floats

if TYPE_CHECKING:
    import scipy.sparse

DESCENT_STEPS = 150  # more of them lower the bound by less than 0.1 %
FIRST_MULTIPLIER = 0.5
STEP = 0.3
MOMENTUM, SCALE_MOMENTUM = 0.9, 0.99
MULTIPLIER_MAX = 30.0  # far above what anybody pays
TABLE_POINTS, TABLE_END = 1001, 25.0
PRICES = np.geomspace(0.3, 40.0, 1200)  # at which the seller may offer
TIE = 1e-9
REVENUE_SEGMENTS = 40  # of the concave revenue of one request in its probability of sale


@dataclass(frozen=True, slots=True)
class Bounds:
    revenue: float
    welfare: float


def bounds(demand: Demand, *, steps: int = DESCENT_STEPS) -> Bounds:
    """Return both bounds by dual descent."""
    return Bounds(
        revenue=_dual(demand, is_revenue=True, steps=steps),
        welfare=_dual(demand, is_revenue=False, steps=steps),
    )


def _dual(demand: Demand, *, is_revenue: bool, steps: int) -> float:
    capacity, horizon = demand.capacity, demand.horizon_hours
    starts, owner, first = demand.starts, demand.owner, demand.first
    lengths = demand.hours[owner]
    ends = starts + lengths
    gpu_hours = (demand.gpus * demand.hours).astype(np.float64)
    gpus = demand.gpus.astype(np.float64)
    counts = np.diff(first, append=len(starts))
    grid, profit, sale = _single_request()
    multiplier = np.full(horizon, FIRST_MULTIPLIER)
    momentum, scale = np.zeros(horizon), np.zeros(horizon)
    best = np.inf
    for step in range(steps):
        cumulated = np.concatenate([[0.0], np.cumsum(multiplier)])
        mean = (cumulated[ends] - cumulated[starts]) / lengths
        least = np.minimum.reduceat(mean, first)
        if is_revenue:
            relative = least / demand.scale
            gain = demand.scale * np.interp(relative, grid, profit)
            quantity = np.interp(relative, grid, sale)
        else:
            gain = np.maximum(demand.value - least, 0)
            quantity = (demand.value > least).astype(np.float64)
        best = min(best, float(capacity * multiplier.sum() + gpu_hours @ gain))
        is_least = mean <= np.repeat(least, counts) + TIE
        parts = is_least / np.repeat(np.add.reduceat(is_least.astype(np.float64), first), counts)
        taken = np.repeat(gpus * quantity, counts) * parts
        use = np.cumsum(
            np.bincount(starts, taken, horizon + 1) - np.bincount(ends, taken, horizon + 1)
        )[:horizon]
        slope = (capacity - use) / capacity
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * slope
        scale = SCALE_MOMENTUM * scale + (1 - SCALE_MOMENTUM) * slope * slope
        pace = STEP / np.sqrt(1 + step / 20)
        multiplier = np.clip(
            multiplier - pace * momentum / (np.sqrt(scale) + 0.01), 0, MULTIPLIER_MAX
        )
    return best


@cache
def _single_request() -> tuple[Floats, Floats, Floats]:
    """Return, by opportunity cost, the best expected gain per GPU-hour and its probability of sale."""
    grid = np.linspace(0, TABLE_END, TABLE_POINTS)
    buying = _buying(PRICES)
    gains = (PRICES[None, :] - grid[:, None]) * buying[None, :]
    best = gains.argmax(axis=1)
    profit = np.maximum(gains[np.arange(len(grid)), best], 0)
    return grid, profit, np.where(profit > 0, buying[best], 0)


def _buying(prices: Floats) -> Floats:
    """Return which share of tenants pays each price."""
    normal = NormalDist()
    return np.array(
        [1 - normal.cdf(np.log(price / VALUE_MEDIAN) / VALUE_SIGMA) for price in prices.tolist()]
    )


def exact_welfare(demand: Demand) -> float:
    """Solve the welfare program with HiGHS."""
    return _solve(
        demand,
        gain=demand.value[demand.owner],
        column_owner=demand.owner,
        column_start=demand.starts,
        upper=np.ones(len(demand.starts)),
        segment=np.zeros(len(demand.starts), dtype=np.int64),
        segments=1,
    )


def exact_revenue(demand: Demand, *, segments: int = REVENUE_SEGMENTS) -> float:
    """Solve the revenue program with HiGHS, revenue being piecewise linear in the probability of sale.

    Marginal revenues fall from segment to segment, so that the program fills them in order.
    """
    edges = np.linspace(0, 1, segments + 1)
    quantiles = np.array(
        [NormalDist().inv_cdf(1 - edge) for edge in np.clip(edges, 1e-9, 1 - 1e-9).tolist()]
    )
    revenue = edges * VALUE_MEDIAN * np.exp(VALUE_SIGMA * quantiles)
    marginal = np.diff(revenue) / np.diff(edges)
    count = len(demand.starts)
    return _solve(
        demand,
        gain=np.tile(marginal, count) * np.repeat(demand.scale[demand.owner], segments),
        column_owner=np.repeat(demand.owner, segments),
        column_start=np.repeat(demand.starts, segments),
        upper=np.full(count * segments, 1 / segments),
        segment=np.tile(np.arange(segments), count),
        segments=segments,
    )


def _solve(
    demand: Demand,
    *,
    gain: Floats,
    column_owner: "np.typing.NDArray[np.int64]",
    column_start: "np.typing.NDArray[np.int64]",
    upper: Floats,
    segment: "np.typing.NDArray[np.int64]",
    segments: int,
) -> float:
    """Maximise the gain of fractions of candidates; loads are variables, chained from hour to hour."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix, hstack

    columns, horizon = len(gain), demand.horizon_hours
    gpus = demand.gpus[column_owner].astype(np.float64)
    lengths = demand.hours[column_owner]
    number = np.arange(columns)
    ends = column_start + lengths
    inside = ends < horizon
    moves = coo_matrix(
        (
            np.concatenate([gpus, -gpus[inside]]),
            (
                np.concatenate([column_start, ends[inside]]),
                np.concatenate([number, number[inside]]),
            ),
        ),
        shape=(horizon, columns),
    )
    hour = np.arange(horizon)
    chain = coo_matrix(
        (
            np.concatenate([-np.ones(horizon), np.ones(horizon - 1)]),
            (np.concatenate([hour, hour[1:]]), np.concatenate([hour, hour[:-1]])),
        ),
        shape=(horizon, horizon),
    )
    balance = hstack([moves, chain]).tocsr()
    group = column_owner * segments + segment
    once: scipy.sparse.coo_matrix = coo_matrix(
        (np.ones(columns), (group, number)), shape=(len(demand) * segments, columns + horizon)
    )
    result = linprog(
        -np.concatenate([gain * gpus * lengths, np.zeros(horizon)]),
        A_ub=once.tocsr(),
        b_ub=np.full(len(demand) * segments, upper[0]),
        A_eq=balance,
        b_eq=np.zeros(horizon),
        bounds=np.column_stack(
            [
                np.zeros(columns + horizon),
                np.concatenate([upper, np.full(horizon, float(demand.capacity))]),
            ]
        ),
        method="highs-ipm" if columns > 50_000 else "highs",
    )
    if not result.success:
        raise RuntimeError(f"HiGHS did not solve the program: {result.message}")
    return float(-result.fun)
