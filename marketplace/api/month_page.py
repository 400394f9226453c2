"""The bill of a month as a page to print: the same figures in hours and in whole amounts."""

import datetime as dt
from collections.abc import Iterable, Sequence

from django.template.loader import render_to_string

from billing import month_bills
from billing.allocation import Group
from billing.models import Invoice
from billing.month_bills import MonthBill
from billing.month_figures import Figures, Row, ratios
from marketplace.api import bill_page
from marketplace.models import Organization

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
_SIMULATED = "there are reservations in it of GPUs that do not exist."
_WHEN = (
    "An hour is in the month in which it begins; what a settlement adds, where the lease's time ended; a "
    "correction, where it was made. “Share” is of the effective cost."
)
_SHARED_COLUMNS = ("share", "delivered", "busy", "not delivered", "effective", "billed", "per busy")


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
        "Credits and promotions": books.credits,
        "At list price, of what was billed": figures.list_cost,
        "Billed: charged less refunded": figures.billed,
        "Tax on what was billed": figures.tax,
        "Billed with tax": figures.billed_with_tax,
        "Effective: earned and fees": figures.effective,
    }
    return render_to_string(
        "api/bill.html",
        {
            "heading": f"Bill of {bill.month}",
            "of_what": "month",
            "organization": organization.name,
            "starts_at": f"{bill.window.starts_at:%Y-%m-%d}",
            "ends_at": f"{bill.window.ends_at - dt.timedelta(days=1):%Y-%m-%d}",
            "now": f"{at:%Y-%m-%d %H:%M}",
            "final": bill.final,
            "final_words": "evidence that comes later is in a later month",
            "closing_words": _WHEN,
            "simulated": _SIMULATED if simulated else "",
            "hours": bill_page.hours(figures, costs=ratios(figures), when=" in the month"),
            "money": [
                (word, bill_page.money(minor, bill.currency)) for word, minor in money.items()
            ],
            "trend": _trend(bill),
            "divisions": _divisions(bill, groups),
            "rows": {
                "title": "Reservations",
                "columns": _COLUMNS,
                "width": len(_COLUMNS) + 1,
                "rows": [_reservation(row, bill.currency) for row in bill.rows],
                "named_with": "its reservation",
            },
            "documents": [bill_page.document(each) for each in documents],
            "budgets": [bill_page.budget_left(each) for each in bill.budgets],
            "ahead": bill_page.ahead(bill.ahead_by_month),
            "since": f"{bill.ahead.since:%Y-%m-%d %H:%M}",
            "focus": month_bills.focus_paths(month=bill.month),
            "minutes": month_bills.MINUTES_PATH,
        },
    )


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
            bill_page.Line(word, "", [cost[name] or bill_page.NOT_MEASURED for cost in costs])
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


def _reservation(row: Row, currency: str) -> bill_page.Line:
    of = row.reservation
    if of is None:
        return bill_page.Line("Without a reservation", "", _values(row.figures, currency))
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
            f"{bill_page.in_hours(seconds)} h not delivered: {reason.label}"
            for reason, seconds in reasons.items()
        ),
    ]
    return bill_page.Line(of.name or of.pk, " · ".join(parts), _values(row.figures, currency))


def _group(group: Group, currency: str) -> bill_page.Line:
    figures = group.figures
    return bill_page.Line(
        "without any" if group.is_rest else group.label,
        "",
        [
            bill_page.NOT_MEASURED if group.share is None else bill_page.percent(group.share),
            bill_page.in_hours(figures.delivered_seconds),
            bill_page.in_hours(figures.busy_seconds),
            bill_page.in_hours(figures.books.undelivered),
            bill_page.money(figures.effective, currency),
            bill_page.money(figures.billed, currency),
            ratios(figures)["cost_per_busy_gpu_hour"] or bill_page.NOT_MEASURED,
        ],
    )


def _values(figures: Figures, currency: str) -> list[str]:
    shares = ratios(figures)
    return [
        bill_page.in_hours(figures.promised_seconds),
        bill_page.in_hours(figures.delivered_seconds),
        bill_page.in_hours(figures.attached_seconds),
        bill_page.in_hours(figures.busy_seconds),
        bill_page.money(figures.billed, currency),
        bill_page.money(figures.tax, currency),
        bill_page.money(figures.billed_with_tax, currency),
        bill_page.money(figures.effective, currency),
        bill_page.money(figures.books.credits, currency),
        shares["cost_per_delivered_gpu_hour"] or bill_page.NOT_MEASURED,
        shares["cost_per_busy_gpu_hour"] or bill_page.NOT_MEASURED,
        bill_page.NOT_MEASURED
        if shares["meter_coverage"] is None
        else bill_page.percent(shares["meter_coverage"]),
        bill_page.energy(shares["energy_kwh"]),
    ]
