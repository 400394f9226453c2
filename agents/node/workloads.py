"""Scripted work for simulated GPUs: what a GPU does is a pure function of its name and the time.

Each script repeats with a period and is constant within a slot of `SLOT_SECONDS`. So the energy counter can
be computed for any instant without having watched, and a test can ask what a GPU did last Tuesday.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import itertools
from dataclasses import dataclass
from enum import StrEnum

SLOT_SECONDS = 5
ORIGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)  # where the energy counters of simulated GPUs start


class Workload(StrEnum):
    """What somebody does with a GPU."""

    IDLE = "idle"
    TRAINING = "training"
    BATCH = "batch"
    INFERENCE = "inference"
    TENANT = "tenant"


# Every second GPU of a mixed fleet idles, so that there is something to find.
MIXED = (
    Workload.IDLE,
    Workload.TRAINING,
    Workload.IDLE,
    Workload.BATCH,
    Workload.IDLE,
    Workload.INFERENCE,
)

PERIOD_SECONDS = {
    Workload.IDLE: SLOT_SECONDS,
    Workload.TRAINING: 1800,
    Workload.BATCH: 7200,
    Workload.INFERENCE: 3600,
    Workload.TENANT: 300,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What a GPU does in one slot: load in percent, memory held in percent of its size, processes."""

    utilization_percent: int = 0
    memory_percent: int = 0
    process_count: int = 0


def activity(*, workload: Workload, gpu_uuid: str, at: dt.datetime) -> Activity:
    """Return what the GPU does in the slot that holds `at`."""
    slots = _script(workload, gpu_uuid)
    return slots[int((at - ORIGIN).total_seconds() // SLOT_SECONDS) % len(slots)]


def load_seconds(*, workload: Workload, gpu_uuid: str, until: dt.datetime) -> float:
    """Return the integral of the load (0 to 1) from `ORIGIN` until `until`, in seconds of full load."""
    sums = _load_sums(workload, gpu_uuid)
    elapsed = (until - ORIGIN).total_seconds()
    period = (len(sums) - 1) * SLOT_SECONDS
    whole, rest = divmod(elapsed, period)
    slot, part = divmod(rest, SLOT_SECONDS)
    load = sums[int(slot) + 1] - sums[int(slot)]
    return whole * sums[-1] + sums[int(slot)] + load * part / SLOT_SECONDS


def draw(*, seed: str, below: int) -> int:
    """Return a number in `[0, below)` that depends on `seed` alone."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) % below


@functools.lru_cache(maxsize=1024)
def _script(workload: Workload, gpu_uuid: str) -> tuple[Activity, ...]:
    count = PERIOD_SECONDS[workload] // SLOT_SECONDS
    return tuple(_slot(workload, gpu_uuid, slot) for slot in range(count))


@functools.lru_cache(maxsize=1024)
def _load_sums(workload: Workload, gpu_uuid: str) -> tuple[float, ...]:
    loads = (a.utilization_percent / 100 * SLOT_SECONDS for a in _script(workload, gpu_uuid))
    return tuple(itertools.accumulate(loads, initial=0.0))


def _slot(workload: Workload, gpu_uuid: str, slot: int) -> Activity:
    seconds = slot * SLOT_SECONDS
    jitter = draw(seed=f"{workload}/{gpu_uuid}/{slot}", below=16)
    if workload is Workload.TRAINING:
        saving = seconds % 600 < 45  # a checkpoint every ten minutes: no kernel runs, memory stays
        return Activity(
            utilization_percent=0 if saving else 84 + jitter, memory_percent=88, process_count=1
        )
    if workload is Workload.BATCH:
        # A queue in rounds of 40 minutes: a job of 8 to 20 minutes, then nothing until the next round.
        job_seconds = 480 + draw(seed=f"job/{gpu_uuid}/{seconds // 2400}", below=721)
        if seconds % 2400 >= job_seconds:
            return Activity()
        return Activity(utilization_percent=75 + jitter, memory_percent=60, process_count=1)
    if workload is Workload.INFERENCE:
        asked = seconds % 3600 < 20  # one burst an hour; the model stays loaded
        return Activity(
            utilization_percent=40 + jitter if asked else 0, memory_percent=45, process_count=1
        )
    if workload is Workload.TENANT:
        return Activity(utilization_percent=70 + jitter, memory_percent=72, process_count=1)
    return Activity()
