"""Time as the agent uses it: a clock that runs by CLOCK_BOOTTIME and is set by the market.

`CLOCK_BOOTTIME` goes on while the machine sleeps and never jumps, so that a lease ends when it should even
if somebody sets the wall clock of the host. The wall clock gives only the first reading; from then on an
answer of the market that is more than `CLOCK_TOLERANCE` away moves the agent's idea of now.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from typing import Protocol

CLOCK_TOLERANCE = dt.timedelta(seconds=2)  # a slow round trip looks like this much of an offset


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


class MarketClock:
    """The market's time of day, carried on by the boot clock between its answers."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._anchor_wall = clock.wall()
        self._anchor_boottime_seconds = clock.boottime_seconds()

    def now(self) -> dt.datetime:
        """Return the instant in UTC."""
        elapsed = self._clock.boottime_seconds() - self._anchor_boottime_seconds
        return self._anchor_wall + dt.timedelta(seconds=elapsed)

    def boottime_seconds(self) -> float:
        """Return the boot clock, for intervals that no correction may touch."""
        return self._clock.boottime_seconds()

    def learn(self, *, market_now: dt.datetime) -> dt.timedelta | None:
        """Move to the market's time when it is further away than a round trip explains.

        Return how far the clock was moved, or `None` when it stayed.
        """
        offset = market_now - self.now()
        if abs(offset) <= CLOCK_TOLERANCE:
            return None
        self._anchor_wall = market_now
        self._anchor_boottime_seconds = self._clock.boottime_seconds()
        return offset
