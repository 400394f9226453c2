"""Decide from samples whether a GPU is idle: a pure function, one step a sample.

Utilisation alone misleads in both directions: an inference server with gaps looks idle, a card that latched
after a kill looks busy. So a GPU is `free` only when for a whole while it has had no process, hardly any
memory in use, hardly any load and hardly any power draw; one noisy sample makes it `busy` at once. `parked`
is memory held without work for long: shown to the owner, never sold by itself. A value that could not be
read is never taken for quiet.

    unknown -> busy | parked | free      every state -> unknown after more than three missed samples
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from enum import Enum, auto

from agents.node.reader import NOT_SUPPORTED, Sample
from agents.protocol import IdleState


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When a GPU counts as idle; an owner may change every figure."""

    free_after_seconds: float = 600.0
    parked_after_seconds: float = 3600.0
    memory_used_bytes_max: int = 64 * 1024 * 1024  # idle cards still show up to 32 MiB
    utilization_percent_max: int = 1
    power_floor_factor: float = 1.3
    missed_samples_max: int = 3


POWER_SAMPLES_KEPT = 240  # one hour at 15 s; enough for a fifth percentile
POWER_SAMPLES_NEEDED = 20  # before that the figure of the product is the better guess
POWER_FLOOR_QUANTILE = 0.05

# Idle draw by product: measured figures of public traces and data sheets, used until the card's own is known.
POWER_FLOOR_SEED_MILLIWATTS = {
    "A100": 60_000,
    "H100": 75_000,
    "H200": 80_000,
    "L40S": 36_000,
    "B200": 140_000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleTrack:
    """What is remembered of one GPU between two samples."""

    state: IdleState = IdleState.UNKNOWN
    quiet_since: dt.datetime | None = None
    held_since: dt.datetime | None = None
    missed_samples: int = 0
    power_floor_seed_milliwatts: int | None = None
    process_free_powers_milliwatts: tuple[int, ...] = ()
    last_energy: tuple[dt.datetime, int] | None = None

    @property
    def idle_since(self) -> dt.datetime | None:
        """Return since when the GPU has been free or parked, `None` in other states."""
        if self.state is IdleState.FREE:
            return self.quiet_since
        return self.held_since if self.state is IdleState.PARKED else None


class _Look(Enum):
    """What one sample says by itself."""

    MISSED = auto()
    QUIET = auto()
    HELD = auto()  # somebody holds memory or a process, but nothing works
    WORKING = auto()


def begin(*, product_name: str) -> IdleTrack:
    """Return the track of a GPU of which nothing is known yet but its product."""
    for word, power in POWER_FLOOR_SEED_MILLIWATTS.items():
        if word in product_name:
            return IdleTrack(power_floor_seed_milliwatts=power)
    return IdleTrack()


def restart(*, track: IdleTrack) -> IdleTrack:
    """Return the track after a lease: what the tenant did says nothing about the owner's use."""
    return replace(
        track, state=IdleState.UNKNOWN, quiet_since=None, held_since=None, missed_samples=0
    )


def step(*, track: IdleTrack, sample: Sample, thresholds: Thresholds) -> IdleTrack:
    """Return the track after one more sample; samples come in the order of their time."""
    power = _mean_power_milliwatts(track=track, sample=sample)
    track = _learn(track=track, sample=sample, power=power, thresholds=thresholds)
    look = _look(track=track, sample=sample, power=power, thresholds=thresholds)
    if look is _Look.MISSED:
        missed = track.missed_samples + 1
        if missed > thresholds.missed_samples_max:
            return replace(
                track,
                state=IdleState.UNKNOWN,
                quiet_since=None,
                held_since=None,
                missed_samples=missed,
            )
        free = track.state is IdleState.FREE
        return replace(
            track, missed_samples=missed, quiet_since=track.quiet_since if free else None
        )
    at = sample.measured_at
    if look is _Look.WORKING:
        return replace(
            track, state=IdleState.BUSY, quiet_since=None, held_since=None, missed_samples=0
        )
    if look is _Look.HELD:
        since = track.held_since or at
        parked = (at - since).total_seconds() >= thresholds.parked_after_seconds
        state = IdleState.PARKED if parked else IdleState.BUSY
        return replace(track, state=state, quiet_since=None, held_since=since, missed_samples=0)
    since = track.quiet_since or at
    free = (at - since).total_seconds() >= thresholds.free_after_seconds
    state = IdleState.FREE if free else track.state
    if state is IdleState.PARKED:
        state = IdleState.BUSY  # what was held has been let go; free only after a whole while
    return replace(track, state=state, quiet_since=since, held_since=None, missed_samples=0)


def power_floor_milliwatts(*, track: IdleTrack) -> int | None:
    """Return what this card draws at rest: a low quantile of its process-free samples, else its product's."""
    powers = sorted(track.process_free_powers_milliwatts)
    learned = powers[int(len(powers) * POWER_FLOOR_QUANTILE)] if powers else None
    if len(powers) >= POWER_SAMPLES_NEEDED or track.power_floor_seed_milliwatts is None:
        return learned
    return track.power_floor_seed_milliwatts


def _mean_power_milliwatts(*, track: IdleTrack, sample: Sample) -> int | None:
    """Return the mean since the last sample by the energy counter, which no burst escapes, else the point."""
    if sample.energy_millijoules is not None and track.last_energy is not None:
        last_at, last_energy = track.last_energy
        seconds = (sample.measured_at - last_at).total_seconds()
        gained = sample.energy_millijoules - last_energy
        if (
            seconds >= 1 and gained >= 0
        ):  # counters move in steps of some 100 ms, and restart with the driver
            return round(gained / seconds)
    return sample.power_draw_milliwatts


def _learn(
    *, track: IdleTrack, sample: Sample, power: int | None, thresholds: Thresholds
) -> IdleTrack:
    if sample.energy_millijoules is not None:
        track = replace(track, last_energy=(sample.measured_at, sample.energy_millijoules))
    at_rest = sample.process_count == 0 and (
        sample.utilization_percent is not None
        and sample.utilization_percent <= thresholds.utilization_percent_max
    )
    if at_rest and power is not None:
        kept = (*track.process_free_powers_milliwatts, power)[-POWER_SAMPLES_KEPT:]
        track = replace(track, process_free_powers_milliwatts=kept)
    return track


def _look(*, track: IdleTrack, sample: Sample, power: int | None, thresholds: Thresholds) -> _Look:
    working = sample.utilization_percent is not None and (
        sample.utilization_percent > thresholds.utilization_percent_max
    )
    floor = power_floor_milliwatts(track=track)
    if power is not None and floor is not None:
        working = working or power > floor * thresholds.power_floor_factor
    if working:
        return _Look.WORKING
    power_unread = power is None and any(
        sample.unread.get(name) != NOT_SUPPORTED
        for name in ("power_draw_milliwatts", "energy_millijoules")
    )
    if (
        sample.utilization_percent is None
        or sample.memory_used_bytes is None
        or sample.process_count is None
        or power_unread
    ):
        return _Look.MISSED
    held = sample.process_count > 0 or sample.memory_used_bytes > thresholds.memory_used_bytes_max
    return _Look.HELD if held else _Look.QUIET
