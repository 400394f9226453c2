"""The bill of a reservation as a page to print: that of a month, with leases in the place of reservations."""

import datetime as dt

from django.template.loader import render_to_string

from billing import month_bills
from billing.bills import BillLine
from billing.reservation_bills import ReservationBill
from marketplace.api import bill_page
from marketplace.core.money import Money
from scheduler.models import Reservation
from scheduler.states import LeaseStatus

_COLUMNS = (
    "bought",
    "delivered",
    "attached",
    "busy",
    "not delivered",
    "open",
    "price",
    "earned",
    "refunded",
    "still open",
)


def page(*, whole: ReservationBill, at: dt.datetime) -> str:
    """Return the bill as HTML that needs nothing else."""
    bill, reservation = whole.bill, whole.row.reservation
    assert reservation is not None, "a bill is of a reservation"
    return render_to_string(
        "api/bill.html",
        {
            "heading": f"Bill of {reservation.name or reservation.pk}",
            "of_what": "charges",
            "organization": reservation.organization.name,
            "starts_at": f"{reservation.starts_at:%Y-%m-%d %H:%M}",
            "ends_at": f"{reservation.ends_at:%Y-%m-%d %H:%M}",
            "now": f"{at:%Y-%m-%d %H:%M}",
            "final": bill.final,
            "final_words": "every hour and every amount has found its place",
            "closing_words": "Of a lease, what is not settled is open.",
            "simulated": "its GPUs do not exist." if bill.simulated else "",
            "about": _about(whole, reservation=reservation),
            "hours": bill_page.hours(whole.row.figures, costs=whole.costs),
            "money": [(word, bill_page.amount(money)) for word, money in _money(whole).items()],
            "trend": _costs(whole),
            "divisions": [],
            "rows": {
                "title": "Leases",
                "columns": _COLUMNS,
                "width": len(_COLUMNS) + 1,
                "rows": [_lease(line) for line in bill.lines],
                "named_with": "its hours",
            },
            "documents": [bill_page.document(each) for each in whole.documents],
            "budgets": [bill_page.budget_left(each) for each in whole.budgets],
            "ahead": bill_page.ahead(whole.ahead_by_month),
            "since": f"{at:%Y-%m-%d %H:%M}",
            "focus": whole.focus_paths,
            "minutes": month_bills.MINUTES_PATH,
        },
    )


def _about(whole: ReservationBill, *, reservation: Reservation) -> list[tuple[str, str]]:
    """Return what was bought, by whom, and to whom the cost belongs."""
    tags = ", ".join(f"{key}: {value}" for key, value in sorted(reservation.tags.items()))
    rate = f"{whole.bill.rate} {whole.bill.net.currency.upper()} per GPU-hour, locked"
    return [
        ("Reservation", reservation.pk),
        ("Bought", f"{reservation.gpus} × {reservation.gpu_model_id}, {reservation.region}"),
        ("Price", rate),
        ("State", reservation.get_status_display()),
        ("Project", reservation.project or "none"),
        ("Tags", tags or "none"),
        ("Bought by", whole.row.buyer.name if whole.row.buyer else "nobody known"),
    ]


def _money(whole: ReservationBill) -> dict[str, Money]:
    bill = whole.bill
    nothing = Money(0, bill.net.currency)
    return {
        "Contracted for what is promised": Money(whole.row.figures.contracted, bill.net.currency),
        "Charged": bill.bought,
        "Earned by what was delivered": nothing - bill.earned,
        "Refunded": nothing - bill.refunded,
        "Fees kept of what was given back": nothing - bill.fees,
        "Paid and not yet used": bill.open,
        "Credits and promotions": bill.credits,
        "At list price, of what was billed": bill.list_cost,
        "Billed: charged less refunded": bill.net,
        "Tax on what was billed": bill.tax,
        "Billed with tax": bill.net_with_tax,
        "Effective: earned and fees": bill.effective,
    }


def _costs(whole: ReservationBill) -> dict[str, object]:
    words = {
        "per delivered GPU-hour": "cost_per_delivered_gpu_hour",
        "per attached GPU-hour": "cost_per_attached_gpu_hour",
        "per busy GPU-hour": "cost_per_busy_gpu_hour",
    }
    return {
        "months": ["all of it"],
        "currency": whole.bill.net.currency.upper(),
        "rows": [
            bill_page.Line(word, "", [whole.costs[name] or bill_page.NOT_MEASURED])
            for word, name in words.items()
        ],
    }


def _lease(line: BillLine) -> bill_page.Line:
    seconds = line.gpu_seconds
    detail = [
        f"{line.gpus} GPUs" if line.gpus > 1 else "1 GPU",
        f"{line.window.starts_at:%Y-%m-%d %H:%M} to {line.window.ends_at:%Y-%m-%d %H:%M}",
        LeaseStatus(line.status).label,
        *(
            f"{bill_page.in_hours(count)} h not delivered: {reason.label}"
            for reason, count in seconds.undelivered_by_reason.items()
        ),
    ]
    return bill_page.Line(
        line.lease_id,
        " · ".join(detail),
        [
            *(
                bill_page.in_hours(count)
                for count in (
                    seconds.bought,
                    seconds.delivered,
                    seconds.attached,
                    seconds.busy,
                    seconds.undelivered,
                    seconds.open,
                )
            ),
            *(
                bill_page.amount(money)
                for money in (line.bought, line.earned, line.refunded, line.open)
            ),
        ],
    )
