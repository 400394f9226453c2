"""The bill of a month as a page to print: the same figures in hours and in whole amounts."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

from django.template.loader import render_to_string

from billing import month_bills
from billing.allocation import Group
from billing.budgets import BudgetStanding
from billing.models import Invoice
from billing.month_bills import MonthBill
from billing.month_figures import Figures, Row, ratios
from billing.states import BudgetPeriod, InvoiceKind
from marketplace.core.money import SECONDS_PER_HOUR, currency_exponent
from marketplace.models import Organization

NOT_MEASURED = "—"
LEASES_SHOWN_MAX = 4  # of a reservation; the JSON and the CSV have them all
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
_SHARED_COLUMNS = ("share", "delivered", "busy", "not delivered", "effective", "billed", "per busy")
_CENT, _TENTH = Decimal("0.01"), Decimal("0.1")


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a table: what it is of, and the values of the columns."""

    name: str
    detail: str
    values: list[str]


def page(
    *,
    bill: MonthBill,
    organization: Organization,
    documents: Sequence[Invoice],
    groups: Sequence[Group] | None,
    at: dt.datetime,
) -> str:
    """Return the bill as HTML that needs nothing else; `groups` stand in the place of its own divisions."""
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
            "money": [(word, _money(minor, bill.currency)) for word, minor in money.items()],
            "trend": _trend(bill),
            "divisions": _divisions(bill, groups),
            "columns": _COLUMNS,
            "reservations": [_reservation(row, bill.currency) for row in bill.rows],
            "documents": [_document(each) for each in documents],
            "budgets": [_budget(each) for each in bill.budgets],
            "ahead": [
                _Line(
                    month,
                    "",
                    [
                        str(each.reservations),
                        _in_hours(each.gpu_seconds),
                        _money(each.contracted.amount_minor, bill.currency),
                    ],
                )
                for month, each in bill.ahead_by_month
            ],
            "since": f"{bill.ahead.since:%Y-%m-%d %H:%M}",
            "focus": month_bills.focus_paths(month=bill.month),
            "minutes": month_bills.MINUTES_PATH,
        },
    )


def _hours(figures: Figures) -> list[tuple[str, str, bool]]:
    """Return what is said of the hours: the words, the value, and whether it is a part of the line above."""
    books, shares = figures.books, ratios(figures)
    whole = figures.delivered_seconds
    reasons = sorted(figures.undelivered_by_reason.items(), key=lambda item: (-item[1], item[0]))
    measured = shares["meter_coverage"]
    return [
        ("Promised in the month", _in_hours(figures.promised_seconds), False),
        ("Bought in the month", _in_hours(books.bought), False),
        ("Delivered", _in_hours(whole), False),
        ("a process was attached", _of(figures.attached_seconds, whole), True),
        ("a kernel ran: busy", _of(figures.busy_seconds, whole), True),
        ("Not delivered, refunded", _in_hours(books.undelivered), False),
        *((reason.label, _in_hours(seconds), True) for reason, seconds in reasons),
        ("Given back by you", _in_hours(books.released), False),
        (
            "Measured, of what was delivered",
            NOT_MEASURED if measured is None else _percent(measured),
            False,
        ),
        ("Energy, kWh", _energy(shares["energy_kwh"]), False),
    ]


def _trend(bill: MonthBill) -> dict[str, object]:
    """Return what a GPU-hour cost in this month and the ones before it."""
    words = {
        "per delivered GPU-hour": "cost_per_delivered_gpu_hour",
        "per attached GPU-hour": "cost_per_attached_gpu_hour",
        "per busy GPU-hour": "cost_per_busy_gpu_hour",
    }
    costs = [ratios(month.figures) for month in bill.trend]
    return {
        "months": [month.month for month in bill.trend],
        "currency": bill.currency.upper(),
        "rows": [
            _Line(word, "", [cost[name] or NOT_MEASURED for cost in costs])
            for word, name in words.items()
        ],
    }


def _divisions(bill: MonthBill, groups: Sequence[Group] | None) -> list[dict[str, object]]:
    """Return who is to bear the cost, by what was asked for, or else by project, tag and buyer."""
    if groups is not None:
        title = f"By {groups[0].name.replace(':', ' ')}" if groups else "Division"
        return [_division(title, groups, bill)]
    tagged: list[Group] = [*bill.by_tag, bill.untagged] if bill.by_tag else []
    return [
        _division("By project", bill.by_project, bill),
        _division("By tag", tagged, bill),
        _division("By who bought", bill.by_buyer, bill),
    ]


def _division(title: str, groups: Iterable[Group], bill: MonthBill) -> dict[str, object]:
    rows = [_group(each, bill.currency) for each in groups]
    return {"title": title, "columns": _SHARED_COLUMNS, "rows": rows}


def _reservation(row: Row, currency: str) -> _Line:
    of = row.reservation
    if of is None:
        return _Line("Without a reservation", "", _values(row.figures, currency))
    leases = " ".join(row.lease_ids[:LEASES_SHOWN_MAX])
    if len(row.lease_ids) > LEASES_SHOWN_MAX:
        leases += f" and {len(row.lease_ids) - LEASES_SHOWN_MAX} more"
    reasons = row.figures.undelivered_by_reason
    parts = [
        f"{of.pk} · {of.gpus} × {of.gpu_model_id}, {of.region}",
        f"{of.starts_at:%Y-%m-%d %H:%M} to {of.ends_at:%Y-%m-%d %H:%M}",
        of.status,
        *([f"bought by {row.buyer.name}"] if row.buyer else []),
        *([leases] if leases else []),
        *(
            f"{_in_hours(seconds)} h not delivered: {reason.label}"
            for reason, seconds in reasons.items()
        ),
    ]
    return _Line(of.name or of.pk, " · ".join(parts), _values(row.figures, currency))


def _group(group: Group, currency: str) -> _Line:
    figures = group.figures
    return _Line(
        "without any" if group.is_rest else group.label,
        "",
        [
            NOT_MEASURED if group.share is None else _percent(group.share),
            _in_hours(figures.delivered_seconds),
            _in_hours(figures.busy_seconds),
            _in_hours(figures.books.undelivered),
            _money(figures.effective, currency),
            _money(figures.billed, currency),
            ratios(figures)["cost_per_busy_gpu_hour"] or NOT_MEASURED,
        ],
    )


def _document(invoice: Invoice) -> _Line:
    state = str(getattr(invoice, "state", None) or "given back").replace("_", " ")
    total = _money(invoice.total_minor, invoice.currency)
    return _Line(
        invoice.number,
        f"purchase order {invoice.purchase_order_number}" if invoice.purchase_order_number else "",
        [
            InvoiceKind(invoice.kind).label,
            f"{invoice.issued_at:%Y-%m-%d}",
            state,
            f"−{total}" if invoice.corrects_id else total,
        ],
    )


def _budget(standing: BudgetStanding) -> _Line:
    budget, period = standing.budget, standing.period
    when = "" if budget.period == BudgetPeriod.TOTAL else f", from {period.starts_at:%Y-%m-%d}"
    return _Line(
        budget.project or "the whole organization",
        f"{budget.get_period_display()}{when} · {budget.get_mode_display()}",
        [
            _money(each.amount_minor, budget.currency)
            for each in (budget.amount, standing.committed, standing.paid, standing.left)
        ],
    )


def _values(figures: Figures, currency: str) -> list[str]:
    shares = ratios(figures)
    return [
        _in_hours(figures.promised_seconds),
        _in_hours(figures.delivered_seconds),
        _in_hours(figures.attached_seconds),
        _in_hours(figures.busy_seconds),
        _money(figures.billed, currency),
        _money(figures.tax, currency),
        _money(figures.billed_with_tax, currency),
        _money(figures.effective, currency),
        _money(figures.books.credits, currency),
        shares["cost_per_delivered_gpu_hour"] or NOT_MEASURED,
        shares["cost_per_busy_gpu_hour"] or NOT_MEASURED,
        NOT_MEASURED if shares["meter_coverage"] is None else _percent(shares["meter_coverage"]),
        _energy(shares["energy_kwh"]),
    ]


def _in_hours(seconds: int | None) -> str:
    if seconds is None:
        return NOT_MEASURED
    hours = Decimal(seconds) / SECONDS_PER_HOUR
    return f"{hours.quantize(_CENT, rounding=ROUND_HALF_EVEN):,}"


def _of(seconds: int | None, whole: int) -> str:
    """Return hours, and their share of others."""
    if seconds is None or whole <= 0:
        return _in_hours(seconds)
    return f"{_in_hours(seconds)} ({_percent(Decimal(seconds) / whole)})"


def _energy(kilowatt_hours: str | None) -> str:
    if kilowatt_hours is None:
        return NOT_MEASURED
    return f"{Decimal(kilowatt_hours).quantize(_CENT, rounding=ROUND_HALF_EVEN):,}"


def _money(minor: int, currency: str) -> str:
    """Return an amount in groups of three digits, with its currency."""
    exponent = currency_exponent(currency)
    shown = f"{Decimal(minor).scaleb(-exponent):,.{exponent}f}".replace("-", "−")
    return f"{shown} {currency.upper()}"


def _percent(share: str | Decimal) -> str:
    return f"{(Decimal(share) * 100).quantize(_TENTH, rounding=ROUND_HALF_EVEN)} %"
