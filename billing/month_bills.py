"""The bill of a month of UTC: what a tenant's reservations were charged, used and got back in it.

Money and GPU-seconds come from the books, so months add up to them to the minor unit; when something belongs
to which month is told in `billing.month_movements`. The contracted price is the lots' of the part of the
window that lies in the month; the list cost is that of what was billed, as FOCUS has it of its purchases.
What no meter measured is None.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from django.conf import settings
from django.db.models import DateTimeField, F, Max, Q
from django.db.models.functions import Coalesce, Least

from agents import meter_sums
from billing import allocation, budgets, focus, list_prices, month_movements, undelivered
from billing.allocation import Group
from billing.budgets import BudgetStanding
from billing.month_figures import Buyer, Figures, Row, total_of
from billing.month_movements import Movements
from billing.promised import PROMISED, contracted
from marketplace.core.money import Money
from marketplace.core.windows import Window
from marketplace.models import ApiKey, Organization
from scheduler.models import Lease, Reservation, ReservationTransition
from scheduler.states import ReservationStatus

AHEAD = (ReservationStatus.SCHEDULED, ReservationStatus.ACTIVE)
MINUTES_PATH = "/v1/leases/{lease_id}/utilization?resolution=minute"  # the evidence of an hour
TREND_MONTHS = 3  # a quarter: what a GPU-hour costs moves with the season, not with a week


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What is promised from an instant on: scheduled, or running and not yet over."""

    since: dt.datetime
    reservations: int
    gpu_seconds: int
    contracted: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """A month beside others: what it came to in all."""

    month: str
    figures: Figures


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
    by_buyer: list[Group]
    by_tag: list[Group]
    untagged: Group
    trend: list[Month]
    ahead: Ahead
    ahead_by_month: list[tuple[str, Ahead]]
    budgets: list[BudgetStanding]


def month_bill(*, organization: Organization, month: str, at: dt.datetime) -> MonthBill:
    """Return the bill of a month as it stands at an instant; the number of queries depends on budgets alone.

    :raises ValueError: when `month` names no month.
    """
    window = month_movements.month_window(month=month)
    rows = rows_of(organization=organization, window=window)
    total = total_of(row.figures for row in rows)
    since = max(window.ends_at, at)
    return MonthBill(
        month=month,
        window=window,
        currency=settings.CURRENCY,
        final=_is_final(organization=organization, window=window, at=at),
        total=total,
        rows=rows,
        by_project=allocation.by(rows, dimension=allocation.PROJECT, whole=total),
        by_buyer=allocation.by(rows, dimension=allocation.BUYER, whole=total),
        by_tag=allocation.by_tags(rows, whole=total),
        untagged=allocation.untagged(rows, whole=total),
        trend=[
            *_months_before(organization=organization, window=window),
            Month(month=month, figures=total),
        ],
        ahead=_ahead(organization=organization, since=since),
        ahead_by_month=ahead_by_month(organization=organization, since=since),
        budgets=budgets.standings(organization=organization, at=window.starts_at),
    )


def rows_of(*, organization: Organization, window: Window) -> list[Row]:
    """Return each reservation that has a part in the month, in the order in which they were made."""
    moved = month_movements.in_month(
        organization=organization, window=window, currency=settings.CURRENCY
    )
    moved = {key: books for key, books in moved.items() if books != Movements()}
    promised = Q(status__in=PROMISED, starts_at__lt=window.ends_at, ends_at__gt=window.starts_at)
    reservations = (
        Reservation.objects.visible_to(organization)
        .filter(promised | Q(pk__in=list(moved)))
        .select_related("quote")
        .order_by("pk")
    )
    reasons = undelivered.in_month(organization=organization, window=window)
    figures: dict[str, Figures] = {}
    found = list(reservations)
    for reservation in found:
        seconds, price = contracted(reservation, window=window)
        books = moved.pop(reservation.pk, Movements())
        figures[reservation.pk] = Figures(
            promised_seconds=seconds,
            contracted=price,
            list_cost=list_prices.cost_minor(
                quote=reservation.quote,
                gpu_seconds=books.bought - books.undelivered - books.released,
            ),
            books=books,
            undelivered_by_reason=undelivered.complete(
                reasons.get(reservation.pk, {}), undelivered=books.undelivered
            ),
        )
    leases = _meter(figures, window=window)
    buyers = buyers_of(reservation_ids=figures)
    labels = budgets.labels_before(reservations=found, at=window.ends_at)
    rows = [
        Row(
            reservation=each,
            figures=figures[each.pk],
            labels=labels[each.pk],
            buyer=buyers.get(each.pk),
            lease_ids=tuple(leases[each.pk]),
        )
        for each in found
    ]
    rest = total_of(Figures(books=books) for books in moved.values())
    return [*rows, Row(reservation=None, figures=rest)] if moved else rows


def _months_before(*, organization: Organization, window: Window) -> list[Month]:
    """Return the months before one, the oldest first, with which a quarter is full."""
    found: list[Month] = []
    ends_at = window.starts_at
    while len(found) < TREND_MONTHS - 1:
        before = Window((ends_at - dt.timedelta(days=1)).replace(day=1), ends_at)
        rows = rows_of(organization=organization, window=before)
        total = total_of(row.figures for row in rows)
        found.insert(0, Month(month=f"{before.starts_at:%Y-%m}", figures=total))
        ends_at = before.starts_at
    return found


def buyers_of(*, reservation_ids: Collection[str]) -> dict[str, Buyer]:
    """Return who made each reservation, a key by its name; two queries."""
    actors = dict(
        ReservationTransition.objects.filter(
            reservation__in=list(reservation_ids), from_status=""
        ).values_list("reservation_id", "actor")
    )
    names = dict(ApiKey.objects.filter(pk__in=set(actors.values())).values_list("pk", "name"))
    return {key: Buyer(actor=actor, name=names.get(actor, actor)) for key, actor in actors.items()}


def _meter(figures: dict[str, Figures], *, window: Window) -> dict[str, list[str]]:
    """Add what the meters of the month say; return the leases of each reservation, the oldest first."""
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
    found: dict[str, list[str]] = defaultdict(list)
    for lease_id in sorted(leases):
        found[leases[lease_id]].append(lease_id)
    return found


def _ahead(*, organization: Organization, since: dt.datetime) -> Ahead:
    promised = Reservation.objects.visible_to(organization).filter(
        status__in=AHEAD, ends_at__gt=since
    )
    parts = [
        contracted(each, window=Window(since, each.ends_at)) for each in promised.order_by("pk")
    ]
    return Ahead(
        since=since,
        reservations=len(parts),
        gpu_seconds=sum(seconds for seconds, _ in parts),
        contracted=Money(sum(price for _, price in parts), settings.CURRENCY),
    )


def focus_paths(*, month: str) -> list[str]:
    """Return where the API has the FOCUS files of a month, each version and dataset."""
    return [
        f"/v1/exports/focus?month={month}&version={version.value}&dataset={dataset.value}"
        for version, dataset in focus.COLUMNS
    ]


def ahead_by_month(*, organization: Organization, since: dt.datetime) -> list[tuple[str, Ahead]]:
    """Return what is promised from an instant on, by month of UTC; months without anything are left out."""
    promised = Reservation.objects.visible_to(organization).filter(
        status__in=AHEAD, ends_at__gt=since
    )
    return ahead_of(promised.order_by("pk"), since=since)


def ahead_of(reservations: Iterable[Reservation], *, since: dt.datetime) -> list[tuple[str, Ahead]]:
    """Return what some reservations, which are scheduled or run, promise from an instant on, by month."""
    promised = list(reservations)
    last = max((each.ends_at for each in promised), default=since)
    found: list[tuple[str, Ahead]] = []
    while since < last:
        month = month_movements.month_window(month=f"{since.astimezone(dt.UTC):%Y-%m}")
        window = Window(since, month.ends_at)
        parts = [contracted(each, window=window) for each in promised]
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
