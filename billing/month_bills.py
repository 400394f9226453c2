"""The bill of a month of UTC: what a tenant's reservations were charged, used and got back in it.

Money and GPU-seconds come from the books, so months add up to them to the minor unit; when something belongs
to which month is told in `billing.month_movements`. The contracted price is the lots' of the part of the
window that lies in the month. What no meter measured is None.
"""

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields

from django.conf import settings
from django.db.models import DateTimeField, F, Max, Q
from django.db.models.functions import Coalesce, Least

from agents import meter_sums
from billing import budgets, month_movements
from billing.bills import (
    COVERAGE_QUANTUM,
    KWH_QUANTUM,
    MILLIJOULES_PER_KWH,
    cost_per_hour,
    ratio,
)
from billing.budgets import BudgetStanding
from billing.month_movements import Movements
from billing.promised import Promise
from marketplace.core.money import Money
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler.models import Lease, Reservation
from scheduler.states import ReservationStatus

# What was promised and stays so; a cancelled reservation keeps a window and promises nothing in it.
_PROMISED = (
    ReservationStatus.SCHEDULED,
    ReservationStatus.ACTIVE,
    ReservationStatus.COMPLETED,
    ReservationStatus.RECLAIMED,
    ReservationStatus.FAILED,
)
_AHEAD = (ReservationStatus.SCHEDULED, ReservationStatus.ACTIVE)


@dataclass(slots=True, kw_only=True)
class Figures:
    """What a month came to, of one reservation or of many, in minor units and GPU-seconds.

    `opening + charged = earned + refunded + fees + closing`. `billed` is what the month took from the tenant
    for its reservations, `effective` what it used of that. Credits are beyond the price and in neither, and
    no amount but `tax` and `billed_with_tax` has tax in it.
    """

    promised_seconds: int = 0
    contracted: int = 0
    books: Movements = field(default_factory=Movements)
    metered_seconds: int = 0
    busy_measured_seconds: int | None = None
    attached_seconds: int | None = None
    energy_millijoules: int | None = None

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
        for name in ("promised_seconds", "contracted", "metered_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("busy_measured_seconds", "attached_seconds", "energy_millijoules"):
            setattr(self, name, _sum_known(getattr(self, name), getattr(other, name)))
        for each in fields(Movements):
            total = getattr(self.books, each.name) + getattr(other.books, each.name)
            setattr(self.books, each.name, total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One reservation in the month; None for what belongs to none, such as a credit out of goodwill."""

    reservation: Reservation | None
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The sum of the reservations of a project, or of those with one value of a tag."""

    name: str
    value: str
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What is promised from an instant on: scheduled, or running and not yet over."""

    since: dt.datetime
    reservations: int
    gpu_seconds: int
    contracted: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class MonthBill:
    """The bill of a month. `final`: the month is over and every hour of it has found its place."""

    month: str
    window: Window
    currency: str
    final: bool
    total: Figures
    rows: list[Row]
    by_project: list[Group]
    by_tag: list[Group]
    ahead: Ahead
    budgets: list[BudgetStanding]


def month_bill(*, organization: Organization, month: str, at: dt.datetime) -> MonthBill:
    """Return the bill of a month as it stands at an instant; the number of queries depends on budgets alone.

    :raises ValueError: when `month` names no month.
    """
    window = month_movements.month_window(month=month)
    rows = rows_of(organization=organization, window=window)
    return MonthBill(
        month=month,
        window=window,
        currency=settings.CURRENCY,
        final=_is_final(organization=organization, window=window, at=at),
        total=_total(row.figures for row in rows),
        rows=rows,
        by_project=_groups(rows, names=lambda reservation: [("project", reservation.project)]),
        by_tag=_groups(rows, names=lambda reservation: sorted(reservation.tags.items())),
        ahead=_ahead(organization=organization, since=max(window.ends_at, at)),
        budgets=budgets.standings(organization=organization, at=window.starts_at),
    )


def rows_of(*, organization: Organization, window: Window) -> list[Row]:
    """Return each reservation that has a part in the month, in the order in which they were made."""
    moved = month_movements.in_month(
        organization=organization, window=window, currency=settings.CURRENCY
    )
    moved = {key: books for key, books in moved.items() if books != Movements()}
    promised = Q(status__in=_PROMISED, starts_at__lt=window.ends_at, ends_at__gt=window.starts_at)
    reservations = (
        Reservation.objects.visible_to(organization)
        .filter(promised | Q(pk__in=list(moved)))
        .order_by("pk")
    )
    figures: dict[str, Figures] = {}
    rows: list[Row] = []
    for reservation in reservations:
        seconds, contracted = _contracted(reservation, window=window)
        books = moved.pop(reservation.pk, Movements())
        figures[reservation.pk] = Figures(
            promised_seconds=seconds, contracted=contracted, books=books
        )
        rows.append(Row(reservation=reservation, figures=figures[reservation.pk]))
    _meter(figures, window=window)
    rest = _total(Figures(books=books) for books in moved.values())
    return [*rows, Row(reservation=None, figures=rest)] if moved else rows


def ratios(figures: Figures) -> dict[str, str | None]:
    """Return what the figures come to per hour and per measured second; None where nothing was."""
    effective = Money(figures.effective, settings.CURRENCY)
    delivered, energy = figures.delivered_seconds, figures.energy_millijoules
    # Readings of an hour that the books have not closed are ahead of them; a share is at most all.
    covered = min(figures.metered_seconds, delivered)
    return {
        "cost_per_delivered_gpu_hour": cost_per_hour(effective, delivered),
        "cost_per_busy_gpu_hour": cost_per_hour(effective, figures.busy_seconds or 0),
        "meter_coverage": ratio(covered, delivered, COVERAGE_QUANTUM) if delivered else None,
        "energy_kwh": None if energy is None else ratio(energy, MILLIJOULES_PER_KWH, KWH_QUANTUM),
    }


def _contracted(reservation: Reservation, *, window: Window) -> tuple[int, int]:
    """Return the GPU-seconds that are promised in a window and their price.

    The prices of the months of a reservation make its total.
    """
    part = reservation.window.intersection(window)
    if part is None or reservation.status not in _PROMISED:
        return 0, 0
    price = Promise.of(reservation).part_minor(within=window)
    return reservation.gpus * part.seconds, price


def _meter(figures: dict[str, Figures], *, window: Window) -> None:
    """Add what the meters of the month say."""
    leases = dict(
        Lease.objects.filter(
            reservation__in=list(figures),
            starts_at__lt=window.ends_at,
            ends_at__gt=window.starts_at,
        ).values_list("pk", "reservation_id")
    )
    sums = meter_sums.sums_by_lease(lease_ids=list(leases), window=window)
    for lease_id, each in sums.items():
        figures[leases[lease_id]].add(
            Figures(
                metered_seconds=each.up_seconds,
                busy_measured_seconds=each.busy_seconds,
                attached_seconds=each.attached_seconds,
                energy_millijoules=each.energy_millijoules,
            )
        )


def _groups(
    rows: Iterable[Row], *, names: Callable[[Reservation], list[tuple[str, str]]]
) -> list[Group]:
    found: dict[tuple[str, str], Figures] = {}
    for row in rows:
        if row.reservation is not None:
            for name in names(row.reservation):
                found.setdefault(name, Figures()).add(row.figures)
    return [
        Group(name=name, value=value, figures=figures)
        for (name, value), figures in sorted(found.items())
    ]


def _total(parts: Iterable[Figures]) -> Figures:
    total = Figures()
    for part in parts:
        total.add(part)
    return total


def _ahead(*, organization: Organization, since: dt.datetime) -> Ahead:
    promised = Reservation.objects.visible_to(organization).filter(
        status__in=_AHEAD, ends_at__gt=since
    )
    parts = [
        _contracted(each, window=Window(since, each.ends_at)) for each in promised.order_by("pk")
    ]
    return Ahead(
        since=since,
        reservations=len(parts),
        gpu_seconds=sum(seconds for seconds, _ in parts),
        contracted=Money(sum(price for _, price in parts), settings.CURRENCY),
    )


def ahead_by_month(*, organization: Organization, since: dt.datetime) -> list[tuple[str, Ahead]]:
    """Return what is promised from an instant on, by month of UTC; months without anything are left out."""
    promised = list(
        Reservation.objects.visible_to(organization)
        .filter(status__in=_AHEAD, ends_at__gt=since)
        .order_by("pk")
    )
    last = max((each.ends_at for each in promised), default=since)
    found: list[tuple[str, Ahead]] = []
    while since < last:
        month = month_movements.month_window(month=f"{since.astimezone(dt.UTC):%Y-%m}")
        window = Window(since, month.ends_at)
        parts = [_contracted(each, window=window) for each in promised]
        parts = [(seconds, price) for seconds, price in parts if seconds]
        if parts:
            ahead = Ahead(
                since=since,
                reservations=len(parts),
                gpu_seconds=sum(seconds for seconds, _ in parts),
                contracted=Money(sum(price for _, price in parts), settings.CURRENCY),
            )
            found.append((f"{window.starts_at.astimezone(dt.UTC):%Y-%m}", ahead))
        since = month.ends_at
    return found


def _is_final(*, organization: Organization, window: Window, at: dt.datetime) -> bool:
    """Say whether the month is over and no lease has time in it that is neither closed nor settled."""
    if at < window.ends_at:
        return False
    still_open = (
        Lease.objects.visible_to(organization)
        .filter(
            settlement__isnull=True,
            starts_at__lt=window.ends_at,
            ends_at__gt=window.starts_at,
        )
        .annotate(closed_until=Coalesce(Max("earned_hours__ends_at"), F("starts_at")))
        .filter(closed_until__lt=Least(F("ends_at"), window.ends_at, output_field=DateTimeField()))
    )
    return not still_open.exists()


def _sum_known(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
