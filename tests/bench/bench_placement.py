"""What share of an ideal divisible pool's GPU-hours our placement accepts, beside first fit.

    python -m tests.bench.bench_placement [--trace FILE] [--loads 1.3 0.9] [--seeds 8] [--processes 2]

64 nodes of 8 GPUs in four islands over 60 days, from empty; requests in the order in which they are
submitted; those of 16 GPUs and more need whole nodes of one island. The reference serves the same order
and asks only whether enough GPUs are free in every hour. `FILE` has hourly counts of submitted jobs in its
column `jobs`; without it, requests follow a made-up day and week.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scheduler.packing import Layout, Packer, Piece, Placement, Request
from scheduler.states import Spread

NODES, ISLANDS, GPUS_PER_NODE, HOURS = 64, 4, 8, 60 * 24
LARGE_GPUS = 16  # from here on a request stands for those that scattering starves
BIND_HOURS = 0.5  # binding to a node is final half an hour before the start
SIZES = (1, 2, 4, 8, 16, 32, 64)
MIXES = {
    "trace": (0.741, 0.0525, 0.0525, 0.098, 0.026, 0.0145, 0.0155),
    "market": (0.25, 0.10, 0.12, 0.30, 0.13, 0.07, 0.03),
}
# Hours: log-uniform within each class, as jobs of a real cluster fall, up to thirty days.
DURATIONS = ((1, 6, 0.50), (6, 24, 0.217), (24, 72, 0.069), (72, 720, 0.214))

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A request and the hour, with its fraction, at which it comes."""

    at_hour: float
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What was accepted of one run, as shares of what the count reference accepts."""

    gpu_hours: float
    large: float
    seconds: float


def workload(
    *,
    mix: str,
    load: float,
    seed: int,
    hourly: Floats | None = None,
    sizes: Sequence[int] = SIZES,
    nodes: int = NODES,
    hours: int = HOURS,
) -> list[Submitted]:
    """Return requests whose GPU-hours are `load` times what the nodes have, in their order of submission."""
    rng = np.random.default_rng([seed, int(load * 100), sorted(MIXES).index(mix)])
    shares = np.array(MIXES[mix][: len(sizes)])
    shares /= shares.sum()
    weights = hourly[:hours] if hourly is not None else _made_up_hours(rng, hours=hours)
    cumulated = np.concatenate(([0.0], np.cumsum(weights)))
    capacity = nodes * GPUS_PER_NODE * hours
    found: list[Submitted] = []
    offered = 0
    while offered < load * capacity:
        gpus = int(rng.choice(sizes, p=shares))
        low, high, _ = DURATIONS[rng.choice(len(DURATIONS), p=[share for *_, share in DURATIONS])]
        length = min(round(np.exp(rng.uniform(np.log(low), np.log(high)))), hours // 2)
        last_start = hours - length
        drawn = rng.uniform(0, cumulated[last_start + 1])
        start = min(int(np.searchsorted(cumulated, drawn, side="right")) - 1, last_start)
        request = Request(
            id=f"{len(found)}",
            gpus=gpus,
            start_hour=start,
            end_hour=start + length,
            spread=Spread.SAME_FABRIC,
        )
        found.append(Submitted(at_hour=start - _lead_hours(rng), request=request))
        offered += request.gpu_hours
    return sorted(found, key=lambda submitted: submitted.at_hour)


def count_reference(
    submitted: Sequence[Submitted], *, nodes: int = NODES, hours: int = HOURS
) -> set[str]:
    """Return what an ideal divisible pool accepts, in the same order."""
    free = np.full(hours, nodes * GPUS_PER_NODE)
    accepted = set()
    for each in submitted:
        request = each.request
        window = free[request.start_hour : request.end_hour]
        if window.min() >= request.gpus:
            window -= request.gpus
            accepted.add(request.id)
    return accepted


def two_level(
    submitted: Sequence[Submitted],
    *,
    nodes: int = NODES,
    islands: int = ISLANDS,
    hours: int = HOURS,
    tries: int = 8,
) -> set[str]:
    """Return what our packing accepts."""
    packer = Packer(nodes=nodes, islands=islands, hours=hours, tries=tries)
    accepted = set()
    for each in submitted:
        request = each.request
        packer.advance(int(np.floor(each.at_hour + BIND_HOURS)))
        placed = packer.place(
            request.id,
            gpus=request.gpus,
            start_hour=request.start_hour,
            hours=request.end_hour - request.start_hour,
            spread=request.spread,
        )
        if placed is not None:
            accepted.add(request.id)
    return accepted


def first_fit(
    submitted: Sequence[Submitted],
    *,
    nodes: int = NODES,
    islands: int = ISLANDS,
    hours: int = HOURS,
) -> set[str]:
    """Return what first fit accepts that binds at once and never moves anybody."""
    layout = Layout(islands=[nodes // islands] * islands, gpus_per_node=GPUS_PER_NODE, hours=hours)
    accepted = set()
    for each in submitted:
        pieces = _first_fitting(layout, each.request)
        if pieces is not None:
            layout.put(Placement(request=each.request, pieces=pieces))
            accepted.add(each.request.id)
    return accepted


POLICIES: dict[str, Callable[..., set[str]]] = {"two_level": two_level, "first_fit": first_fit}


def score(
    submitted: Sequence[Submitted],
    *,
    accept: Callable[[Sequence[Submitted]], set[str]],
    **pool: int,
) -> Score:
    """Compare what a policy accepts with the count reference."""
    reference = count_reference(
        submitted, **{name: value for name, value in pool.items() if name != "islands"}
    )
    began = time.perf_counter()
    accepted = accept(submitted, **pool)
    seconds = time.perf_counter() - began
    requests = [each.request for each in submitted]
    large = [r.id for r in requests if r.gpus >= LARGE_GPUS]
    return Score(
        gpu_hours=sum(r.gpu_hours for r in requests if r.id in accepted)
        / sum(r.gpu_hours for r in requests if r.id in reference),
        large=len(accepted.intersection(large)) / max(1, len(reference.intersection(large))),
        seconds=seconds,
    )


def read_trace(path: Path) -> Floats:
    """Return the hourly numbers of submitted jobs, an outlier counted as five times the median."""
    with path.open(newline="") as lines:
        jobs = np.array([float(row["jobs"]) for row in csv.DictReader(lines)])
    clipped: Floats = np.minimum(jobs, 5 * np.median(jobs))
    return clipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--loads", type=float, nargs="+", default=[1.3, 0.9])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    hourly = None
    if options.trace is not None and options.trace.is_file():
        hourly = read_trace(options.trace)
        say(f"starts follow {options.trace.name}, from another hour for each seed")
    else:
        say("no trace given, or no such file: starts follow a made-up day and week")
    say("policy      mix     load   GPU-hours ÷ count   ≥ 16 GPUs ÷ count   s per run")
    cells = [(mix, load) for load in options.loads for mix in MIXES]
    with ProcessPoolExecutor(options.processes) as processes:
        for name in POLICIES:
            for mix, load in cells:
                jobs = [
                    processes.submit(_run, name, mix, load, seed, hourly)
                    for seed in range(1, options.seeds + 1)
                ]
                scores = [job.result() for job in jobs]
                say(
                    f"{name:10}  {mix:6}  {load:4.1f}   {_mean(s.gpu_hours for s in scores)}"
                    f"      {_mean(s.large for s in scores)}      {_mean(s.seconds for s in scores)}"
                )


def _run(name: str, mix: str, load: float, seed: int, hourly: Floats | None) -> Score:
    rolled = None if hourly is None else np.roll(hourly, -24 * 7 * (4 + seed % 10))
    submitted = workload(mix=mix, load=load, seed=seed, hourly=rolled)
    return score(submitted, accept=POLICIES[name])


def _mean(values: Iterator[float]) -> str:
    found = list(values)
    spread = np.std(found, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else 0.0
    return f"{np.mean(found):6.3f} ± {spread:.3f}"


def _made_up_hours(rng: np.random.Generator, *, hours: int) -> Floats:
    hour = np.arange(hours)
    day = 1 + 0.45 * np.cos(2 * np.pi * (hour % 24 - 15) / 24)
    week = np.where(hour // 24 % 7 >= 5, 0.65, 1.1)
    weather = np.repeat(rng.lognormal(0, 0.18, hours // 24 + 1), 24)[:hours]
    made_up: Floats = day * week * weather
    return made_up


def _lead_hours(rng: np.random.Generator) -> float:
    kind = rng.uniform()
    if kind < 0.40:
        return float(rng.exponential(3))
    if kind < 0.75:
        return float(np.exp(rng.uniform(np.log(6), np.log(168))))
    return float(rng.uniform(168, 720) if kind < 0.95 else rng.uniform(720, 1440))


def _first_fitting(layout: Layout, request: Request) -> tuple[Piece, ...] | None:
    used = layout.used[:, request.start_hour : request.end_hour].max(axis=1)
    if request.gpus < GPUS_PER_NODE:
        rows = np.flatnonzero(used + request.gpus <= GPUS_PER_NODE)
        return (Piece(int(rows[0]), request.gpus),) if len(rows) else None
    nodes = request.gpus // GPUS_PER_NODE
    for island in range(len(layout.island_sizes)):
        idle = [row for row in layout.rows_of(island) if used[row] == 0]
        if len(idle) >= nodes:
            return tuple(Piece(row, GPUS_PER_NODE) for row in idle[:nodes])
    return None


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
