"""The bill of a reservation as one page: what was bought, what became of it, what it cost, lease by lease."""

import datetime as dt

from reportlab.platypus import Flowable

from billing.bills import BillLine
from billing.invoices import parties
from billing.pdf import bill_parts
from billing.pdf.layout import as_it_stands, beside, build, head, heading, table, text
from billing.reservation_bills import ReservationBill
from scheduler.models import Reservation
from scheduler.states import LeaseStatus


def reservation_bill(*, whole: ReservationBill, at: dt.datetime) -> bytes:
    """Return a reservation's bill as PDF; a final one is the same bytes as long as nothing new is known."""
    bill, row = whole.bill, whole.row
    assert row.reservation is not None, "a bill is of a reservation"
    reservation = row.reservation
    buyer = parties.buyer_of(organization=reservation.organization)["name"]
    title = f"Bill of {reservation.name or reservation.pk}"
    story = [
        *_head(whole, reservation=reservation, title=title, buyer=buyer, at=at),
        *bill_parts.documents(whole.documents),
        *heading("Bought, delivered, used"),
        bill_parts.funnel(row.figures, costs=whole.costs),
        *bill_parts.undelivered(row.figures),
        beside(
            [*heading("Money"), _money(whole)],
            [
                *heading("What a GPU-hour cost"),
                bill_parts.costs_of([("all of it", whole.costs)]),
                *heading("Promised, not yet delivered"),
                bill_parts.promised(whole.ahead_by_month, none="Nothing is ahead of it."),
                *bill_parts.budgets(whole.budgets),
            ],
        ),
        *_leases(bill.lines),
        *bill_parts.annex("Its charges", paths=whole.focus_paths),
    ]
    return build(
        story,
        title=f"{title}, {buyer}",
        subject=f"{reservation.starts_at:%Y-%m-%d %H:%M} to {reservation.ends_at:%Y-%m-%d %H:%M}",
        footer=f"{title} · amounts in {bill.net.currency.upper()}, without tax where nothing else is said · "
        "hours are GPU-hours",
    )


def _head(
    whole: ReservationBill, *, reservation: Reservation, title: str, buyer: str, at: dt.datetime
) -> list[Flowable]:
    """Say what was bought, by whom, to whom its cost belongs, and whether the bill is final."""
    bill, row = whole.bill, whole.row
    standing = "Final." if bill.final else as_it_stands(at)
    tags = ", ".join(f"{key}: {value}" for key, value in sorted(reservation.tags.items()))
    rate = f"{bill.rate} {bill.net.currency.upper()} per GPU-hour, locked"
    about = [
        f"{reservation.gpus} × {reservation.gpu_model_id}, {reservation.region}, at {rate}",
        f"project {reservation.project or 'none'} · tags {tags or 'none'}",
        *([f"bought by {row.buyer.name}"] if row.buyer else []),
    ]
    window = f"{reservation.starts_at:%Y-%m-%d %H:%M} to {reservation.ends_at:%Y-%m-%d %H:%M} UTC"
    top = head(
        # An id breaks the line, and stands in the next one.
        title if reservation.name else "Bill of a reservation",
        party=buyer,
        about=f"{reservation.pk} · {window} · {reservation.get_status_display()}. {standing}",
        simulated="its GPUs do not exist." if bill.simulated else "",
    )
    return [*top, *(text(line) for line in about)]


def _money(whole: ReservationBill) -> Flowable:
    figures = whole.row.figures
    before = [("Contracted for what is promised", figures.contracted)]
    return bill_parts.money(figures, before=before, currency=whole.bill.net.currency)


def _leases(lines: list[BillLine]) -> list[Flowable]:
    if not lines:
        return []
    cells = [["Lease", "Bought", "Delivered", "Attached", "Busy", "Price", "Earned", "Refunded"]]
    cells += [_lease(line) for line in lines]
    return [*heading("Leases"), table(cells, widths=[13, 4, 4, 4, 4, 5, 5, 5])]


def _lease(line: BillLine) -> list[str]:
    seconds, currency = line.gpu_seconds, line.bought.currency
    window = f"{line.window.starts_at:%m-%d %H:%M} to {line.window.ends_at:%m-%d %H:%M}"
    status = LeaseStatus(line.status).label + ("" if line.settled else ", not settled")
    words = [
        line.lease_id,
        f"{window} · {status}",
        *(
            f"{bill_parts.hours(count)} not delivered: {reason.label}"
            for reason, count in seconds.undelivered_by_reason.items()
        ),
    ]
    hours = (seconds.bought, seconds.delivered, seconds.attached, seconds.busy)
    money = (line.bought, line.earned, line.refunded)
    return [
        "\n".join(words),
        *(bill_parts.hours(count) for count in hours),
        *(bill_parts.signed(each.amount_minor, currency) for each in money),
    ]
