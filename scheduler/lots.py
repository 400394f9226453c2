"""Lots: the GPUs of one request by what their owners ask at least, each lot with its own price.

Pure: no ORM, no clock. A request that needs dearer owners pays their price for their GPUs only, so it costs
what its parts would cost one by one. For each lot an hour costs the larger of the pool's rate and the lot's
floor with the fee on top; a request costs the sum over its lots, rounded once, and whatever is a part of that
is priced through the lots of the GPUs that it concerns.

A lot has a number, its place in the sequence, for as long as the promise lives: allocations and leases name
it. Floors are what owners receive at least, hour by hour: hours that were added later may have others.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from marketplace.core.money import (
    SECONDS_PER_HOUR,
    Money,
    currency_exponent,
    round_half_even,
)
from marketplace.core.windows import Window
from scheduler.tariffs import MICROS, Tariff, as_rate


class GpusAtFloor(NamedTuple):
    """So many GPUs of owners who ask at most so much per GPU-hour, fee excluded."""

    floor_rate: Decimal
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lot:
    """GPUs at one price.

    `floors` is what each one's owner receives at least, `tariff` what it costs, per GPU-hour and hour by hour
    over one window. `listing_ids` name listings that serve though they have raised their floors since.
    """

    gpus: int
    floors: Tariff
    tariff: Tariff
    listing_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.gpus > 0, self.gpus
        assert self.floors.window == self.tariff.window, (self.floors, self.tariff)

    @property
    def floor_rate(self) -> Decimal:
        """Return the highest floor of a listing that all hours of the lot pay."""
        lowest = min(segment.rate_micros for segment in self.floors.segments)
        return as_rate(lowest)

    def clipped(self, *, window: Window) -> "Lot":
        """Return the lot in a part of its window."""
        return replace(
            self,
            floors=self.floors.clipped(window=window),
            tariff=self.tariff.clipped(window=window),
        )


@dataclass(frozen=True, slots=True)
class Lots:
    """What a request has and what it costs: one lot or more, of one window."""

    lots: tuple[Lot, ...]

    def __post_init__(self) -> None:
        assert self.lots, "a request has GPUs"
        assert len({lot.tariff.window for lot in self.lots}) == 1, "lots have one window"

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]]) -> "Lots":
        """Return what `as_json` wrote."""
        return cls(
            tuple(
                Lot(
                    gpus=row["gpus"],
                    floors=Tariff.from_json(row["floors"]),
                    tariff=Tariff.from_json(row["tariff"]),
                    listing_ids=tuple(row["listing_ids"]),
                )
                for row in rows
            )
        )

    def as_json(self) -> list[dict[str, Any]]:
        """Return an object per lot; tariffs and floors as `Tariff.as_json` writes them."""
        return [
            {
                "gpus": lot.gpus,
                "floors": lot.floors.as_json(),
                "tariff": lot.tariff.as_json(),
                "listing_ids": list(lot.listing_ids),
            }
            for lot in self.lots
        ]

    @property
    def gpus(self) -> int:
        return sum(lot.gpus for lot in self.lots)

    @property
    def window(self) -> Window:
        return self.lots[0].tariff.window

    @property
    def floor_rate(self) -> Decimal:
        """Return the floor of the dearest owner who may serve."""
        return max(lot.floor_rate for lot in self.lots)

    def value(self, *, window: Window) -> Fraction:
        """Return what all GPUs cost over the part of `window` that the lots cover, in major units."""
        return sum(
            (lot.tariff.value(window=window) * lot.gpus for lot in self.lots), start=Fraction(0)
        )

    def amount(self, *, window: Window, currency: str) -> Money:
        """Return what all GPUs cost over a part of the window, rounded once."""
        return _rounded(self.value(window=window), currency=currency)

    def value_of(self, *, numbers: Iterable[int], window: Window) -> Fraction:
        """Return what some GPUs cost, of which the lots are given, one number each; in major units."""
        exact = self.micro_seconds_of(numbers=numbers, window=window)
        return Fraction(exact, MICROS * SECONDS_PER_HOUR)

    def micro_seconds_of(self, *, numbers: Iterable[int], window: Window) -> int:
        """Return the same exactly as a whole number: micros per GPU-hour × seconds."""
        return sum(
            count * self.lots[number].tariff.micro_seconds(window=window)
            for number, count in Counter(numbers).items()
        )

    def amount_of(self, *, numbers: Iterable[int], window: Window, currency: str) -> Money:
        """Return what some GPUs cost, of which the lots are given, rounded once."""
        return _rounded(self.value_of(numbers=numbers, window=window), currency=currency)

    @property
    def mean_rate(self) -> Decimal:
        """Return the mean rate per GPU-hour over all GPUs and the whole window, rounded up to six places."""
        return mean_rate(
            self.value(window=self.window), gpu_seconds=self.gpus * self.window.seconds
        )

    def clipped(self, *, window: Window) -> "Lots":
        """Return the lots in a part of their window; the two must overlap."""
        return Lots(tuple(lot.clipped(window=window) for lot in self.lots))

    def joined(self, *others: "Lots") -> "Lots":
        """Return these lots and others of the same GPUs in neighbouring windows, as one."""
        parts = sorted((self, *others), key=lambda part: part.window.starts_at)
        assert len({tuple(lot.gpus for lot in part.lots) for part in parts}) == 1, parts
        return Lots(
            tuple(
                replace(
                    lot,
                    floors=_joined([part.lots[number].floors for part in parts]),
                    tariff=_joined([part.lots[number].tariff for part in parts]),
                )
                for number, lot in enumerate(self.lots)
            )
        )


def mean_rate(value: Fraction, *, gpu_seconds: int) -> Decimal:
    """Return a value in major units per GPU-hour, rounded up to six places."""
    micros = value * SECONDS_PER_HOUR * MICROS / gpu_seconds
    return as_rate(-(-micros.numerator // micros.denominator))


def _joined(tariffs: Sequence[Tariff]) -> Tariff:
    return Tariff.of([segment for tariff in tariffs for segment in tariff.segments])


def _rounded(value: Fraction, *, currency: str) -> Money:
    return Money(round_half_even(value * 10 ** currency_exponent(currency)), currency)
