"""The bill of a month as a page to print: the same figures in hours and in whole amounts."""

import datetime as dt
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

from django.template.loader import render_to_string

from billing.budgets import BudgetStanding
from billing.month_bills import Figures, Group, MonthBill, Row, ratios
from billing.states import BudgetPeriod
from marketplace.core.money import SECONDS_PER_HOUR, Money
from marketplace.models import Organization

NOT_MEASURED = "—"
_COLUMNS = (
    "promised",
    "delivered",
    "attached",
    "busy",
    "billed",
    "tax",
    "with tax",
    "effective",
    "credits",
    "per delivered GPU-hour",
    "per busy GPU-hour",
    "measured",
    "kWh",
)
_CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a table: what it is of, and the values of the columns."""

    name: str
    detail: str
    values: list[str]


def page(*, bill: MonthBill, organization: Organization, at: dt.datetime) -> str:
    """Return the bill as HTML that needs nothing else."""
    figures, books = bill.total, bill.total.books
    simulated = any(row.reservation and row.reservation.simulated for row in bill.rows)
    money = {
        "Contracted for the month": figures.contracted,
        "Paid before and not yet used": books.opening,
        "Charged": books.charged,
        "Earned by what was delivered": -books.earned,
        "Refunded": -books.refunded,
        "Fees kept of what was given back": -books.fees,
        "Paid and not yet used": books.closing,
        "Credits beyond refunds": books.credits,
        "Billed: charged less refunded": figures.billed,
        "Tax on what was billed": figures.tax,
        "Billed with tax": figures.billed_with_tax,
        "Effective: earned and fees": figures.effective,
    }
    return render_to_string(
        "api/month_bill.html",
        {
            "month": bill.month,
            "organization": organization.name,
            "starts_at": f"{bill.window.starts_at:%Y-%m-%d}",
            "ends_at": f"{bill.window.ends_at - dt.timedelta(days=1):%Y-%m-%d}",
            "now": f"{at:%Y-%m-%d %H:%M}",
            "final": bill.final,
            "simulated": simulated,
            "hours": _hours(figures),
            "money": [(word, str(Money(sum_, bill.currency))) for word, sum_ in money.items()],
            "tables": [
                _table("Reservations", [_reservation(row, bill.currency) for row in bill.rows]),
                _table("By project", [_group(each, bill.currency) for each in bill.by_project]),
                _table("By tag", [_tag(each, bill.currency) for each in bill.by_tag]),
            ],
            "budgets": [_budget(each) for each in bill.budgets],
            "ahead": (
                f"{bill.ahead.reservations} reservations from {bill.ahead.since:%Y-%m-%d %H:%M} on: "
                f"{_in_hours(bill.ahead.gpu_seconds)} GPU-hours for {bill.ahead.contracted}."
            ),
        },
    )


def _hours(figures: Figures) -> list[tuple[str, str]]:
    books, shares = figures.books, ratios(figures)
    seconds = {
        "Promised in the month": figures.promised_seconds,
        "Bought in the month": books.bought,
        "Delivered": figures.delivered_seconds,
        "of which a process was attached": figures.attached_seconds,
        "of which busy": figures.busy_seconds,
        "Not delivered, refunded": books.undelivered,
        "Given back": books.released,
    }
    return [
        *((word, _in_hours(count)) for word, count in seconds.items()),
        ("Share of delivered that was measured", shares["meter_coverage"] or NOT_MEASURED),
        ("Energy, kWh", shares["energy_kwh"] or NOT_MEASURED),
    ]


def _table(title: str, rows: list[_Line]) -> dict[str, object]:
    return {"title": title, "columns": ["", *_COLUMNS], "rows": rows}


def _reservation(row: Row, currency: str) -> _Line:
    of = row.reservation
    if of is None:
        return _Line("Without a reservation", "", _values(row.figures, currency))
    detail = (
        f"{of.pk} · {of.gpus} × {of.gpu_model_id}, {of.region} · "
        f"{of.starts_at:%Y-%m-%d %H:%M} to {of.ends_at:%Y-%m-%d %H:%M} · {of.status}"
    )
    return _Line(of.name or of.pk, detail, _values(row.figures, currency))


def _group(group: Group, currency: str) -> _Line:
    return _Line(group.value or "without a project", "", _values(group.figures, currency))


def _tag(group: Group, currency: str) -> _Line:
    return _Line(f"{group.name}: {group.value}", "", _values(group.figures, currency))


def _budget(standing: BudgetStanding) -> _Line:
    budget, period = standing.budget, standing.period
    when = "" if budget.period == BudgetPeriod.TOTAL else f", from {period.starts_at:%Y-%m-%d}"
    return _Line(
        budget.project or "the whole organization",
        f"{budget.get_period_display()}{when} · {budget.get_mode_display()}",
        [str(budget.amount), str(standing.committed), str(standing.paid), str(standing.left)],
    )


def _values(figures: Figures, currency: str) -> list[str]:
    return [
        _in_hours(figures.promised_seconds),
        _in_hours(figures.delivered_seconds),
        _in_hours(figures.attached_seconds),
        _in_hours(figures.busy_seconds),
        str(Money(figures.billed, currency)),
        str(Money(figures.tax, currency)),
        str(Money(figures.billed_with_tax, currency)),
        str(Money(figures.effective, currency)),
        str(Money(figures.books.credits, currency)),
        *(value or NOT_MEASURED for value in ratios(figures).values()),
    ]


def _in_hours(seconds: int | None) -> str:
    if seconds is None:
        return NOT_MEASURED
    hours = Decimal(seconds) / SECONDS_PER_HOUR
    return f"{hours.quantize(_CENT, rounding=ROUND_HALF_EVEN):,}"
