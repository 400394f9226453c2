"""What the bills of a month and of a reservation have in common on paper: bars, amounts and evidence."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction

from django.conf import settings
from reportlab.graphics.shapes import Drawing, Rect, String
from reportlab.lib.units import mm
from reportlab.platypus import Flowable, Spacer

from billing import month_bills
from billing.budgets import BudgetStanding
from billing.models import Invoice
from billing.month_bills import Ahead
from billing.month_figures import Figures
from billing.pdf.fonts import PLAIN
from billing.pdf.layout import ACCENT, INK, LINE, QUIET, WIDTH, amount, heading, table, text
from billing.states import BudgetPeriod
from marketplace.core.money import SECONDS_PER_HOUR, Money, round_to

NOT_MEASURED, UNMEASURED = "not measured", "—"
GROUPS_MAX = 8  # of a kind, on the first page; the CSV and the JSON have them all
DOCUMENTS_MAX = 8
_CENT, _PERCENT = Decimal("0.01"), Decimal("0.1")
_BAR_HEIGHT = 5 * mm


def documents(found: Sequence[Invoice]) -> list[Flowable]:
    """Return invoices and credit notes, and what has become of them."""
    if not found:
        return []
    cells = [["Document", "Issued", "State", "Total with tax"]]
    for each in found[:DOCUMENTS_MAX]:
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
    if len(found) > DOCUMENTS_MAX:
        cells.append([f"and {len(found) - DOCUMENTS_MAX} more", "", "", ""])
    return [*heading("Invoices and credit notes"), table(cells, widths=[4, 2, 2, 2], texts=3)]


def funnel(figures: Figures, *, costs: Mapping[str, str | None], when: str = "") -> Drawing:
    """Draw the hours that were promised, and what became of them, as bars of one scale.

    `costs` has their shares; `when` says of what time what was bought is.
    """
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
            said = hours(seconds) + share(seconds, figures.promised_seconds)
        x = label + room + 3 * mm
        drawing.add(String(x, y + 1 * mm, said, fontName=PLAIN, fontSize=8, fillColor=INK))
    coverage = costs["meter_coverage"]
    energy = NOT_MEASURED
    if costs["energy_kwh"] is not None:
        energy = f"{round_to(Fraction(costs['energy_kwh']), quantum=_CENT):,} kWh"
    # Where nothing was delivered, there is nothing of which a part could be measured.
    measured = ""
    if coverage is not None:
        measured = f" · measured {in_percent(Decimal(coverage))} % of what was delivered"
    note = (
        f"Given back {hours(books.released)} · bought{when} {hours(books.bought)}{measured} · "
        f"energy {energy}"
    )
    drawing.add(String(0, 1 * mm, note, fontName=PLAIN, fontSize=7, fillColor=QUIET))
    return drawing


def undelivered(figures: Figures) -> list[Flowable]:
    """Say how much was not delivered and why, the most first; nothing where all was."""
    reasons = sorted(figures.undelivered_by_reason.items(), key=lambda item: (-item[1], item[0]))
    if not reasons:
        return [text("Everything that was due was delivered.", size=7, color=QUIET)]
    parts = ", ".join(f"{reason.label} {hours(seconds)}" for reason, seconds in reasons)
    words = f"Not delivered and refunded: {hours(figures.books.undelivered)} hours. Why: {parts}."
    return [text(words, size=8)]


def money(figures: Figures, *, before: Sequence[tuple[str, int]], currency: str) -> Flowable:
    """Show amounts in minor units, from what was there `before` to what is billed, which is what counts."""
    books = figures.books
    rows = [
        *before,
        ("Charged", books.charged),
        ("Earned by delivery", -books.earned),
        ("Refunded", -books.refunded),
        ("Fees kept of what was given back", -books.fees),
        ("Paid, not yet used at the end", books.closing),
        ("Credits and promotions", books.credits),
        ("Effective: earned and fees", figures.effective),
        ("At list price, of what was billed", figures.list_cost),
        ("Billed: charged less refunded", figures.billed),
        ("Tax", figures.tax),
        ("Billed with tax", figures.billed_with_tax),
    ]
    cells = [[word, signed(minor, currency)] for word, minor in rows]
    return table(cells, widths=[3, 2], head=False, strong_last=True, columns=2)


def costs_of(columns: Sequence[tuple[str, Mapping[str, str | None]]]) -> Flowable:
    """Show what a delivered, an attached and a busy hour cost, a column for each time or thing."""
    cells = [["", *(name for name, _ in columns)]]
    for word in ("delivered", "attached", "busy"):
        name = f"cost_per_{word}_gpu_hour"
        cells.append([f"per {word} hour", *(costs[name] or UNMEASURED for _, costs in columns)])
    return table(cells, widths=[4, *(3 for _ in columns)], columns=2)


def promised(ahead: Sequence[tuple[str, Ahead]], *, none: str) -> Flowable:
    """Show what is not yet delivered, by month of delivery, or say that there is none."""
    if not ahead:
        return text(none, size=7)
    cells = [["Month", "Reservations", "Hours", "Contracted"]]
    for month, each in ahead:
        cells.append(
            [
                month,
                str(each.reservations),
                hours(each.gpu_seconds),
                amount(each.contracted),
            ]
        )
    return table(cells, widths=[3, 3, 3, 3], columns=2)


def budgets(standings: Sequence[BudgetStanding]) -> list[Flowable]:
    """Show what is left of each budget."""
    if not standings:
        return []
    cells = [["", "Budget", "Committed", "Left"]]
    cells += [
        [
            f"{each.budget.project or 'all projects'}\n{_period(each)}",
            amount(each.budget.amount),
            amount(each.committed),
            amount(each.left).replace("-", "−"),
        ]
        for each in standings[:GROUPS_MAX]
    ]
    if len(standings) > GROUPS_MAX:
        cells.append([f"and {len(standings) - GROUPS_MAX} more", "", "", ""])
    return [*heading("Budgets"), table(cells, widths=[5, 3, 3, 3], columns=2)]


def _period(standing: BudgetStanding) -> str:
    """Return for what time a budget is, and whether it refuses or only tells."""
    mode = standing.budget.get_mode_display().lower()
    if standing.budget.period == BudgetPeriod.TOTAL:
        return f"in all, {mode}"
    return f"{standing.budget.period} from {standing.period.starts_at:%Y-%m-%d}, {mode}"


def annex(of_what: str, *, paths: Iterable[str]) -> list[Flowable]:
    """Say where the evidence of each hour is, and the same charges in the columns of FOCUS."""
    minutes = f"{settings.BASE_URL}{month_bills.MINUTES_PATH}"
    files = "\n".join(f"{settings.BASE_URL}{path}" for path in paths)
    return [
        *heading("Annex: the evidence"),
        text(
            "Of every hour there are the minutes that its meters counted, GPU by GPU, by the lease that is "
            f"named beside it: {minutes}",
            size=7,
        ),
        Spacer(0, 1 * mm),
        text(f"{of_what} in the FinOps columns (FOCUS), to the same cent:\n{files}", size=7),
    ]


def hours(seconds: int | None) -> str:
    """Return GPU-seconds as GPU-hours."""
    if seconds is None:
        return UNMEASURED
    return f"{round_to(Fraction(seconds, SECONDS_PER_HOUR), quantum=_CENT):,}"


def share(part: int | None, whole: int) -> str:
    """Return a part of a whole in brackets, nothing where there is no whole."""
    return f"  ({in_percent(Decimal(part) / whole)} %)" if part is not None and whole > 0 else ""


def in_percent(part: Decimal) -> str:
    """Return a share in per cent, to one place."""
    return f"{round_to(Fraction(part) * 100, quantum=_PERCENT)}"


def signed(minor: int, currency: str) -> str:
    """Return an amount with a true minus, where it has one."""
    return amount(Money(minor, currency)).replace("-", "−")
