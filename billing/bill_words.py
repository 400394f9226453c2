"""The bill of one reservation in words, for a page and for a file: the same of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

from billing.bills import Bill, BillLine
from billing.models import Invoice
from marketplace.core.money import SECONDS_PER_HOUR, Money, currency_exponent
from scheduler.models import Reservation

NOT_MEASURED = "—"
_CENT = Decimal("0.01")
LINE_COLUMNS = ("bought", "delivered", "busy", "not delivered", "price", "earned", "refunded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What is said of a bill. Of the hours the third member says whether it is a part of the line above.

    A line is a lease: its id, what is to be said of it, and the values of `LINE_COLUMNS`.
    """

    name: str
    about: list[tuple[str, str]]
    hours: list[tuple[str, str, bool]]
    money: list[tuple[str, str]]
    lines: list[tuple[str, str, list[str]]]


def words_of(*, bill: Bill, reservation: Reservation, documents: Sequence[Invoice]) -> Words:
    """Return what is said of a bill, in whole amounts and hours."""
    of, seconds = reservation, bill.gpu_seconds
    reasons = sorted(seconds.undelivered_by_reason.items(), key=lambda item: (-item[1], item[0]))
    return Words(
        name=of.name or of.pk,
        about=[
            ("Reservation", of.pk),
            ("Project", of.project or NOT_MEASURED),
            (
                "Tags",
                ", ".join(f"{key}: {value}" for key, value in sorted(of.tags.items()))
                or NOT_MEASURED,
            ),
            ("GPUs", f"{of.gpus} × {of.gpu_model_id}, {of.region}, {of.tier}"),
            ("Window", f"{of.starts_at:%Y-%m-%d %H:%M} to {of.ends_at:%Y-%m-%d %H:%M} UTC"),
            ("State", str(of.status)),
            ("Locked rate", f"{bill.rate} {of.currency.upper()} per GPU-hour"),
            *(
                (
                    "Document",
                    f"{each.number}, {_total(each)} with tax",
                )
                for each in documents
            ),
        ],
        hours=[
            ("Bought", _hours(seconds.bought), False),
            ("Delivered", _hours(seconds.delivered), False),
            ("a kernel ran: busy", _hours(seconds.busy), True),
            ("none ran, or none was seen", _hours(seconds.idle), True),
            ("Not delivered, refunded", _hours(seconds.undelivered), False),
            *((reason.label, _hours(count), True) for reason, count in reasons),
            ("Given back by you", _hours(seconds.released), False),
            ("Not yet known", _hours(seconds.open), False),
            ("Measured, of what was delivered", _percent(bill.meter_coverage), False),
            ("Energy, kWh", bill.energy_kwh or NOT_MEASURED, False),
        ],
        money=[
            ("Bought", _money(bill.bought)),
            ("Earned by what was delivered", _money(bill.earned)),
            ("Refunded", _money(bill.refunded)),
            ("Fees kept of what was given back", _money(bill.fees)),
            ("Open", _money(bill.open)),
            ("Net: bought less refunded", _money(bill.net)),
            ("Tax", _money(bill.tax)),
            ("Net with tax", _money(bill.net_with_tax)),
            ("Credits beyond the refund", _money(bill.credits)),
            ("Per delivered GPU-hour", bill.cost_per_delivered_gpu_hour or NOT_MEASURED),
            ("Per busy GPU-hour", bill.cost_per_busy_gpu_hour or NOT_MEASURED),
        ],
        lines=[_line(line) for line in bill.lines],
    )


def _line(line: BillLine) -> tuple[str, str, list[str]]:
    seconds = line.gpu_seconds
    why = ", ".join(
        f"{_hours(count)} h not delivered: {reason.label}"
        for reason, count in seconds.undelivered_by_reason.items()
    )
    window = f"{line.window.starts_at:%Y-%m-%d %H:%M} to {line.window.ends_at:%Y-%m-%d %H:%M}"
    detail = " · ".join(word for word in (f"{line.gpus} GPUs", window, line.status, why) if word)
    return (
        line.lease_id,
        detail,
        [
            _hours(seconds.bought),
            _hours(seconds.delivered),
            _hours(seconds.busy),
            _hours(seconds.undelivered),
            _money(line.bought),
            _money(line.earned),
            _money(line.refunded),
        ],
    )


def _hours(seconds: int) -> str:
    hours = Decimal(seconds) / SECONDS_PER_HOUR
    return f"{hours.quantize(_CENT, rounding=ROUND_HALF_EVEN):,}"


def _percent(share: str | None) -> str:
    return NOT_MEASURED if share is None else f"{Decimal(share) * 100:.1f} %"


def _total(document: Invoice) -> str:
    """Return the total of an invoice, or of a credit note what it gives back."""
    sign = "−" if document.corrects_id else ""
    return f"{sign}{_money(Money(document.total_minor, document.currency))}"


def _money(money: Money) -> str:
    exponent = currency_exponent(money.currency)
    shown = f"{Decimal(money.amount_minor).scaleb(-exponent):,.{exponent}f}".replace("-", "−")
    return f"{shown} {money.currency.upper()}"
