"""What leased GPUs did, from meter readings: exact arithmetic on intervals, every second counted once.

Readings come late, twice and overlapping. On each GPU an instant belongs to the reading that began first
(of equals, to the one that ended first, then to the one that claims least), so the result does not depend
on the order of arrival. A reading that loses a part of its interval loses that part of its counts.

Outages and readings may tell of the same loss, so no second is taken twice: within the interval of a reading
- time in an outage that is nobody's or the hardware's was not delivered, whatever the reading says;
- time in an outage that the tenant caused was delivered, so it makes up for as many seconds that the reading
  misses: those count as lost only beyond it;
- seconds that the reading misses are taken to lie in the outages that are refunded, as far as they reach.
"""

import bisect
import datetime as dt
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from agents.models import MeterReading
from marketplace.core.errors import InvalidValue
from marketplace.core.windows import Window

# Two weeks of minutes; a longer window is asked for by the hour or in parts.
POINTS_PER_GPU_MAX = 20_160
ROWS_PER_FETCH = 5_000  # rows held per round trip to the database
_MICROSECOND = dt.timedelta(microseconds=1)
_SECOND_MICROSECONDS = 1_000_000
# Exact numbers of seconds. Integers wherever they do: they are many times faster than fractions.
Exact: TypeAlias = int | Fraction
_NOTHING: Exact = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One meter reading of one GPU. `busy_seconds` and what follows are None where nothing was read."""

    window: Window
    up_seconds: int
    busy_seconds: int | None = None
    energy_millijoules: int | None = None
    memory_used_bytes_max: int | None = None
    temperature_celsius_max: int | None = None
    attached_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMeter:
    """The sum over one GPU, in whole seconds rounded down: `busy <= measured <= up <= covered`.

    `covered_seconds` are those of which a reading speaks, `up_seconds` those in which the tenant had the
    GPU, `measured_seconds` the part of them in which it is known whether it was busy. `attached_seconds`
    are those in which a process held its memory, of the `attachment_known_seconds` of which that is known.
    `delivered_seconds` are those covered ones that count as delivered when outages are weighed in, and
    `undelivered_seconds` all that were not: without outages they are `up` and `covered - up`.
    """

    covered_seconds: int
    up_seconds: int
    delivered_seconds: int
    undelivered_seconds: int
    measured_seconds: int
    busy_seconds: int
    energy_millijoules: int | None
    memory_used_bytes_max: int | None
    temperature_celsius_max: int | None
    attachment_known_seconds: int = 0
    attached_seconds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseMeters:
    """The sum over all GPUs of a lease; `gpus` holds each by its UUID.

    `gpu_seconds_measured` says of how many metered GPU-seconds it is known whether they were busy,
    `gpu_seconds_delivered` how many of the covered ones count as delivered, and `gpu_seconds_undelivered` how
    many of the window do not, by readings and outages together. `gpu_seconds_attached` is None where no
    reading tells.
    """

    gpu_seconds_metered: int
    gpu_seconds_delivered: int
    gpu_seconds_undelivered: int
    gpu_seconds_measured: int
    gpu_seconds_busy: int
    gpu_seconds_attached: int | None
    energy_millijoules: int | None
    readings_until: dt.datetime | None
    gpus: dict[str, GpuMeter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The outages of one GPU under one lease: those that are refunded, and those that its tenant caused.

    No two of all these windows overlap.
    """

    refunded: Sequence[Window] = ()
    by_tenant: Sequence[Window] = ()


NO_FAULTS = Faults()


@dataclass(frozen=True, slots=True, kw_only=True)
class UtilizationPoint:
    """What one GPU did in a step of a curve; `meter` is None where nothing was measured."""

    gpu_uuid: str
    window: Window
    meter: GpuMeter | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """The part of a sample that counts: no two pieces of one GPU overlap."""

    window: Window
    sample: Sample


def total(*, samples: Iterable[Sample], window: Window, faults: Faults = NO_FAULTS) -> GpuMeter:
    """Add up the readings of ONE GPU within `[window.starts_at, window.ends_at)`, in any order."""
    pieces = list(_disjoint(samples=samples, window=window))
    inside = sum((_overlap(piece.window, faults.refunded) for piece in pieces), _NOTHING)
    unread = _overlap(window, faults.refunded) - inside
    return _sum(pieces, faults=faults, refunded_unread=unread)


def lease_meters(
    *, lease_id: str, window: Window, faults: Mapping[str, Faults] | None = None
) -> LeaseMeters:
    """Add up what a lease's GPUs did within `[window.starts_at, window.ends_at)`; `faults` are by GPU.

    `readings_until` is the end up to which every GPU that was ever metered has readings, None without any:
    a settlement waits for it. GPUs that were never metered do not appear; their outages count all the same.
    """
    return lease_meters_by_window(lease_id=lease_id, windows=[window], faults=faults)[0]


def lease_meters_by_window(
    *,
    lease_id: str,
    windows: Sequence[Window],
    faults: Mapping[str, Faults] | None = None,
    gpu_uuids: Collection[str] | None = None,
) -> list[LeaseMeters]:
    """Add up what a lease's GPUs did within each of some windows, as `lease_meters` does, in one reading.

    `readings_until` is of all windows together. Only GPUs among `gpu_uuids` are looked at, `None`: all.
    """
    faults = faults or {}
    gpus: list[dict[str, GpuMeter]] = [{} for _ in windows]
    ends: list[dt.datetime] = []
    hull = Window(
        min(window.starts_at for window in windows), max(window.ends_at for window in windows)
    )
    for _, gpu_uuid, samples in _samples_by_gpu(windows={lease_id: hull}):
        if gpu_uuids is not None and gpu_uuid not in gpu_uuids:
            continue
        ends.append(max(sample.window.ends_at for sample in samples))
        for window, meters in zip(windows, gpus, strict=True):
            meters[gpu_uuid] = total(
                samples=_touching(samples, window=window),
                window=window,
                faults=faults.get(gpu_uuid, NO_FAULTS),
            )
    readings_until = min(ends, default=None)
    return [
        _of_lease(gpus=meters, window=window, faults=faults, readings_until=readings_until)
        for window, meters in zip(windows, gpus, strict=True)
    ]


def _touching(samples: Sequence[Sample], *, window: Window) -> Sequence[Sample]:
    """Return the run of samples, which are in the order of their starts, that a window may need."""
    starts = [sample.window.starts_at for sample in samples]
    longest = max(sample.window.duration for sample in samples)
    first = bisect.bisect_left(starts, window.starts_at - longest)
    return samples[first : bisect.bisect_left(starts, window.ends_at)]


def _of_lease(
    *,
    gpus: dict[str, GpuMeter],
    window: Window,
    faults: Mapping[str, Faults],
    readings_until: dt.datetime | None,
) -> LeaseMeters:
    """Add up the GPUs of a lease within one window, those without a reading by their outages."""
    unmetered = [
        total(samples=[], window=window, faults=fault).undelivered_seconds
        for gpu_uuid, fault in faults.items()
        if gpu_uuid not in gpus
    ]
    energies = [g.energy_millijoules for g in gpus.values() if g.energy_millijoules is not None]
    return LeaseMeters(
        gpu_seconds_metered=sum(g.up_seconds for g in gpus.values()),
        gpu_seconds_delivered=sum(g.delivered_seconds for g in gpus.values()),
        gpu_seconds_undelivered=sum(g.undelivered_seconds for g in gpus.values()) + sum(unmetered),
        gpu_seconds_measured=sum(g.measured_seconds for g in gpus.values()),
        gpu_seconds_busy=sum(g.busy_seconds for g in gpus.values()),
        gpu_seconds_attached=(
            sum(g.attached_seconds for g in gpus.values())
            if any(g.attachment_known_seconds for g in gpus.values())
            else None
        ),
        energy_millijoules=sum(energies) if energies else None,
        readings_until=readings_until,
        gpus=gpus,
    )


def metered_seconds(*, windows: Mapping[str, Window]) -> dict[str, int]:
    """Return `gpu_seconds_metered` of each lease within its window, in one query for all of them."""
    seconds = dict.fromkeys(windows, 0)
    for lease_id, _, samples in _samples_by_gpu(windows=windows):
        seconds[lease_id] += total(samples=samples, window=windows[lease_id]).up_seconds
    return seconds


def minutes(*, lease_id: str, window: Window, resolution_seconds: int) -> list[UtilizationPoint]:
    """Return the curve of each metered GPU of a lease, in steps of `resolution_seconds` from the start.

    The last step is shorter where the window is no whole number of steps.

    :raises InvalidValue: when there would be too many points, or the step is not positive.
    """
    if resolution_seconds < 1:
        raise InvalidValue("must be at least one second", pointer="/resolution")
    if window.seconds > POINTS_PER_GPU_MAX * resolution_seconds:
        raise InvalidValue(
            f"at most {POINTS_PER_GPU_MAX} points per GPU: ask for less, or by the hour",
            pointer="/resolution",
        )
    steps = list(_steps(window=window, resolution_seconds=resolution_seconds))
    points = []
    for _, gpu_uuid, samples in _samples_by_gpu(windows={lease_id: window}):
        by_step: list[list[_Piece]] = [[] for _ in steps]
        for piece in _disjoint(samples=samples, window=window):
            first = _index(piece.window.starts_at, window=window, step=resolution_seconds)
            last = _index(
                piece.window.ends_at - _MICROSECOND, window=window, step=resolution_seconds
            )
            for number in range(first, last + 1):
                part = piece.window.intersection(steps[number])
                assert part is not None, "the piece lies in these steps"
                by_step[number].append(_Piece(window=part, sample=piece.sample))
        points += [
            UtilizationPoint(gpu_uuid=gpu_uuid, window=step, meter=_sum(pieces) if pieces else None)
            for step, pieces in zip(steps, by_step, strict=True)
        ]
    return points


def _samples_by_gpu(*, windows: Mapping[str, Window]) -> Iterator[tuple[str, str, list[Sample]]]:
    """Yield each GPU of each lease with its readings; one GPU is held at a time.

    Readings that touch none of the windows stay out; those that touch another lease's add nothing, because
    whoever sums clips them.
    """
    if not windows:
        return
    rows = (
        MeterReading.objects.filter(
            lease_id__in=list(windows),
            starts_at__lt=max(window.ends_at for window in windows.values()),
            ends_at__gt=min(window.starts_at for window in windows.values()),
        )
        .order_by("lease_id", "gpu_uuid", "starts_at")
        .iterator(chunk_size=ROWS_PER_FETCH)
    )
    for (lease_id, gpu_uuid), group in itertools.groupby(
        rows, key=lambda row: (row.lease_id, row.gpu_uuid)
    ):
        yield (
            lease_id,
            gpu_uuid,
            [
                Sample(
                    window=Window(row.starts_at, row.ends_at),
                    up_seconds=row.up_seconds,
                    busy_seconds=row.busy_seconds,
                    energy_millijoules=row.energy_millijoules,
                    memory_used_bytes_max=row.memory_used_bytes_max,
                    temperature_celsius_max=row.temperature_celsius_max,
                    attached_seconds=row.attached_seconds,
                )
                for row in group
            ],
        )


def _order(sample: Sample) -> tuple[object, ...]:
    """Return what decides between overlapping readings: only equal ones are level."""
    optional = (
        sample.busy_seconds,
        sample.energy_millijoules,
        sample.memory_used_bytes_max,
        sample.temperature_celsius_max,
        sample.attached_seconds,
    )
    known = (-1 if value is None else value for value in optional)
    return (sample.window.starts_at, sample.window.ends_at, sample.up_seconds, *known)


def _disjoint(*, samples: Iterable[Sample], window: Window) -> Iterator[_Piece]:
    """Yield the parts of readings that count within the window, in time order."""
    counted_until = window.starts_at
    for sample in sorted(samples, key=_order):
        starts_at = max(sample.window.starts_at, counted_until)
        ends_at = min(sample.window.ends_at, window.ends_at)
        if starts_at < ends_at:
            yield _Piece(window=Window(starts_at, ends_at), sample=sample)
            counted_until = ends_at


def _sum(
    pieces: Iterable[_Piece],
    *,
    faults: Faults = NO_FAULTS,
    refunded_unread: Exact = 0,
) -> GpuMeter:
    """Add up pieces exactly and round once, at the end, down.

    `refunded_unread` is the time, in seconds, of refunded outages of which no reading tells.
    """
    covered = up = measured = busy = delivered = known = attached = _NOTHING
    energy: Exact | None = None
    memories, temperatures = [], []
    for piece in pieces:
        sample = piece.sample
        share = _ratio(
            piece.window.duration // _MICROSECOND, sample.window.duration // _MICROSECOND
        )
        length = _ratio(sample.window.duration // _MICROSECOND, _SECOND_MICROSECONDS)
        up_exact = _exact(seconds=sample.up_seconds, length=length)
        covered += length * share
        up += up_exact * share
        missed = (length - up_exact) * share - _overlap(piece.window, faults.by_tenant)
        delivered += length * share - max(missed, _overlap(piece.window, faults.refunded))
        if sample.busy_seconds is not None:
            measured += up_exact * share
            busy += _part_of_up(sample.busy_seconds, sample, up_exact) * share
        if sample.attached_seconds is not None:
            known += up_exact * share
            attached += _part_of_up(sample.attached_seconds, sample, up_exact) * share
        if sample.energy_millijoules is not None:
            energy = (energy or 0) + sample.energy_millijoules * share
        if sample.memory_used_bytes_max is not None:
            memories.append(sample.memory_used_bytes_max)
        if sample.temperature_celsius_max is not None:
            temperatures.append(sample.temperature_celsius_max)
    return GpuMeter(
        covered_seconds=math.floor(covered),
        up_seconds=math.floor(up),
        delivered_seconds=math.floor(delivered),
        undelivered_seconds=math.floor(covered)
        - math.floor(delivered)
        + math.floor(refunded_unread),
        measured_seconds=math.floor(measured),
        busy_seconds=math.floor(busy),
        energy_millijoules=None if energy is None else math.floor(energy),
        memory_used_bytes_max=max(memories, default=None),
        temperature_celsius_max=max(temperatures, default=None),
        attachment_known_seconds=math.floor(known),
        attached_seconds=math.floor(attached),
    )


def _part_of_up(seconds: int, sample: Sample, up_exact: Exact) -> Exact:
    """Return exactly for how long something held that held for whole `seconds` of the up seconds."""
    return up_exact if seconds >= sample.up_seconds else min(seconds, up_exact)


def _exact(*, seconds: int, length: Exact) -> Exact:
    """Return a count of whole seconds within an interval of exact length.

    Agents count whole seconds of intervals that are not whole: a positive count less than a second from
    the length means all of it. Otherwise sixty readings of 59.9 s would lose a minute of an hour.
    """
    is_all = seconds > 0 and -1 < seconds - length < 1
    return length if is_all else min(seconds, length)


def _ratio(part: int, whole: int) -> Exact:
    """Return a quotient exactly, as an integer where it is one: most readings are whole minutes."""
    return part // whole if part % whole == 0 else Fraction(part, whole)


def _overlap(window: Window, others: Sequence[Window]) -> Exact:
    """Return for how many seconds a window lies in others, no two of which overlap; exact."""
    parts = (window.intersection(other) for other in others)
    microseconds = sum(part.duration // _MICROSECOND for part in parts if part is not None)
    return _ratio(microseconds, _SECOND_MICROSECONDS)


def _steps(*, window: Window, resolution_seconds: int) -> Iterator[Window]:
    step = dt.timedelta(seconds=resolution_seconds)
    starts_at = window.starts_at
    while starts_at < window.ends_at:
        yield Window(starts_at, min(starts_at + step, window.ends_at))
        starts_at += step


def _index(instant: dt.datetime, *, window: Window, step: int) -> int:
    return (instant - window.starts_at) // dt.timedelta(seconds=step)
