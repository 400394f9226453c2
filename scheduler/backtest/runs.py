"""The grid of a backtest: sets × loads × seeds, each with its bounds and every policy."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from decimal import Decimal
from multiprocessing import get_context

from scheduler.backtest.bounds import Bounds, bounds
from scheduler.backtest.demand import BASE_RATE, LOADS, SETS, Demand, Floats, generate
from scheduler.backtest.engine import Outcome, replay
from scheduler.backtest.policies import Clearing, LinearSurge, Policy, Static, TimeOfWeek
from scheduler.backtest.rooms import CountedRoom, PackedRoom
from scheduler.backtest.spot import Spot
from scheduler.pricing import Rule

ROOMS = {"counted": CountedRoom, "packed": PackedRoom}
# Tuned in hindsight for revenue on the tuning seeds: `--tune` prints what they follow from.
STATIC_BEST_SINGLE = 2.5
STATIC_BY_LOAD = {
    "long": {0.6: 2.1, 1.2: 2.7, 2.0: 2.9},
    "short": {0.6: 2.3, 1.2: 2.5, 2.0: 2.9},
}
LINEAR_START = 2.0
TIME_OF_WEEK_PRICE = 2.5
OURS = "clearing"
SPOILED = {"clearing_half": 0.5, "clearing_double": 2.0, "clearing_flat": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One demand, to be replayed against some policies."""

    demand_set: str
    load: float
    seed: int
    policies: tuple[str, ...]
    room: str
    series: Floats | None
    with_spot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one policy came to on one demand.

    Revenue and welfare are ratios to their bounds; use, fill, refusals and what was reclaimed are shares;
    price percentiles, weighted by GPU-hours sold, are multiples of the base rate. Unknown is `None`.
    """

    demand_set: str
    load: float
    seed: int
    room: str
    policy: str
    revenue: float
    welfare: float
    use: float
    fill_requests: float
    fill_gpu_hours: float
    no_room: float
    price_p5: float | None
    price_p50: float | None
    price_p95: float | None
    price_mean: float | None
    use_with_spot: float | None
    revenue_with_spot: float | None
    spot_reclaimed: float | None
    limits_broken: int
    bound_revenue: float
    bound_welfare: float


COLUMNS = tuple(field.name for field in fields(Row))
POLICIES = (
    OURS,
    "static_monopoly",
    "static_single",
    "static_by_load",
    "time_of_week",
    "linear_surge",
)


def rule_for(room: str) -> Rule:
    """Return the market's rule; an ideal divisible pool has no holes, so that all of it is sellable."""
    return Rule(sellable_share=Decimal(1)) if room == "counted" else Rule()


def policy(name: str, *, mix: str, load: float, room: str, base_rate: float = BASE_RATE) -> Policy:
    """Return a policy by name; tuned ones at the price that was best for the load, scaled to the base."""
    scale = base_rate / BASE_RATE
    rule = rule_for(room)
    by_load = STATIC_BY_LOAD[mix]
    made: dict[str, Callable[[], Policy]] = {
        OURS: lambda: Clearing(rule=rule),
        "clearing_flat": lambda: Clearing(name="clearing_flat", rule=rule, is_flat=True),
        "clearing_half": lambda: Clearing(name="clearing_half", rule=rule, forecast_factor=0.5),
        "clearing_double": lambda: Clearing(name="clearing_double", rule=rule, forecast_factor=2.0),
        "static_monopoly": lambda: Static(base_rate, name="static_monopoly"),
        "static_single": lambda: Static(STATIC_BEST_SINGLE * scale, name="static_single"),
        "static_by_load": lambda: Static(
            by_load[min(by_load, key=lambda known: abs(known - load))] * scale,
            name="static_by_load",
        ),
        "time_of_week": lambda: TimeOfWeek(TIME_OF_WEEK_PRICE * scale),
        "linear_surge": lambda: LinearSurge(LINEAR_START * scale),
    }
    return made[name]()


def policies_in(room: str, *, policies: Sequence[str]) -> tuple[str, ...]:
    """Return those that are worth replaying in a room: what a spoiled forecast costs, counts tell alone."""
    return tuple(name for name in policies if room == "counted" or name not in SPOILED)


def jobs(
    *,
    sets: Sequence[str],
    loads: Sequence[float] = LOADS,
    seeds: Sequence[int] | None = None,
    policies: Sequence[str] = POLICIES,
    rooms: Sequence[str] = tuple(ROOMS),
    series: Floats | None = None,
    with_spot: bool = True,
) -> list[Job]:
    """Return the grid; without `seeds` each set has its own."""
    return [
        Job(
            demand_set=name,
            load=load,
            seed=seed,
            policies=policies_in(room, policies=policies),
            room=room,
            series=series if SETS[name].is_real else None,
            with_spot=with_spot,
        )
        for room in rooms
        for name in sets
        for seed in (seeds or SETS[name].seeds)
        for load in loads
    ]


def run(job: Job) -> list[Row]:
    """Replay one demand against its policies."""
    chosen = SETS[job.demand_set]
    demand = generate(chosen, load=job.load, seed=job.seed, series=job.series)
    return run_demand(
        demand,
        policies=job.policies,
        room=job.room,
        with_spot=job.with_spot,
        demand_set=job.demand_set,
        mix=chosen.mix,
        load=job.load,
        seed=job.seed,
    )


def run_demand(
    demand: Demand,
    *,
    policies: Sequence[str],
    room: str,
    with_spot: bool,
    demand_set: str,
    mix: str,
    load: float,
    seed: int,
) -> list[Row]:
    """Replay a demand that is already there; only our own method has a reclaimable tier."""
    bound = bounds(demand)
    rows = []
    for name in policies:
        chosen = policy(name, mix=mix, load=load, room=room, base_rate=demand.base_rate)
        outcome = replay(
            demand,
            policy=chosen,
            room=ROOMS[room](capacity=demand.capacity, horizon_hours=demand.horizon_hours),
            spot=Spot(seed=seed, rule=rule_for(room)) if with_spot and name == OURS else None,
        )
        rows.append(
            _row(
                outcome,
                bound=bound,
                demand=demand,
                chosen=chosen,
                demand_set=demand_set,
                load=load,
                seed=seed,
                room=room,
            )
        )
    return rows


def run_all(grid: Sequence[Job], *, processes: int) -> Iterator[list[Row]]:
    """Yield the rows of each job as it ends."""
    if processes <= 1:
        yield from map(run, grid)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        for done in as_completed([pool.submit(run, job) for job in grid]):
            yield done.result()


def _row(
    outcome: Outcome,
    *,
    bound: Bounds,
    demand: Demand,
    chosen: Policy,
    demand_set: str,
    load: float,
    seed: int,
    room: str,
) -> Row:
    spot = outcome.spot
    low, median, high = outcome.price_percentiles or (None, None, None)
    base = demand.base_rate
    return Row(
        demand_set=demand_set,
        load=load,
        seed=seed,
        room=room,
        policy=chosen.name,
        revenue=outcome.revenue / bound.revenue,
        welfare=outcome.welfare / bound.welfare,
        use=outcome.use,
        fill_requests=outcome.fill_requests,
        fill_gpu_hours=outcome.fill_gpu_hours,
        no_room=outcome.no_room,
        price_p5=None if low is None else low / base,
        price_p50=None if median is None else median / base,
        price_p95=None if high is None else high / base,
        price_mean=None if outcome.price_mean is None else outcome.price_mean / base,
        use_with_spot=None if spot is None else outcome.use + spot.use,
        revenue_with_spot=None
        if spot is None
        else (outcome.revenue + spot.revenue) / bound.revenue,
        spot_reclaimed=None if spot is None else spot.reclaimed_share,
        limits_broken=chosen.violations if isinstance(chosen, Clearing) else 0,
        bound_revenue=bound.revenue,
        bound_welfare=bound.welfare,
    )
