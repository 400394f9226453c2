"""Two scenes that show how prices behave at the ends: demand stops, and demand is five times what it was."""

from dataclasses import dataclass, replace

import numpy as np

from scheduler.backtest.demand import SETS, Demand, Floats, Ints, candidates, generate
from scheduler.backtest.engine import replay
from scheduler.backtest.policies import Clearing, base_micros, floor_micros
from scheduler.backtest.rooms import CountedRoom
from scheduler.backtest.spot import Spot
from scheduler.pricing import Rule
from scheduler.pricing.limits import MICROS_PER_UNIT

SCENES = ("no-demand", "shock")
CALM_HOURS = 21 * 24  # as usual, before the scene turns
SHOCK_HOURS = 48
SHOCK_MULTIPLE = 5
LOADS = {"no-demand": 1.2, "shock": 1.0}
SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Rates and use, hour by hour, as they were in force when each hour began.

    `firm[hour]` is the firm rate of that hour itself; `ahead[hour]` the mean rate of the seven days after.
    """

    name: str
    firm: Floats
    ahead: Floats
    reclaimable: Floats
    sold: Ints
    history: list[Ints]
    capacity: int
    base: float
    cap: float
    floor: float
    violations: int


def play(name: str) -> Scene:
    """Replay a scene; it is the same every time."""
    calm = generate(SETS["synthetic"], load=LOADS[name], seed=SEED, with_shock=False)
    demand = _stopped(calm) if name == "no-demand" else _shocked(calm)
    rule = Rule()
    policy = Clearing(rule=rule, keeps_history=True)
    outcome = replay(
        demand,
        policy=policy,
        room=CountedRoom(capacity=demand.capacity, horizon_hours=demand.horizon_hours),
        spot=Spot(seed=SEED, rule=rule, has_stream=name != "no-demand"),
    )
    assert outcome.spot is not None, "the scene has a reclaimable tier"
    base = base_micros(demand)
    return Scene(
        name=name,
        firm=outcome.paid_at_start,
        ahead=np.array(
            [
                rates[hour : hour + 7 * 24].mean() / MICROS_PER_UNIT
                for hour, rates in enumerate(policy.history)
            ]
        ),
        reclaimable=outcome.spot.rates,
        sold=outcome.sold,
        history=policy.history,
        capacity=demand.capacity,
        base=base / MICROS_PER_UNIT,
        cap=base * float(rule.cap_multiple) / MICROS_PER_UNIT,
        floor=floor_micros(demand) / (1 - rule.fee_basis_points / 10_000) / MICROS_PER_UNIT,
        violations=policy.violations,
    )


def _stopped(demand: Demand) -> Demand:
    """Return a demand without the requests that come after the calm."""
    return _chosen(demand, np.flatnonzero(demand.comes_hours < CALM_HOURS))


def _shocked(demand: Demand) -> Demand:
    """Return a demand in which every request of the two days after the calm comes five times."""
    comes = demand.comes_hours
    inside = (comes >= CALM_HOURS) & (comes < CALM_HOURS + SHOCK_HOURS)
    return _chosen(demand, np.repeat(np.arange(len(demand)), np.where(inside, SHOCK_MULTIPLE, 1)))


def _chosen(demand: Demand, numbers: Ints) -> Demand:
    """Return a demand of some requests, in order; one may stand there several times."""
    last = np.append(demand.first[1:], len(demand.starts)) - 1
    starts, first = candidates(
        earliest=demand.starts[demand.first[numbers]], latest=demand.starts[last[numbers]]
    )
    return replace(
        demand,
        asked_hours=demand.asked_hours[numbers],
        comes_hours=demand.comes_hours[numbers],
        gpus=demand.gpus[numbers],
        hours=demand.hours[numbers],
        value=demand.value[numbers],
        scale=demand.scale[numbers],
        starts=starts,
        owner=np.repeat(np.arange(len(numbers)), np.diff(first, append=len(starts))),
        first=first,
    )
