"""Replay one demand against one policy: who is quoted what, who buys, who finds no room."""

from dataclasses import dataclass

import numpy as np

from scheduler.backtest.demand import Demand, Floats, Ints
from scheduler.backtest.policies import Policy
from scheduler.backtest.rooms import Room
from scheduler.backtest.spot import Spot, SpotOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a replay came to. Shares are of all requests, or of the pool's GPU-hours (`use`)."""

    revenue: float
    welfare: float
    use: float
    fill_requests: float
    fill_gpu_hours: float
    no_room: float
    price_percentiles: tuple[float, float, float] | None
    price_mean: float | None
    sold: Ints
    paid_at_start: Floats
    spot: SpotOutcome | None


def replay(demand: Demand, *, policy: Policy, room: Room, spot: Spot | None = None) -> Outcome:
    """Let every request come in its hour, see the rates in force and take the cheapest start with room.

    It buys when that start costs no more than it is worth. Rates hold for a clock hour, so that a quote is
    honoured by construction.
    """
    policy.open(demand)
    buying_hour = np.floor(demand.comes_hours).astype(np.int64)
    last = np.searchsorted(buying_hour, np.arange(demand.horizon_hours), side="right")
    paid = np.zeros(len(demand))
    bought = np.zeros(len(demand), dtype=bool)
    refused = 0
    at_start = np.zeros(demand.horizon_hours)
    begin = 0
    if spot is not None:
        spot.open(demand)
    for hour in range(demand.horizon_hours):
        rates = policy.rates(hour=hour, sold=room.sold)
        at_start[hour] = rates[hour]
        room.advance(hour=hour)
        end = int(last[hour])
        if end > begin:
            batch = _quoted(demand, begin=begin, end=end, rates=rates)
            for number, starts, prices in batch:
                for start, price in zip(starts, prices, strict=True):
                    if room.take(
                        number=number,
                        gpus=int(demand.gpus[number]),
                        start=start,
                        hours=int(demand.hours[number]),
                    ):
                        bought[number], paid[number] = True, price
                        break
                else:
                    refused += 1
        if spot is not None:
            spot.advance(
                hour=hour,
                firm_rates=rates,
                firm_sold=room.sold,
                rejected=~bought[begin:end],
                begin=begin,
            )
        begin = end
    gpu_hours = (demand.gpus * demand.hours).astype(np.float64)
    sold_hours = gpu_hours[bought]
    pool = demand.capacity * demand.horizon_hours
    return Outcome(
        revenue=float(gpu_hours @ paid),
        welfare=float(gpu_hours[bought] @ demand.value[bought]),
        use=float(sold_hours.sum() / pool),
        fill_requests=float(bought.mean()),
        fill_gpu_hours=float(sold_hours.sum() / gpu_hours.sum()),
        no_room=refused / len(demand),
        price_percentiles=_percentiles(paid[bought], weights=sold_hours),
        price_mean=float(gpu_hours @ paid / sold_hours.sum()) if bought.any() else None,
        sold=room.sold.copy(),
        paid_at_start=at_start,
        spot=None if spot is None else spot.outcome(),
    )


def _percentiles(prices: Floats, *, weights: Floats) -> tuple[float, float, float] | None:
    """Return the 5th, 50th and 95th weighted percentile."""
    if not len(prices):
        return None
    order = np.argsort(prices, kind="stable")
    reached = np.cumsum(weights[order])
    low, median, high = (
        float(prices[order][np.searchsorted(reached, reached[-1] * share)])
        for share in (0.05, 0.5, 0.95)
    )
    return low, median, high


def _quoted(
    demand: Demand, *, begin: int, end: int, rates: Floats
) -> list[tuple[int, list[int], list[float]]]:
    """Return those of some requests who can pay for one of their starts, with these, the cheapest first."""
    lower = int(demand.first[begin])
    upper = int(demand.first[end]) if end < len(demand) else len(demand.starts)
    starts, owner = demand.starts[lower:upper], demand.owner[lower:upper]
    lengths = demand.hours[owner]
    cumulated = np.concatenate([[0.0], np.cumsum(rates)])
    means = (cumulated[starts + lengths] - cumulated[starts]) / lengths
    payable = np.flatnonzero(means <= demand.value[owner])
    order = payable[np.lexsort((starts[payable], means[payable], owner[payable]))]
    found: list[tuple[int, list[int], list[float]]] = []
    for number, start, mean in zip(
        owner[order].tolist(), starts[order].tolist(), means[order].tolist(), strict=True
    ):
        if not found or found[-1][0] != number:
            found.append((number, [], []))
        found[-1][1].append(start)
        found[-1][2].append(mean)
    # Within the hour in the order of asking, which is that of the numbers.
    return found
