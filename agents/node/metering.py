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


def window_seconds(*, report_interval_seconds: int) -> int:
    """Return the longest window at this report interval."""
    short = report_interval_seconds <= SHORT_INTERVAL_SECONDS
    return SHORT_WINDOW_SECONDS_MAX if short else WINDOW_SECONDS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterWindow:
    """What one GPU did in `[starts_at, ends_at)`."""

    gpu_uuid: str
    starts_at: dt.datetime
    ends_at: dt.datetime
    up_seconds: int
    busy_seconds: int | None
    energy_millijoules: int | None
    memory_used_bytes_max: int | None
    temperature_celsius_max: int | None


class GpuMeter:
    """The open window of one GPU. `blind` says that nobody watched until the first sample."""

    def __init__(
        self, *, gpu_uuid: str, starts_at: dt.datetime, sample: Sample | None, blind: bool = False
    ) -> None:
        self._gpu_uuid = gpu_uuid
        self._blind = blind
        self._energy = None if sample is None else sample.energy_millijoules
        self._seen_until = starts_at
        self._open(starts_at)

    def _open(self, starts_at: dt.datetime) -> None:
        self._starts_at = starts_at
        self._energy_at_start = self._energy
        self._up_seconds = 0
        self._busy_seconds = 0.0
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
            self._energy = self._energy_at_start = (
                None if sample is None else sample.energy_millijoules
            )
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
            self._energy = None
            self._up_seconds += seconds
            return
        lost = LOST in sample.unread.values()
        self._up_seconds += 0 if lost else seconds
        if sample.utilization_percent is None or self._blind:
            self._unseen = True
        else:
            self._busy_seconds += seconds * sample.utilization_percent / 100
        self._blind = False
        self._energy = sample.energy_millijoules
        self._memory_max = larger(self._memory_max, sample.memory_used_bytes)
        self._temperature_max = larger(self._temperature_max, sample.temperature_celsius)

    def _close(self) -> list[MeterWindow]:
        if self._seen_until == self._starts_at:
            return []
        gained: int | None = None
        if self._energy is not None and self._energy_at_start is not None:
            gained = self._energy - self._energy_at_start
            if gained < 0:
                gained = None  # the counter restarts with the driver
        window = MeterWindow(
            gpu_uuid=self._gpu_uuid,
            starts_at=self._starts_at,
            ends_at=self._seen_until,
            up_seconds=self._up_seconds,
            busy_seconds=None if self._unseen else min(round(self._busy_seconds), self._up_seconds),
            energy_millijoules=gained,
            memory_used_bytes_max=self._memory_max,
            temperature_celsius_max=self._temperature_max,
        )
        self._open(self._seen_until)
        return [window]


def larger(a: int | None, b: int | None) -> int | None:
    """Return the larger of two values, or the one that is known."""
    return max((value for value in (a, b) if value is not None), default=None)
