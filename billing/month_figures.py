"""What a month came to: the figures of one reservation, or of many added up."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from django.conf import settings

from billing.bills import (
    COVERAGE_QUANTUM,
    KWH_QUANTUM,
    MILLIJOULES_PER_KWH,
    cost_per_hour,
    ratio,
)
from billing.budgets import NO_LABELS, Labels
from billing.month_movements import Movements
from billing.undelivered import Reasons
from marketplace.core.money import Money
from scheduler.models import Reservation


@dataclass(slots=True, kw_only=True)
class Figures:
    """What a month came to, of one reservation or of many, in minor units and GPU-seconds.

    `opening + charged = earned + refunded + fees + closing`. `billed` is what the month took from the tenant
    for its reservations, `list_cost` what that would have been at list price, `effective` what the month used
    of what was billed then or before. Credits are beyond the price and in neither, and
    no amount but `tax` and `billed_with_tax` has tax in it. The reasons add up to what was not delivered.
    """

    promised_seconds: int = 0
    contracted: int = 0
    list_cost: int = 0
    books: Movements = field(default_factory=Movements)
    metered_seconds: int = 0
    busy_measured_seconds: int | None = None
    attached_seconds: int | None = None
    energy_millijoules: int | None = None
    undelivered_by_reason: Reasons = field(default_factory=Counter)

    @property
    def delivered_seconds(self) -> int:
        return self.books.busy + self.books.idle

    @property
    def busy_seconds(self) -> int | None:
        """Return what the books have as busy; None where no meter could tell busy from idle."""
        is_known = self.busy_measured_seconds is not None or self.books.busy
        return self.books.busy if is_known else None

    @property
    def billed(self) -> int:
        return self.books.charged - self.books.refunded

    @property
    def effective(self) -> int:
        return self.books.earned + self.books.fees

    @property
    def tax(self) -> int:
        return self.books.tax_charged - self.books.tax_refunded

    @property
    def billed_with_tax(self) -> int:
        return self.billed + self.tax

    def add(self, other: "Figures") -> None:
        """Add another's figures; a part that is not known leaves the sum at what is."""
        for name in ("promised_seconds", "contracted", "list_cost", "metered_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("busy_measured_seconds", "attached_seconds", "energy_millijoules"):
            setattr(self, name, _sum_known(getattr(self, name), getattr(other, name)))
        for each in fields(Movements):
            total = getattr(self.books, each.name) + getattr(other.books, each.name)
            setattr(self.books, each.name, total)
        self.undelivered_by_reason.update(other.undelivered_by_reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Buyer:
    """Who bought: a user or an API key as the reservation's first move has it, and what it is called."""

    actor: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One reservation in the month; None for what belongs to none, such as a credit out of goodwill.

    `labels` are its project and tags as they were at the end of the month.
    """

    reservation: Reservation | None
    figures: Figures
    labels: Labels = NO_LABELS
    buyer: Buyer | None = None
    lease_ids: tuple[str, ...] = ()


def ratios(figures: Figures) -> dict[str, str | None]:
    """Return what the figures come to per hour and per measured second; None where nothing was."""
    effective = Money(figures.effective, settings.CURRENCY)
    delivered, energy = figures.delivered_seconds, figures.energy_millijoules
    # Readings of an hour that the books have not closed are ahead of them; a share is at most all.
    covered = min(figures.metered_seconds, delivered)
    return {
        "cost_per_delivered_gpu_hour": cost_per_hour(effective, delivered),
        "cost_per_attached_gpu_hour": cost_per_hour(effective, figures.attached_seconds or 0),
        "cost_per_busy_gpu_hour": cost_per_hour(effective, figures.busy_seconds or 0),
        "meter_coverage": ratio(covered, delivered, COVERAGE_QUANTUM) if delivered else None,
        "energy_kwh": None if energy is None else ratio(energy, MILLIJOULES_PER_KWH, KWH_QUANTUM),
    }


def total_of(parts: Iterable[Figures]) -> Figures:
    total = Figures()
    for part in parts:
        total.add(part)
    return total


def _sum_known(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
