"""Time as the agent uses it: a clock that runs by CLOCK_BOOTTIME and is set by the market.

`CLOCK_BOOTTIME` goes on while the machine sleeps and never jumps, so that a lease ends when it should even
if somebody sets the wall clock of the host. The wall clock gives only the first reading; from then on the
market's answers tell. Of the last eight the one with the shortest round trip is believed, because it had the
least time to be late in; it moves the agent's idea of now when it is more than `CLOCK_TOLERANCE` away.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

CLOCK_TOLERANCE = dt.timedelta(seconds=2)  # a slow round trip looks like this much of an offset
ANSWERS_REMEMBERED = (
    8  # two minutes at the usual interval: no quartz drifts by a millisecond meanwhile
)


class Clock(Protocol):
    """Where time comes from; tests hand in their own."""

    def wall(self) -> dt.datetime:
        """Return the time of day in UTC."""
        ...

    def boottime_seconds(self) -> float:
        """Return the seconds since the machine started, sleep included; never goes back."""
        ...

    def wait(self, *, seconds: float) -> None:
        """Return after `seconds`, or sooner when somebody wakes the clock."""
        ...


class SystemClock:
    """The clock of the machine."""

    def __init__(self) -> None:
        self._wake = threading.Event()

    def wall(self) -> dt.datetime:
        """Return the time of day in UTC."""
        return dt.datetime.now(tz=dt.UTC)

    def boottime_seconds(self) -> float:
        """Return CLOCK_BOOTTIME, or the monotonic clock where there is none."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def wait(self, *, seconds: float) -> None:
        """Return after `seconds`, or at once when `wake` was called."""
        self._wake.wait(timeout=max(0.0, seconds))
        self._wake.clear()

    def wake(self) -> None:
        """End a wait early; safe in a signal handler."""
        self._wake.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """The market's time at the zero of the boot clock, as one answer told it, and how wrong it may be."""

    zero: dt.datetime
    doubt: dt.timedelta


class MarketClock:
    """The market's time of day, carried on by the boot clock between its answers."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._zero = clock.wall() - dt.timedelta(seconds=clock.boottime_seconds())
        self._told: deque[_Told] = deque(maxlen=ANSWERS_REMEMBERED)

    def now(self) -> dt.datetime:
        """Return the instant in UTC."""
        return self._zero + dt.timedelta(seconds=self._clock.boottime_seconds())

    def boottime_seconds(self) -> float:
        """Return the boot clock, for intervals that no correction may touch."""
        return self._clock.boottime_seconds()

    def learn(
        self,
        *,
        market_now: dt.datetime,
        round_trip_seconds: float = 0.0,
        resolution_seconds: float = 0.0,
    ) -> dt.timedelta | None:
        """Take in an answer that has just come; return how far the clock was moved, `None` when it stayed.

        The market wrote `market_now` somewhere within the round trip, so half of it is in doubt; so is half
        of `resolution_seconds` where the market cut its time off. Older answers that this one contradicts
        are forgotten: the market's clock was set.
        """
        doubt = dt.timedelta(seconds=(round_trip_seconds + resolution_seconds) / 2)
        elapsed = dt.timedelta(seconds=self._clock.boottime_seconds())
        told = _Told(zero=market_now + doubt - elapsed, doubt=doubt)
        agreeing = [
            other
            for other in self._told
            if abs(other.zero - told.zero) <= other.doubt + told.doubt + CLOCK_TOLERANCE
        ]
        self._told = deque([*agreeing, told], maxlen=ANSWERS_REMEMBERED)
        best = min(reversed(self._told), key=lambda one: one.doubt)
        offset = best.zero - self._zero
        if abs(offset) <= CLOCK_TOLERANCE:
            return None
        self._zero = best.zero
        return offset
