"""The bill of a month as one page for whoever pays: bought, delivered, used, what it cost, what is ahead.

The first page has the whole; the reservations of the month follow on as many pages as they take.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction

from django.conf import settings
from reportlab.graphics.shapes import Drawing, Rect, String
from reportlab.lib.units import mm
from reportlab.platypus import Flowable, PageBreak, Spacer

from billing import month_bills
from billing.allocation import Group
from billing.budgets import BudgetStanding
from billing.invoices import parties, reading
from billing.month_bills import Ahead, MonthBill
from billing.month_figures import Figures, Row, ratios
from billing.pdf.fonts import PLAIN
from billing.pdf.layout import (
    ACCENT,
    INK,
    LINE,
    QUIET,
    WARNING,
    WIDTH,
    amount,
    beside,
    build,
    heading,
    table,
    text,
)
from billing.states import BudgetPeriod
from marketplace.core.money import SECONDS_PER_HOUR, Money, round_to
from marketplace.models import Organization

NOT_MEASURED, UNMEASURED = "not measured", "—"
GROUPS_MAX = 8  # of a kind, on the first page; the CSV and the JSON have them all
DOCUMENTS_MAX = 8
LEASES_MAX = 3  # of a reservation
_CENT, _PERCENT = Decimal("0.01"), Decimal("0.1")
_BAR_HEIGHT = 5 * mm


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
    title = f"Bill of {bill.month}"
    story = [
        *_head(bill, buyer=buyer["name"], at=at),
        *_documents(organization, month=bill.month),
        *heading("Bought, delivered, used"),
        _funnel(bill.total),
        *_undelivered(bill.total),
        beside(
            [*heading("Money"), _money(bill)],
            [
                *heading("What a GPU-hour cost"),
                _trend(bill),
                *heading("Promised, not yet delivered"),
                _ahead(ahead),
                *_budgets(bill),
            ],
        ),
        *_divisions(bill, groups),
        *_reservations(bill),
        *_annex(bill),
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
    words = (
        "Final: what is found later is in a later month."
        if bill.final
        else f"As it stands at {at:%Y-%m-%d %H:%M} UTC; not final."
    )
    found: list[Flowable] = [
        beside(
            [text(f"Bill of {bill.month}", size=16, bold=True)],
            [text(buyer, size=10, bold=True, right=True)],
        ),
        Spacer(0, 1 * mm),
        text(f"{bill.window.starts_at:%Y-%m-%d} to {last:%Y-%m-%d} UTC. {words}", color=QUIET),
    ]
    if any(row.reservation is not None and row.reservation.simulated for row in bill.rows):
        words = "Simulated: there are reservations in it of GPUs that do not exist."
        found.append(text(words, bold=True, color=WARNING))
    return found


def _documents(organization: Organization, *, month: str) -> list[Flowable]:
    """Return the invoices and credit notes of the month, and what has become of them."""
    documents = list(reading.for_month(organization=organization, month=month))
    if not documents:
        return []
    cells = [["Document", "Issued", "State", "Total with tax"]]
    for each in documents[:DOCUMENTS_MAX]:
        state = str(getattr(each, "state", None) or "given back").replace("_", " ")
        total = Money(each.total_minor, each.currency)
        sign = "−" if each.corrects_id else ""
        cells.append(
            [
                " · ".join(word for word in (each.number, each.purchase_order_number) if word),
                f"{each.issued_at:%Y-%m-%d}",
                state,
                f"{sign}{amount(total)}",
            ]
        )
    if len(documents) > DOCUMENTS_MAX:
        cells.append([f"and {len(documents) - DOCUMENTS_MAX} more", "", "", ""])
    return [*heading("Invoices and credit notes"), table(cells, widths=[4, 2, 2, 2], texts=3)]


def _funnel(figures: Figures) -> Drawing:
    """Draw the hours that were promised, and what became of them, as bars of one scale."""
    books = figures.books
    bars = [
        ("Promised", figures.promised_seconds),
        ("Delivered", figures.delivered_seconds),
        ("Attached", figures.attached_seconds),
        ("Busy", figures.busy_seconds),
    ]
    whole = max([*(seconds or 0 for _, seconds in bars), 1])
    label, room = 24 * mm, WIDTH - 24 * mm - 52 * mm
    height = (_BAR_HEIGHT + 1 * mm) * len(bars)
    drawing = Drawing(WIDTH, height + 6 * mm)
    for number, (word, seconds) in enumerate(bars):
        y = height + 6 * mm - (number + 1) * (_BAR_HEIGHT + 1 * mm)
        drawing.add(String(0, y + 1 * mm, word, fontName=PLAIN, fontSize=8, fillColor=INK))
        drawing.add(Rect(label, y, room, _BAR_HEIGHT, fillColor=LINE, strokeColor=None))
        if seconds:
            width = room * seconds / whole
            drawing.add(Rect(label, y, width, _BAR_HEIGHT, fillColor=ACCENT, strokeColor=None))
        said = NOT_MEASURED
        if seconds is not None:
            said = _hours(seconds) + _share(seconds, figures.promised_seconds)
        x = label + room + 3 * mm
        drawing.add(String(x, y + 1 * mm, said, fontName=PLAIN, fontSize=8, fillColor=INK))
    shares = ratios(figures)
    coverage = shares["meter_coverage"]
    energy = NOT_MEASURED
    if shares["energy_kwh"] is not None:
        energy = f"{round_to(Fraction(shares['energy_kwh']), quantum=_CENT):,} kWh"
    measured = NOT_MEASURED if coverage is None else f"{_in_percent(Decimal(coverage))} %"
    note = (
        f"Given back {_hours(books.released)} · bought in the month {_hours(books.bought)} · "
        f"measured {measured} of what was delivered · "
        f"energy {energy}"
    )
    drawing.add(String(0, 1 * mm, note, fontName=PLAIN, fontSize=7, fillColor=QUIET))
    return drawing


def _money(bill: MonthBill) -> Flowable:
    figures, books = bill.total, bill.total.books
    rows = [
        ("Contracted for the month", figures.contracted),
        ("Paid before, not yet used", books.opening),
        ("Charged", books.charged),
        ("Earned by delivery", -books.earned),
        ("Refunded", -books.refunded),
        ("Fees kept of what was given back", -books.fees),
        ("Paid, not yet used at the end", books.closing),
        ("Credits beyond refunds", books.credits),
        ("Effective: earned and fees", figures.effective),
        ("Billed: charged less refunded", figures.billed),
        ("Tax", figures.tax),
        ("Billed with tax", figures.billed_with_tax),
    ]
    cells = [[word, _signed(minor, bill.currency)] for word, minor in rows]
    return table(cells, widths=[3, 2], head=False, strong_last=True, columns=2)


def _trend(bill: MonthBill) -> Flowable:
    """Show what a delivered, an attached and a busy hour cost in this month and the ones before."""
    costs = [ratios(month.figures) for month in bill.trend]
    cells = [["", *(month.month for month in bill.trend)]]
    for word in ("delivered", "attached", "busy"):
        name = f"cost_per_{word}_gpu_hour"
        cells.append([f"per {word} hour", *(cost[name] or UNMEASURED for cost in costs)])
    return table(cells, widths=[4, 3, 3, 3], columns=2)


def _ahead(ahead: list[tuple[str, Ahead]]) -> Flowable:
    if not ahead:
        return text("Nothing is promised beyond the month.", size=7)
    cells = [["Month", "Reservations", "Hours", "Contracted"]]
    for month, each in ahead:
        cells.append(
            [
                month,
                str(each.reservations),
                _hours(each.gpu_seconds),
                amount(each.contracted),
            ]
        )
    return table(cells, widths=[3, 3, 3, 3], columns=2)


def _budgets(bill: MonthBill) -> list[Flowable]:
    """Show what is left of each budget that holds in the month."""
    if not bill.budgets:
        return []
    cells = [["", "Budget", "Committed", "Left"]]
    cells += [
        [
            f"{each.budget.project or 'all projects'}\n{_period(each)}",
            amount(each.budget.amount),
            amount(each.committed),
            amount(each.left).replace("-", "−"),
        ]
        for each in bill.budgets[:GROUPS_MAX]
    ]
    if len(bill.budgets) > GROUPS_MAX:
        cells.append([f"and {len(bill.budgets) - GROUPS_MAX} more", "", "", ""])
    return [*heading("Budgets"), table(cells, widths=[5, 3, 3, 3], columns=2)]


def _period(standing: BudgetStanding) -> str:
    """Return for what time a budget is, and whether it refuses or only tells."""
    mode = standing.budget.get_mode_display().lower()
    if standing.budget.period == BudgetPeriod.TOTAL:
        return f"in all, {mode}"
    return f"{standing.budget.period} from {standing.period.starts_at:%Y-%m-%d}, {mode}"


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
    cells += [_group(each, bill.currency) for each in named[:GROUPS_MAX]]
    if len(named) > GROUPS_MAX:
        cells.append([f"and {len(named) - GROUPS_MAX} more", "", "", "", ""])
    cells += [_group(each, bill.currency) for each in rest]
    return table(cells, widths=[5, 3, 3, 3, 2], columns=columns)


def _group(group: Group, currency: str) -> list[str]:
    figures = group.figures
    share = UNMEASURED if group.share is None else f"{_in_percent(Decimal(group.share))} %"
    return [
        "without any" if group.is_rest else group.label,
        _hours(figures.delivered_seconds),
        _hours(figures.busy_seconds),
        _signed(figures.effective, currency),
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
        _hours(figures.promised_seconds),
        _hours(figures.delivered_seconds),
        _hours(figures.busy_seconds),
        _signed(figures.billed, currency),
        _signed(figures.effective, currency),
        _signed(figures.books.credits, currency),
        _signed(figures.tax, currency),
    ]


def _more(row: Row) -> str:
    """Return the lines that say who bought, under which leases, and why something was not delivered."""
    leases = " ".join(row.lease_ids[:LEASES_MAX])
    if len(row.lease_ids) > LEASES_MAX:
        leases += f" and {len(row.lease_ids) - LEASES_MAX} more"
    reasons = (
        f"{_hours(seconds)} not delivered: {reason.label}"
        for reason, seconds in row.figures.undelivered_by_reason.items()
    )
    lines = (
        f"bought by {row.buyer.name}" if row.buyer else "",
        leases,
        *reasons,
    )
    return "".join(f"\n{line}" for line in lines if line)


def _undelivered(figures: Figures) -> list[Flowable]:
    """Say how much was not delivered and why, the most first; nothing where all was."""
    reasons = sorted(figures.undelivered_by_reason.items(), key=lambda item: (-item[1], item[0]))
    if not reasons:
        return [text("Everything that was due was delivered.", size=7, color=QUIET)]
    parts = ", ".join(f"{reason.label} {_hours(seconds)}" for reason, seconds in reasons)
    words = f"Not delivered and refunded: {_hours(figures.books.undelivered)} hours. Why: {parts}."
    return [text(words, size=8)]


def _annex(bill: MonthBill) -> list[Flowable]:
    """Say where the evidence of each hour is, and the same month in the columns of FOCUS."""
    minutes = f"{settings.BASE_URL}{month_bills.MINUTES_PATH}"
    files = "\n".join(
        f"{settings.BASE_URL}{path}" for path in month_bills.focus_paths(month=bill.month)
    )
    return [
        *heading("Annex: the evidence"),
        text(
            "Of every hour there are the minutes that its meters counted, GPU by GPU, by the lease that is "
            f"named with its reservation: {minutes}",
            size=7,
        ),
        Spacer(0, 1 * mm),
        text(f"The same month in the FinOps columns (FOCUS), to the same cent:\n{files}", size=7),
    ]


def _hours(seconds: int | None) -> str:
    if seconds is None:
        return UNMEASURED
    return f"{round_to(Fraction(seconds, SECONDS_PER_HOUR), quantum=_CENT):,}"


def _share(part: int | None, whole: int) -> str:
    return f"  ({_in_percent(Decimal(part) / whole)} %)" if part is not None and whole > 0 else ""


def _in_percent(share: Decimal) -> str:
    return f"{round_to(Fraction(share) * 100, quantum=_PERCENT)}"


def _signed(minor: int, currency: str) -> str:
    return amount(Money(minor, currency)).replace("-", "−")
