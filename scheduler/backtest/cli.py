"""What `manage.py backtest` does, with a progress bar: replays, tables, pictures."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scheduler.backtest import plots, report, runs, scenes
from scheduler.backtest.demand import DURATIONS, LOADS, SETS, Demand, generate
from scheduler.backtest.engine import replay
from scheduler.backtest.policies import LinearSurge, Policy, Static, TimeOfWeek
from scheduler.backtest.rooms import CountedRoom
from scheduler.backtest.runs import Job, Row
from scheduler.backtest.traces import TraceUnreadable, read_counts, read_requests

T = TypeVar("T")
STATIC_PRICES = (1.93, 2.1, 2.3, 2.5, 2.7, 2.9, 3.1)
LINEAR_STARTS = (1.7, 1.8, 1.9, 2.0, 2.1, 2.2)
TUNING_SETS = {"long": "ali", "short": "synthetic"}


def replay_grid(
    *,
    sets: Sequence[str],
    loads: Sequence[float],
    seeds: Sequence[int] | None,
    policies: Sequence[str],
    counts: Path | None,
    rooms: Sequence[str],
    processes: int,
    out: Path,
) -> list[Path]:
    """Replay sets × loads × seeds and write the tables and the pictures of the first of them.

    :raises TraceUnreadable: when a set of real arrivals is asked for without its counts.
    """
    series = None if counts is None else read_counts(counts)
    if series is None and (real := [name for name in sets if SETS[name].is_real]):
        raise TraceUnreadable(
            f"the set {real[0]!r} needs --counts: hourly requests of a real cluster"
        )
    grid = runs.jobs(
        sets=sets, loads=loads, seeds=seeds, policies=policies, rooms=rooms, series=series
    )
    rows: list[Row] = []
    for found in _progress(
        runs.run_all(grid, processes=processes), total=len(grid), text="replaying"
    ):
        rows += found
        # Kept up as it grows: a run that is broken off leaves what it has measured.
        report.write_csv(rows, path=out / "results.csv")
    first = grid[0]
    demand = generate(SETS[first.demand_set], load=first.load, seed=first.seed, series=first.series)
    return _written(rows, demand=demand, job=first, out=out)


def replay_trace(
    *, trace: Path, capacity: int, policies: Sequence[str], rooms: Sequence[str], out: Path
) -> list[Path]:
    """Replay the requests of a file.

    :raises TraceUnreadable: when the file does not hold requests.
    """
    demand = read_requests(trace, capacity=capacity)
    gpu_hours = float((demand.gpus * demand.hours).sum())
    load = round(gpu_hours / (demand.capacity * demand.horizon_hours), 2)
    job = Job(
        demand_set=trace.stem,
        load=load,
        seed=0,
        policies=tuple(policies),
        room=rooms[0],
        series=None,
        with_spot=True,
    )
    rows: list[Row] = []
    replays = [(room, name) for room in rooms for name in runs.policies_in(room, policies=policies)]
    for room, name in _progress(replays, total=len(replays), text="replaying"):
        rows += runs.run_demand(
            demand,
            policies=[name],
            room=room,
            with_spot=True,
            demand_set=trace.stem,
            mix="long",
            load=load,
            seed=0,
        )
    report.write_csv(rows, path=out / "results.csv")
    return _written(rows, demand=demand, job=job, out=out)


def draw_scenes(*, out: Path) -> list[Path]:
    """Play both scenes and draw them."""
    written = []
    for name in _progress(scenes.SCENES, total=len(scenes.SCENES), text="playing"):
        path = out / f"{name}.png"
        plots.draw_scene(scenes.play(name), path=path)
        written.append(path)
    return written


def tune(*, counts: Path | None, out: Path, seeds: Sequence[int]) -> list[Path]:
    """Find the prices at which the rivals earn most on the tuning seeds, placement being counted."""
    series = None if counts is None else read_counts(counts)
    lines = [
        "| mix | load | policy | price | revenue per GPU-hour of the pool |",
        "|---|---|---|---|---|",
    ]
    mixes = [mix for mix in DURATIONS if series is not None or not SETS[TUNING_SETS[mix]].is_real]
    cells = [(mix, load) for mix in mixes for load in LOADS]
    for mix, load in _progress(cells, total=len(cells), text="tuning"):
        demands = [
            generate(SETS[TUNING_SETS[mix]], load=load, seed=seed, series=series) for seed in seeds
        ]
        rivals: list[Static | TimeOfWeek | LinearSurge] = [
            *(Static(price) for price in STATIC_PRICES),
            *(TimeOfWeek(price) for price in STATIC_PRICES),
            *(LinearSurge(start) for start in LINEAR_STARTS),
        ]
        for rival in rivals:
            earned = np.mean([_revenue(demand, rival) for demand in demands])
            lines.append(f"| {mix} | {load} | {rival.name} | {rival.price} | {earned:.4f} |")
    path = out / "tuning.md"
    path.write_text("\n".join(lines) + "\n")
    return [path]


def _revenue(demand: Demand, policy: Policy) -> float:
    pool = demand.capacity * demand.horizon_hours
    room = CountedRoom(capacity=demand.capacity, horizon_hours=demand.horizon_hours)
    return replay(demand, policy=policy, room=room).revenue / pool


def _written(rows: Sequence[Row], *, demand: Demand, job: Job, out: Path) -> list[Path]:
    """Write the summary, and pictures of one demand with counted placement."""
    summary = out / "summary.md"
    summary.write_text(report.markdown(rows))
    mix = SETS[job.demand_set].mix if job.demand_set in SETS else "long"
    outcomes = [
        (
            name,
            replay(
                demand,
                policy=runs.policy(
                    name, mix=mix, load=job.load, room="counted", base_rate=demand.base_rate
                ),
                room=CountedRoom(capacity=demand.capacity, horizon_hours=demand.horizon_hours),
            ),
        )
        for name in job.policies
        if name in (runs.OURS, "static_by_load", "linear_surge")
    ]
    plots.draw_prices(outcomes, demand=demand, path=out / "price.png")
    plots.draw_use(outcomes, demand=demand, path=out / "occupancy.png")
    return [out / name for name in ("results.csv", "summary.md", "price.png", "occupancy.png")]


def _progress(items: Iterable[T], *, total: int, text: str) -> Iterator[T]:
    """Yield the items and show how many are done."""
    with Progress(
        TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    ) as bar:
        task = bar.add_task(text, total=total)
        for item in items:
            yield item
            bar.advance(task)
