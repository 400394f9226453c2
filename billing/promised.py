"""What is promised, and what a part of a window costs of the whole price: exact, and parts add up to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from marketplace.core.money import round_half_even
from marketplace.core.windows import Window
from scheduler.lots import Lots
from scheduler.models import ChangeQuote, Quote, Reservation
from scheduler.states import ReservationStatus

# What was promised and stays so; a cancelled reservation keeps a window and promises nothing in it.
PROMISED = (
    ReservationStatus.SCHEDULED,
    ReservationStatus.ACTIVE,
    ReservationStatus.COMPLETED,
    ReservationStatus.RECLAIMED,
    ReservationStatus.FAILED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A price in minor units, and the tariffs by which it is spread over its window."""

    total_minor: int
    lots: Sequence[Mapping[str, Any]]
    window: Window

    @classmethod
    def of(cls, priced: Quote | Reservation) -> "Promise":
        """Return what a quote or a reservation costs."""
        return cls(total_minor=priced.total_minor, lots=priced.lots, window=priced.window)

    @classmethod
    def after(cls, quote: ChangeQuote) -> "Promise | None":
        """Return what a reservation costs after a change, None where nothing is left of it."""
        if quote.window is None:
            return None
        return cls(total_minor=quote.total_minor, lots=quote.lots, window=quote.window)

    def part_minor(self, *, within: Window) -> int:
        """Return the part of the price for what of the window lies within another one.

        It is a difference of two rounded sums, so that the parts of neighbouring windows make the total.
        """
        part = self.window.intersection(within)
        if part is None:
            return 0
        if part == self.window:
            return self.total_minor
        lots = Lots.from_json(self.lots)
        whole = lots.value(window=self.window)
        before, until = (
            lots.value(window=Window(self.window.starts_at, instant))
            if instant > self.window.starts_at
            else Fraction(0)
            for instant in (part.starts_at, part.ends_at)
        )
        return round_half_even(self.total_minor * until / whole) - round_half_even(
            self.total_minor * before / whole
        )


def contracted(reservation: Reservation, *, window: Window) -> tuple[int, int]:
    """Return the GPU-seconds that are promised in a window and their locked price, in minor units.

    The prices of the months of a reservation make its total.
    """
    part = reservation.window.intersection(window)
    if part is None or reservation.status not in PROMISED:
        return 0, 0
    price = Promise.of(reservation).part_minor(within=window)
    return reservation.gpus * part.seconds, price
