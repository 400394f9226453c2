"""What the printed bills of a month and of a reservation have in common: lines, hours and amounts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

from billing.budgets import BudgetStanding
from billing.models import Invoice
from billing.month_bills import Ahead
from billing.month_figures import Figures
from billing.states import BudgetPeriod, InvoiceKind
from marketplace.core.money import SECONDS_PER_HOUR, Money, currency_exponent

NOT_MEASURED = "—"
_CENT, _TENTH = Decimal("0.01"), Decimal("0.1")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table: what it is of, and the values of the columns."""

    name: str
    detail: str
    values: list[str]


def hours(
    figures: Figures, *, costs: Mapping[str, str | None], when: str = ""
) -> list[tuple[str, str, bool]]:
    """Return what is said of the hours: the words, the value, and whether it is a part of the line above.

    `costs` has their shares; `when` says of what time they are.
    """
    books, whole = figures.books, figures.delivered_seconds
    reasons = sorted(figures.undelivered_by_reason.items(), key=lambda item: (-item[1], item[0]))
    measured = costs["meter_coverage"]
    return [
        (f"Promised{when}", in_hours(figures.promised_seconds), False),
        (f"Bought{when}", in_hours(books.bought), False),
        ("Delivered", in_hours(whole), False),
        ("a process was attached", part_of(figures.attached_seconds, whole), True),
        ("a kernel ran: busy", part_of(figures.busy_seconds, whole), True),
        ("Not delivered, refunded", in_hours(books.undelivered), False),
        *((reason.label, in_hours(seconds), True) for reason, seconds in reasons),
        ("Given back by you", in_hours(books.released), False),
        (
            "Measured, of what was delivered",
            NOT_MEASURED if measured is None else percent(measured),
            False,
        ),
        ("Energy, kWh", energy(costs["energy_kwh"]), False),
    ]


def ahead(by_month: Iterable[tuple[str, Ahead]]) -> list[Line]:
    """Return what is promised and not yet delivered, by month of delivery."""
    return [
        Line(
            month,
            "",
            [
                str(each.reservations),
                in_hours(each.gpu_seconds),
                money(each.contracted.amount_minor, each.contracted.currency),
            ],
        )
        for month, each in by_month
    ]


def document(invoice: Invoice) -> Line:
    """Return an invoice or a credit note, and what has become of it."""
    state = str(getattr(invoice, "state", None) or "given back").replace("_", " ")
    total = money(invoice.total_minor, invoice.currency)
    return Line(
        invoice.number,
        f"purchase order {invoice.purchase_order_number}" if invoice.purchase_order_number else "",
        [
            InvoiceKind(invoice.kind).label,
            f"{invoice.issued_at:%Y-%m-%d}",
            state,
            f"−{total}" if invoice.corrects_id else total,
        ],
    )


def budget_left(standing: BudgetStanding) -> Line:
    """Return a budget, and what is left of it in a period."""
    budget, period = standing.budget, standing.period
    when = "" if budget.period == BudgetPeriod.TOTAL else f", from {period.starts_at:%Y-%m-%d}"
    return Line(
        budget.project or "the whole organization",
        f"{budget.get_period_display()}{when} · {budget.get_mode_display()}",
        [
            money(each.amount_minor, budget.currency)
            for each in (budget.amount, standing.committed, standing.paid, standing.left)
        ],
    )


def in_hours(seconds: int | None) -> str:
    """Return GPU-seconds as GPU-hours."""
    if seconds is None:
        return NOT_MEASURED
    hours = Decimal(seconds) / SECONDS_PER_HOUR
    return f"{hours.quantize(_CENT, rounding=ROUND_HALF_EVEN):,}"


def part_of(seconds: int | None, whole: int) -> str:
    """Return hours, and their share of others."""
    if seconds is None or whole <= 0:
        return in_hours(seconds)
    return f"{in_hours(seconds)} ({percent(Decimal(seconds) / whole)})"


def energy(kilowatt_hours: str | None) -> str:
    """Return energy to two places."""
    if kilowatt_hours is None:
        return NOT_MEASURED
    return f"{Decimal(kilowatt_hours).quantize(_CENT, rounding=ROUND_HALF_EVEN):,}"


def money(minor: int, currency: str) -> str:
    """Return an amount in groups of three digits, with its currency."""
    exponent = currency_exponent(currency)
    shown = f"{Decimal(minor).scaleb(-exponent):,.{exponent}f}".replace("-", "−")
    return f"{shown} {currency.upper()}"


def amount(value: Money) -> str:
    """Return money in groups of three digits, with its currency."""
    return money(value.amount_minor, value.currency)


def percent(share: str | Decimal) -> str:
    """Return a share in per cent, to one place."""
    return f"{(Decimal(share) * 100).quantize(_TENTH, rounding=ROUND_HALF_EVEN)} %"
