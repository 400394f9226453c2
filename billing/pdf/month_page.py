"""The bill of a month as one page for whoever pays: bought, delivered, used, what it cost, what is ahead.

The first page has the whole; the reservations of the month follow on as many pages as they take.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from decimal import Decimal

from reportlab.platypus import Flowable, PageBreak

from billing import month_bills
from billing.allocation import Group
from billing.invoices import parties, reading
from billing.month_bills import MonthBill
from billing.month_figures import Row, ratios
from billing.pdf import bill_parts
from billing.pdf.layout import as_it_stands, beside, build, head, heading, table, text
from marketplace.models import Organization

LEASES_MAX = 3  # of a reservation


def month_bill(
    *,
    bill: MonthBill,
    organization: Organization,
    at: dt.datetime,
    groups: Sequence[Group] | None = None,
) -> bytes:
    """Return a month's bill as PDF; that of a final month is the same bytes whenever it is asked for.

    `groups` stand in the place of its own divisions by project, tag and buyer.
    What is ahead is of the end of the month, or of `at` where that is later and the month is not final.
    """
    since = bill.window.ends_at if bill.final else max(bill.window.ends_at, at)
    ahead = month_bills.ahead_by_month(organization=organization, since=since)
    buyer = parties.buyer_of(organization=organization)
    documents = list(reading.for_month(organization=organization, month=bill.month))
    title = f"Bill of {bill.month}"
    story = [
        *_head(bill, buyer=buyer["name"], at=at),
        *bill_parts.documents(documents),
        *heading("Bought, delivered, used"),
        bill_parts.funnel(bill.total, costs=ratios(bill.total), when=" in the month"),
        *bill_parts.undelivered(bill.total),
        beside(
            [*heading("Money"), _money(bill)],
            [
                *heading("What a GPU-hour cost"),
                bill_parts.costs_of([(each.month, ratios(each.figures)) for each in bill.trend]),
                *heading("Promised, not yet delivered"),
                bill_parts.promised(ahead, none="Nothing is promised beyond the month."),
                *bill_parts.budgets(bill.budgets),
            ],
        ),
        *_divisions(bill, groups),
        *_reservations(bill),
        *bill_parts.annex("The same month", paths=month_bills.focus_paths(month=bill.month)),
    ]
    return build(
        story,
        title=f"{title}, {buyer['name']}",
        subject=f"{bill.window.starts_at:%Y-%m-%d} to {bill.window.ends_at:%Y-%m-%d}",
        footer=f"{title} · amounts in {bill.currency.upper()}, without tax where nothing else is said · "
        "hours are GPU-hours",
    )


def _head(bill: MonthBill, *, buyer: str, at: dt.datetime) -> list[Flowable]:
    last = bill.window.ends_at - dt.timedelta(days=1)
    words = "Final: what is found later is in a later month." if bill.final else as_it_stands(at)
    is_simulated = any(
        row.reservation is not None and row.reservation.simulated for row in bill.rows
    )
    return head(
        f"Bill of {bill.month}",
        party=buyer,
        about=f"{bill.window.starts_at:%Y-%m-%d} to {last:%Y-%m-%d} UTC. {words}",
        simulated="there are reservations in it of GPUs that do not exist." if is_simulated else "",
    )


def _money(bill: MonthBill) -> Flowable:
    before = [
        ("Contracted for the month", bill.total.contracted),
        ("Paid before, not yet used", bill.total.books.opening),
    ]
    return bill_parts.money(bill.total, before=before, currency=bill.currency)


def _divisions(bill: MonthBill, groups: Sequence[Group] | None) -> list[Flowable]:
    """Show who is to bear the cost: by what was asked for, or else by project and by tag, then by buyer."""
    if groups is not None:
        title = f"By {groups[0].name.replace(':', ' ')}" if groups else "Division"
        return [*heading(title), _groups(groups, bill, columns=1)]
    tagged = [*bill.by_tag, bill.untagged] if bill.by_tag else []
    return [
        beside(
            [*heading("By project"), _groups(bill.by_project, bill)],
            [*heading("By tag"), _groups(tagged, bill)],
        ),
        beside([*heading("By who bought"), _groups(bill.by_buyer, bill)], []),
    ]


def _groups(groups: Sequence[Group], bill: MonthBill, *, columns: int = 2) -> Flowable:
    if not groups:
        return text("None.", size=7)
    ordered = sorted(groups, key=lambda each: (each.is_rest, -each.figures.effective))
    # What belongs to nobody is never cut off: it is what the page is read for.
    rest = [each for each in ordered if each.is_rest]
    named = ordered[: len(ordered) - len(rest)]
    cells = [["", "Delivered", "Busy", "Effective", "Share"]]
    cells += [_group(each, bill.currency) for each in named[: bill_parts.GROUPS_MAX]]
    if len(named) > bill_parts.GROUPS_MAX:
        cells.append([f"and {len(named) - bill_parts.GROUPS_MAX} more", "", "", "", ""])
    cells += [_group(each, bill.currency) for each in rest]
    return table(cells, widths=[9, 6, 5, 6, 5], columns=columns)


def _group(group: Group, currency: str) -> list[str]:
    figures = group.figures
    share = bill_parts.UNMEASURED
    if group.share is not None:
        share = f"{bill_parts.in_percent(Decimal(group.share))} %"
    return [
        "without any" if group.is_rest else group.label,
        bill_parts.hours(figures.delivered_seconds),
        bill_parts.hours(figures.busy_seconds),
        bill_parts.signed(figures.effective, currency),
        share,
    ]


def _reservations(bill: MonthBill) -> list[Flowable]:
    if not bill.rows:
        return []
    cells = [
        ["Reservation", "Promised", "Delivered", "Busy", "Billed", "Effective", "Credits", "Tax"]
    ]
    cells += [_reservation(row, bill.currency) for row in bill.rows]
    return [
        PageBreak(),
        *heading("Reservations of the month"),
        table(cells, widths=[13, 4, 4, 4, 5, 5, 4, 4]),
    ]


def _reservation(row: Row, currency: str) -> list[str]:
    of, figures = row.reservation, row.figures
    name = "Without a reservation"
    if of is not None:
        words: Iterable[str] = (word for word in (of.name, row.labels.project) if word)
        name = (
            f"{' · '.join(words) or of.pk}\n{of.gpus} × {of.gpu_model_id}, {of.region}\n"
            f"{of.starts_at:%m-%d %H:%M} to {of.ends_at:%m-%d %H:%M} · {of.status}{_more(row)}"
        )
    return [
        name,
        bill_parts.hours(figures.promised_seconds),
        bill_parts.hours(figures.delivered_seconds),
        bill_parts.hours(figures.busy_seconds),
        bill_parts.signed(figures.billed, currency),
        bill_parts.signed(figures.effective, currency),
        bill_parts.signed(figures.books.credits, currency),
        bill_parts.signed(figures.tax, currency),
    ]


def _more(row: Row) -> str:
    """Return the lines that say who bought, under which leases, and why something was not delivered."""
    leases = " ".join(row.lease_ids[:LEASES_MAX])
    if len(row.lease_ids) > LEASES_MAX:
        leases += f" and {len(row.lease_ids) - LEASES_MAX} more"
    reasons = (
        f"{bill_parts.hours(seconds)} not delivered: {reason.label}"
        for reason, seconds in row.figures.undelivered_by_reason.items()
    )
    lines = (
        f"bought by {row.buyer.name}" if row.buyer else "",
        leases,
        *reasons,
    )
    return "".join(f"\n{line}" for line in lines if line)
