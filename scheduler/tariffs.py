"""Tariffs: what an hour of a window costs, exactly, for as long as the promise lives.

Pure: no ORM, no clock. A tariff is the locked rate of one GPU as a step function of time. Whatever is a part
of a reservation's price (a lease, an hour, what is given back, what is added) is priced through it, so that
parts add up to the whole and nobody has to remember which hour was dear.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from marketplace.core.money import (
    RATE_DECIMAL_PLACES,
    SECONDS_PER_HOUR,
    Money,
    currency_exponent,
    round_half_even,
)
from marketplace.core.windows import Window, to_instant, to_seconds

MICROS = 10**RATE_DECIMAL_PLACES


def as_rate(micros: int) -> Decimal:
    """Return micros per GPU-hour as a rate of six places."""
    return Decimal(micros).scaleb(-RATE_DECIMAL_PLACES)


@dataclass(frozen=True, slots=True)
class Segment:
    """One rate from `starts` to `ends`, half-open, seconds since the Unix epoch; micros per GPU-hour."""

    starts: int
    ends: int
    rate_micros: int

    def __post_init__(self) -> None:
        assert self.starts < self.ends, self
        assert self.rate_micros > 0, self


@dataclass(frozen=True, slots=True)
class Tariff:
    """The rate per GPU-hour, fee included, over one window: segments without a gap, rising in time."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        assert self.segments, "a tariff covers a window"
        for earlier, later in zip(self.segments, self.segments[1:], strict=False):
            assert earlier.ends == later.starts, (earlier, later)

    @classmethod
    def flat(cls, *, window: Window, rate: Decimal) -> "Tariff":
        """Return the tariff of one rate; `rate` has at most six places."""
        micros = rate.scaleb(RATE_DECIMAL_PLACES)
        assert micros == int(micros), rate
        return cls(
            (Segment(to_seconds(window.starts_at), to_seconds(window.ends_at), int(micros)),)
        )

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "Tariff":
        """Return the tariff of some segments in order; neighbours of one rate become one segment."""
        joined: list[Segment] = []
        for segment in segments:
            last = joined[-1] if joined else None
            if last and last.ends == segment.starts and last.rate_micros == segment.rate_micros:
                joined[-1] = Segment(last.starts, segment.ends, last.rate_micros)
            else:
                joined.append(segment)
        return cls(tuple(joined))

    @classmethod
    def from_json(cls, rows: Sequence[Sequence[int]]) -> "Tariff":
        """Return what `as_json` wrote."""
        return cls(tuple(Segment(*row) for row in rows))

    def as_json(self) -> list[list[int]]:
        """Return rows of start, end (seconds since the Unix epoch) and micros per GPU-hour."""
        return [[s.starts, s.ends, s.rate_micros] for s in self.segments]

    @property
    def window(self) -> Window:
        return Window(to_instant(self.segments[0].starts), to_instant(self.segments[-1].ends))

    def value(self, *, window: Window) -> Fraction:
        """Return what one GPU costs over the part of `window` that the tariff covers, in major units."""
        return Fraction(self.micro_seconds(window=window), MICROS * SECONDS_PER_HOUR)

    def micro_seconds(self, *, window: Window) -> int:
        """Return the same exactly as a whole number: micros per GPU-hour × seconds."""
        starts, ends = to_seconds(window.starts_at), to_seconds(window.ends_at)
        return sum(
            max(0, min(s.ends, ends) - max(s.starts, starts)) * s.rate_micros for s in self.segments
        )

    def amount(self, *, window: Window, gpus: int, currency: str) -> Money:
        """Return what some GPUs cost over a part of the window, rounded once."""
        exact = self.value(window=window) * gpus * 10 ** currency_exponent(currency)
        return Money(round_half_even(exact), currency)

    @property
    def mean_rate(self) -> Decimal:
        """Return the mean rate per GPU-hour, rounded up to six places."""
        seconds = self.segments[-1].ends - self.segments[0].starts
        micros = self.value(window=self.window) * SECONDS_PER_HOUR * MICROS / seconds
        return as_rate(-(-micros.numerator // micros.denominator))

    def clipped(self, *, window: Window) -> "Tariff":
        """Return the tariff of a part of the window; the two must overlap."""
        starts, ends = to_seconds(window.starts_at), to_seconds(window.ends_at)
        return Tariff(
            tuple(
                Segment(max(s.starts, starts), min(s.ends, ends), s.rate_micros)
                for s in self.segments
                if max(s.starts, starts) < min(s.ends, ends)
            )
        )

    def followed_by(self, later: "Tariff") -> "Tariff":
        """Return this tariff and one that begins where it ends, as one."""
        return Tariff.of([*self.segments, *later.segments])
