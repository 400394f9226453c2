"""Make one meter reading of neighbours that were never sent: seconds and energy stay, the detail goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from agents.node.metering import larger
from agents.protocol import MeterReading

# The market takes no longer window (METER_SECONDS_MAX there).
MERGED_SECONDS_MAX = 15 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A reading that stands for itself and the readings after it, which go."""

    reading: MeterReading
    absorbed: list[MeterReading]


def merge(*, readings: Iterable[MeterReading]) -> list[Merged]:
    """Join readings of one lease and GPU that touch; return those that absorbed others.

    Readings are given in their order. Only readings that know the same things are joined: a sum with an
    unknown part would be unknown, and something known would be lost.
    """
    runs: dict[tuple[object, ...], Merged] = {}
    done: list[Merged] = []
    for reading in readings:
        track = (reading.lease_id, reading.lease_epoch, reading.gpu_uuid)
        run = runs.get(track)
        if run is not None and _fits(run.reading, reading):
            absorbed = [*run.absorbed, reading]
            runs[track] = Merged(reading=_joined(run.reading, reading), absorbed=absorbed)
            continue
        if run is not None and run.absorbed:
            done.append(run)
        runs[track] = Merged(reading=reading, absorbed=[])
    return done + [run for run in runs.values() if run.absorbed]


def _fits(a: MeterReading, b: MeterReading) -> bool:
    seconds = (b.ends_at - a.starts_at).total_seconds()
    return a.ends_at == b.starts_at and seconds <= MERGED_SECONDS_MAX and _known(a) == _known(b)


def _known(reading: MeterReading) -> tuple[bool, ...]:
    values = (
        reading.busy_seconds,
        reading.attached_seconds,
        reading.energy_millijoules,
        reading.memory_used_bytes_max,
        reading.temperature_celsius_max,
    )
    return tuple(value is not None for value in values)


def _joined(a: MeterReading, b: MeterReading) -> MeterReading:
    return replace(
        a,
        ends_at=b.ends_at,
        up_seconds=a.up_seconds + b.up_seconds,
        busy_seconds=_sum(a.busy_seconds, b.busy_seconds),
        attached_seconds=_sum(a.attached_seconds, b.attached_seconds),
        energy_millijoules=_sum(a.energy_millijoules, b.energy_millijoules),
        memory_used_bytes_max=larger(a.memory_used_bytes_max, b.memory_used_bytes_max),
        temperature_celsius_max=larger(a.temperature_celsius_max, b.temperature_celsius_max),
    )


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b
