"""Decide from samples whether a GPU is idle: a pure function, one step a sample.

Utilisation alone misleads in both directions: an inference server with gaps looks idle, a card that latched
after a kill looks busy. So a GPU is `free` only when for a whole while it has had no process, hardly any
memory in use, hardly any load and hardly any power draw; one noisy sample makes it `busy` at once. `parked`
is memory held without work for long: shown to the owner, never sold by itself. A value that could not be
read is never taken for quiet. Whether a free GPU is `offerable` too is decided in `offering`.

    unknown -> busy | parked | free      every state -> unknown after more than three missed samples

A GPU at full load with no process and no memory for ten minutes is latched: nothing runs, the driver only
says so. It stays busy, is suspect, and a CUDA context that is opened and closed cures it (`cure`).
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from enum import Enum, auto

from agents.node.reader import NOT_SUPPORTED, Sample
from agents.protocol import IdlePolicy, IdleState

# Lists of processes hold the driver's lock for milliseconds: they are read once a minute, and a list that
# missed one turn is still believed.
PROCESS_LIST_SECONDS = 60.0
PROCESS_LIST_SECONDS_MAX = 90.0
# Who comes takes memory before anything else; a large page of the driver is 2 MiB.
MEMORY_MOVED_BYTES = 2 * 1024 * 1024

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

GHOST_UTILIZATION_PERCENT_MIN = 99
GHOST_AFTER_SECONDS = (
    600.0  # as long as quiet must last: a kernel of a process that just ends is no ghost
)
# What three contexts did not cure needs a reset of the GPU, which is the owner's to do.
CURES_MAX = 3
CURE_RETRY_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleTrack:
    """What is remembered of one GPU between two samples. `reason` says in words why the state is what it is.

    `ghost_since` is since when it has claimed full load with nothing on it, `latched` whether that is long
    enough to be believed. `power_waived` after a cure, until the power is seen at rest again.
    """

    state: IdleState = IdleState.UNKNOWN
    reason: str = "it has not been looked at yet"
    quiet_since: dt.datetime | None = None
    free_due_at: dt.datetime | None = None
    held_since: dt.datetime | None = None
    missed_samples: int = 0
    processes_at: dt.datetime | None = None
    memory_at_list_bytes: int | None = None
    power_floor_seed_milliwatts: int | None = None
    process_free_powers_milliwatts: tuple[int, ...] = ()
    last_energy: tuple[dt.datetime, int] | None = None
    ghost_since: dt.datetime | None = None
    latched: bool = False
    cures: int = 0
    cured_at: dt.datetime | None = None
    power_waived: bool = False

    @property
    def idle_since(self) -> dt.datetime | None:
        """Return since when the GPU has been free or parked, `None` in other states."""
        if self.state is IdleState.FREE:
            return self.quiet_since
        return self.held_since if self.state is IdleState.PARKED else None

    def wants_processes(self, *, at: dt.datetime) -> bool:
        """Return whether the sample at `at` needs a list of processes: once a minute, and to become free."""
        if self.processes_at is None:
            return True
        if self.free_due_at is not None and self.processes_at < self.free_due_at <= at:
            return True
        return (at - self.processes_at).total_seconds() >= PROCESS_LIST_SECONDS

    def wants_processes_with(self, *, sample: Sample) -> bool:
        """Return whether this sample says too little without a list: memory moved since the last one."""
        return _memory_moved(self, sample) and not _has_own_list(sample)

    def wants_cure(self, *, at: dt.datetime) -> bool:
        """Return whether a context should be opened and closed on the GPU at `at`."""
        if not self.latched or self.cures >= CURES_MAX:
            return False
        return self.cured_at is None or (at - self.cured_at).total_seconds() >= CURE_RETRY_SECONDS


class _Look(Enum):
    """What one sample says by itself."""

    MISSED = auto()
    QUIET = auto()
    HELD = auto()  # somebody holds memory or a process, but nothing works
    WORKING = auto()
    GHOST = auto()  # full load, but nobody is there


def begin(*, product_name: str) -> IdleTrack:
    """Return the track of a GPU of which nothing is known yet but its product."""
    for word, power in POWER_FLOOR_SEED_MILLIWATTS.items():
        if word in product_name:
            return IdleTrack(power_floor_seed_milliwatts=power)
    return IdleTrack()


def restart(*, track: IdleTrack) -> IdleTrack:
    """Return the track after a lease: what the tenant did says nothing about the owner's use."""
    return replace(
        _unknown(track),
        reason="a lease has just ended",
        missed_samples=0,
        processes_at=None,
        last_energy=None,
        ghost_since=None,
        latched=False,
        power_waived=False,
    )


def cured(*, track: IdleTrack, at: dt.datetime, succeeded: bool) -> IdleTrack:
    """Return the track after a try to cure its GPU; only one that succeeded waives the power for a while."""
    return replace(track, cures=track.cures + 1, cured_at=at, power_waived=succeeded)


def step(*, track: IdleTrack, sample: Sample, policy: IdlePolicy) -> IdleTrack:
    """Return the track after one more sample; samples come in the order of their time."""
    power = _mean_power_milliwatts(track=track, sample=sample)
    track = _learn(track=track, sample=sample, power=power, policy=policy)
    over = _power_over_floor(track=track, power=power, policy=policy)
    if over is False and track.power_waived:
        track = replace(track, power_waived=False)
    look, reason = _look(track=track, sample=sample, power=power, over=over is True, policy=policy)
    if _has_own_list(sample):
        track = replace(
            track,
            processes_at=sample.processes_at,
            memory_at_list_bytes=sample.memory_used_bytes,
        )
    if look is _Look.MISSED:
        return _missed(track, reason, policy)
    track = replace(track, missed_samples=0)
    if look is _Look.GHOST:
        return _ghost(track, sample, reason)
    track = replace(track, ghost_since=None, latched=False)
    if look is _Look.QUIET:
        return _quiet(track, sample, policy)
    track = replace(track, quiet_since=None, free_due_at=None, power_waived=False)
    if look is _Look.WORKING:
        return replace(track, state=IdleState.BUSY, reason=reason, held_since=None)
    since = track.held_since or sample.measured_at
    seconds = (sample.measured_at - since).total_seconds()
    if seconds < policy.parked_after_seconds:
        return replace(track, state=IdleState.BUSY, reason=reason, held_since=since)
    reason = f"{reason} without work for {seconds / 60:.0f} min"
    return replace(track, state=IdleState.PARKED, reason=reason, held_since=since)


def power_floor_milliwatts(*, track: IdleTrack) -> int | None:
    """Return what this card draws at rest: a low quantile of its process-free samples, else its product's."""
    powers = sorted(track.process_free_powers_milliwatts)
    learned = powers[int(len(powers) * POWER_FLOOR_QUANTILE)] if powers else None
    if len(powers) >= POWER_SAMPLES_NEEDED or track.power_floor_seed_milliwatts is None:
        return learned
    return track.power_floor_seed_milliwatts


# --- what becomes of a track -----------------------------------------------------------------------------


def _unknown(track: IdleTrack) -> IdleTrack:
    return replace(
        track, state=IdleState.UNKNOWN, quiet_since=None, free_due_at=None, held_since=None
    )


def _missed(track: IdleTrack, reason: str, policy: IdlePolicy) -> IdleTrack:
    missed = track.missed_samples + 1
    track = replace(track, missed_samples=missed, reason=reason)
    if missed > policy.missed_samples_max:
        return replace(_unknown(track), reason=f"{reason}, {missed} times in a row")
    if track.state is IdleState.FREE:
        return track
    return replace(track, quiet_since=None, free_due_at=None)


def _ghost(track: IdleTrack, sample: Sample, reason: str) -> IdleTrack:
    since = track.ghost_since or sample.measured_at
    latched = (sample.measured_at - since).total_seconds() >= GHOST_AFTER_SECONDS
    if latched:
        reason = f"suspect: latched, {reason} since {since:%F %H:%M} UTC"
        if track.cures >= CURES_MAX:
            reason += f"; {track.cures} contexts did not cure it, reset the GPU"
    return replace(
        track,
        state=IdleState.BUSY,
        reason=reason,
        quiet_since=None,
        free_due_at=None,
        held_since=None,
        ghost_since=since,
        latched=latched,
    )


def _quiet(track: IdleTrack, sample: Sample, policy: IdlePolicy) -> IdleTrack:
    """Count the quiet time; the sample that makes the GPU free needs a list read when that was over."""
    at = sample.measured_at
    since = track.quiet_since or at
    due_at = since + dt.timedelta(seconds=policy.free_after_seconds)
    track = replace(track, quiet_since=since, free_due_at=due_at, held_since=None)
    if at >= due_at and (
        track.state is IdleState.FREE
        or (track.processes_at is not None and track.processes_at >= due_at)
    ):
        reason = f"quiet for {policy.free_after_seconds} s and more"
        return replace(track, state=IdleState.FREE, reason=reason, cures=0, cured_at=None)
    # What was parked has been let go, and a stricter policy takes a free GPU back: both wait a whole while.
    known = track.state is not IdleState.UNKNOWN
    seconds = (at - since).total_seconds()
    reason = f"quiet for {seconds:.0f} of {policy.free_after_seconds} s"
    return replace(track, state=IdleState.BUSY if known else IdleState.UNKNOWN, reason=reason)


# --- what a sample says ----------------------------------------------------------------------------------


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


def _learn(*, track: IdleTrack, sample: Sample, power: int | None, policy: IdlePolicy) -> IdleTrack:
    if sample.energy_millijoules is not None:
        track = replace(track, last_energy=(sample.measured_at, sample.energy_millijoules))
    load = _load_percent(sample)
    at_rest = (
        _process_count(sample) == 0
        and load is not None
        and load <= policy.utilization_percent_max
        and not track.power_waived
    )
    if at_rest and power is not None:
        kept = (*track.process_free_powers_milliwatts, power)[-POWER_SAMPLES_KEPT:]
        track = replace(track, process_free_powers_milliwatts=kept)
    return track


def _power_over_floor(*, track: IdleTrack, power: int | None, policy: IdlePolicy) -> bool | None:
    """Return whether the GPU draws more than at rest, `None` where nobody can tell."""
    floor = power_floor_milliwatts(track=track)
    if power is None or floor is None:
        return None
    return power * 100 > floor * policy.power_floor_percent


def _look(
    *, track: IdleTrack, sample: Sample, power: int | None, over: bool, policy: IdlePolicy
) -> tuple[_Look, str]:
    """Return what the sample says, and why in words."""
    load = _load_percent(sample)
    count, used = _process_count(sample), sample.memory_used_bytes
    empty = count == 0 and used is not None and used <= policy.memory_used_bytes_max
    if load is not None and load > policy.utilization_percent_max:
        mean = sample.utilization_percent
        if empty and mean is not None and mean >= GHOST_UTILIZATION_PERCENT_MIN:
            return _Look.GHOST, f"{mean} % load with no process and no memory"
        return _Look.WORKING, f"a load of {load} %"
    if over and not track.power_waived and power is not None:
        floor = power_floor_milliwatts(track=track) or 0
        return _Look.WORKING, f"it draws {power / 1000:.0f} W, at rest {floor / 1000:.0f} W"
    missing = _missing(track, sample, power)
    if missing or count is None or used is None:
        return _Look.MISSED, missing
    if empty:
        return _Look.QUIET, ""
    gibibytes = f"{used / 1024**3:.1f} GiB"
    if count == 0:
        return _Look.HELD, f"{gibibytes} are held by a process that cannot be seen"
    holders = "1 process holds" if count == 1 else f"{count} processes hold"
    return _Look.HELD, f"{holders} {gibibytes}"


def _missing(track: IdleTrack, sample: Sample, power: int | None) -> str:
    """Return in words what is missing to call the GPU quiet, empty when nothing is.

    A GPU that MIG has cut has no load to tell: processes, memory and power judge it then. One that has no
    power figures is judged by the rest. One that tells neither is never quiet.
    """
    unread = sample.unread
    load_untold = _load_percent(sample) is None
    if load_untold and unread.get("utilization_percent") != NOT_SUPPORTED:
        return _could_not_read(sample, "utilization_percent")
    if sample.memory_used_bytes is None:
        return _could_not_read(sample, "memory_used_bytes")
    if power is None:
        for name in ("power_draw_milliwatts", "energy_millijoules"):
            if unread.get(name) != NOT_SUPPORTED:
                return _could_not_read(sample, name)
        if load_untold:
            return "it tells neither its load nor its power"
    if sample.process_count is None:
        return _could_not_read(sample, "process_count")
    if _process_count(sample) is None:
        return f"its processes were not listed for {PROCESS_LIST_SECONDS_MAX:.0f} s"
    if track.wants_processes_with(sample=sample):
        return "its memory moved, and its processes were not listed since"
    return ""


def _could_not_read(sample: Sample, name: str) -> str:
    return f"could not read {name}: {sample.unread.get(name, 'no reason given')}"


def _load_percent(sample: Sample) -> int | None:
    """Return the highest load since the last sample, where the driver keeps it; no burst escapes it."""
    if sample.utilization_max_percent is not None:
        return sample.utilization_max_percent
    return sample.utilization_percent


def _process_count(sample: Sample) -> int | None:
    """Return how many processes there are, `None` when the list is too old to be believed."""
    if sample.processes_at is None:
        return None
    age_seconds = (sample.measured_at - sample.processes_at).total_seconds()
    return sample.process_count if age_seconds <= PROCESS_LIST_SECONDS_MAX else None


def _has_own_list(sample: Sample) -> bool:
    """Return whether the list was read with this very sample."""
    return (
        sample.process_count is not None
        and sample.processes_at is not None
        and sample.processes_at >= sample.measured_at
    )


def _memory_moved(track: IdleTrack, sample: Sample) -> bool:
    before, now = track.memory_at_list_bytes, sample.memory_used_bytes
    return before is not None and now is not None and abs(now - before) >= MEMORY_MOVED_BYTES
