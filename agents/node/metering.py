"""Turn samples of leased GPUs into meter windows that touch each other, from handover to return.

All bounds are whole seconds, so that the windows of a lease add up to exactly the time between its two
receipts. A window that holds a stretch without a sample has no busy seconds: the tenant had the GPU, but
nobody saw what it did.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from agents.node.reader import LOST, Sample

WINDOW_SECONDS_MAX = 60
SHORT_WINDOW_SECONDS_MAX = 10  # where the market asks for reports every few seconds
SHORT_INTERVAL_SECONDS = 5
# A process holds a GPU that shows more in use: idle cards show up to 32 MiB, a context takes hundreds.
ATTACHED_BYTES_MIN = 64 * 1024 * 1024


def window_seconds(*, report_interval_seconds: int) -> int:
    """Return the longest window at this report interval."""
    short = report_interval_seconds <= SHORT_INTERVAL_SECONDS
    return SHORT_WINDOW_SECONDS_MAX if short else WINDOW_SECONDS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterWindow:
    """What one GPU did in `[starts_at, ends_at)`; `attached_seconds` are those with memory in use."""

    gpu_uuid: str
    starts_at: dt.datetime
    ends_at: dt.datetime
    up_seconds: int
    busy_seconds: int | None
    energy_millijoules: int | None
    memory_used_bytes_max: int | None
    temperature_celsius_max: int | None
    attached_seconds: int | None = None


class EnergySpan:
    """The energy that a counter shows between two instants at which it was read.

    The counter restarts with the driver. Then a new segment starts at the new figure: what was counted up to
    the last reading is kept, and what fell between that and the restart is nobody's.
    """

    def __init__(self) -> None:
        self._now: int | None = None  # as of the last look
        self._start: int | None = None  # at the begin of the span
        self._last: int | None = None  # the last one that could be read within the span
        self._sum = 0

    def begin(self) -> None:
        """Start a new span where the counter is now."""
        self._start = self._last = self._now
        self._sum = 0

    def read(self, counter: int | None) -> None:
        """Take in what the counter shows, `None` where it cannot be read."""
        self._now = counter
        if counter is None:
            return
        if self._last is not None and counter > self._last:
            self._sum += counter - self._last
        self._last = counter

    def gained(self) -> int | None:
        """Return the energy of the span; `None` unless the counter was read at both of its ends."""
        return None if self._start is None or self._now is None else self._sum


class GpuMeter:
    """The open window of one GPU. `blind` says that nobody watched until the first sample."""

    def __init__(
        self, *, gpu_uuid: str, starts_at: dt.datetime, sample: Sample | None, blind: bool = False
    ) -> None:
        self._gpu_uuid = gpu_uuid
        self._blind = blind
        self._energy = EnergySpan()
        self._energy.read(None if sample is None else sample.energy_millijoules)
        self._seen_until = starts_at
        self._open(starts_at)

    def _open(self, starts_at: dt.datetime) -> None:
        self._starts_at = starts_at
        self._energy.begin()
        self._up_seconds = 0
        self._busy_seconds = 0.0
        self._attached_seconds: int | None = 0
        self._unseen = False
        self._memory_max: int | None = None
        self._temperature_max: int | None = None

    def advance(
        self, *, at: dt.datetime, sample: Sample | None, window_max: int
    ) -> list[MeterWindow]:
        """Account for the time until `at`, of which `sample` tells; return the windows that are full.

        A sample speaks for at most `WINDOW_SECONDS_MAX` seconds before it; a longer stretch was not seen.
        """
        closed: list[MeterWindow] = []
        stretch = int((at - self._seen_until).total_seconds())
        if stretch <= 0:
            return closed
        if stretch > WINDOW_SECONDS_MAX:
            closed += self._close()
            while self._seen_until < at:
                step = min(WINDOW_SECONDS_MAX, int((at - self._seen_until).total_seconds()))
                self._account(step, None)
                closed += self._close()
            self._energy = EnergySpan()
            self._energy.read(None if sample is None else sample.energy_millijoules)
            self._energy.begin()
            self._blind = False
            return closed
        if (at - self._starts_at).total_seconds() > window_max:
            closed += self._close()
        self._account(stretch, sample)
        if (self._seen_until - self._starts_at).total_seconds() >= window_max:
            closed += self._close()
        return closed

    def finish(self, *, at: dt.datetime, sample: Sample | None) -> list[MeterWindow]:
        """Account for the time until `at` and return all windows that are left."""
        return self.advance(at=at, sample=sample, window_max=WINDOW_SECONDS_MAX) + self._close()

    def _account(self, seconds: int, sample: Sample | None) -> None:
        self._seen_until += dt.timedelta(seconds=seconds)
        if sample is None:
            self._unseen = True
            self._attached_seconds = None
            self._energy.read(None)
            self._up_seconds += seconds
            return
        lost = LOST in sample.unread.values()
        self._up_seconds += 0 if lost else seconds
        if sample.utilization_percent is None or self._blind:
            self._unseen = True
        else:
            self._busy_seconds += seconds * sample.utilization_percent / 100
        if sample.memory_used_bytes is None or self._blind:
            self._attached_seconds = None
        elif self._attached_seconds is not None and sample.memory_used_bytes > ATTACHED_BYTES_MIN:
            self._attached_seconds += seconds
        self._blind = False
        self._energy.read(sample.energy_millijoules)
        self._memory_max = larger(self._memory_max, sample.memory_used_bytes)
        self._temperature_max = larger(self._temperature_max, sample.temperature_celsius)

    def _close(self) -> list[MeterWindow]:
        if self._seen_until == self._starts_at:
            return []
        window = MeterWindow(
            gpu_uuid=self._gpu_uuid,
            starts_at=self._starts_at,
            ends_at=self._seen_until,
            up_seconds=self._up_seconds,
            busy_seconds=None if self._unseen else min(round(self._busy_seconds), self._up_seconds),
            energy_millijoules=self._energy.gained(),
            memory_used_bytes_max=self._memory_max,
            temperature_celsius_max=self._temperature_max,
            attached_seconds=self._attached_seconds,
        )
        self._open(self._seen_until)
        return [window]


def larger(a: int | None, b: int | None) -> int | None:
    """Return the larger of two values, or the one that is known."""
    return max((value for value in (a, b) if value is not None), default=None)
