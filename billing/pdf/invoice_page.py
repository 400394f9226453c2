"""An invoice or a credit note as pages to file: what was issued, and nothing that may change later."""

import datetime as dt
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

from reportlab.lib.units import mm
from reportlab.platypus import Flowable, KeepTogether, Spacer

from billing.bills import cost_per_hour
from billing.models import Invoice, InvoiceLine
from billing.pdf.layout import (
    QUIET,
    WARNING,
    amount,
    beside,
    build,
    heading,
    table,
    text,
)
from billing.states import InvoiceKind
from billing.tax import percent
from marketplace.core.money import SECONDS_PER_HOUR, Money, round_to

_TITLES = {InvoiceKind.INVOICE: "Invoice", InvoiceKind.CREDIT_NOTE: "Credit note"}
_CENT = Decimal("0.01")


def invoice(*, invoice: Invoice) -> bytes:
    """Return a document as PDF: the same one gives the same bytes whenever it is asked for."""
    lines = list(invoice.lines.order_by("position").select_related("corrects_line"))
    title = f"{_TITLES[InvoiceKind(invoice.kind)]} {invoice.number}"
    return build(
        [*_head(invoice), *_lines(invoice, lines), KeepTogether(_totals(invoice, lines))],
        title=title,
        subject=f"{invoice.buyer['name']}, {_day(invoice.issued_at)}",
        footer=f"{title} · {_one_line(invoice.seller)}",
    )


def _head(document: Invoice) -> list[Flowable]:
    word = _TITLES[InvoiceKind(document.kind)]
    seller = document.seller
    about = [
        ("Number", document.number),
        ("Date of issue", _day(document.issued_at)),
        *([("Month", document.period)] if document.period else []),
        *([("Corrects", document.corrects.number)] if document.corrects else []),
        *([("Due", _day(document.due_at))] if document.due_at else []),
        *(
            [("Purchase order", document.purchase_order_number)]
            if document.purchase_order_number
            else []
        ),
        ("Customer", document.organization_id),
    ]
    rows = [[text(name, color=QUIET), text(value)] for name, value in about]
    found: list[Flowable] = [
        beside(
            [text(seller["name"], size=12, bold=True), text(_address(seller), color=QUIET)],
            [text(word, size=18, bold=True, right=True)],
        ),
        Spacer(0, 10 * mm),
        beside(
            [
                text("Bill to", color=QUIET),
                text(document.buyer["name"], size=10, bold=True),
                text(_address(document.buyer)),
            ],
            [table(rows, widths=[3, 7], head=False, columns=2)],
        ),
    ]
    if document.simulated:
        words = "Simulated: this is about play money. Nothing is owed, and nothing was paid."
        found += [Spacer(0, 4 * mm), text(words, bold=True, color=WARNING)]
    return found


def _lines(document: Invoice, lines: list[InvoiceLine]) -> list[Flowable]:
    currency = document.currency
    rows: list[list[str]] = [
        ["", "Description", "GPU-hours", "per GPU-hour", "Tax %", f"Net, {currency.upper()}"]
    ]
    for line in lines:
        net = Money(line.net_minor, currency)
        rows.append(
            [
                str(line.position),
                f"{line.description}\n{line.reservation_id or ''}".rstrip(),
                _hours(line.gpu_seconds) if line.gpu_seconds else "",
                cost_per_hour(net, line.gpu_seconds) or "" if line.gpu_seconds else "",
                percent(line.tax_rate_basis_points),
                amount(net),
            ]
        )
    return [
        *heading("Given back" if document.corrects_id else "Bought"),
        table(rows, widths=[1, 16, 4, 4, 2, 4], texts=2),
    ]


def _totals(document: Invoice, lines: list[InvoiceLine]) -> list[Flowable]:
    currency = document.currency
    sums: dict[tuple[str, str, int], list[int]] = {}
    for line in lines:
        key = (line.tax_jurisdiction, line.tax_note, line.tax_rate_basis_points)
        net, tax = sums.setdefault(key, [0, 0])
        sums[key] = [net + line.net_minor, tax + line.tax_minor]
    rows = [["Net", amount(Money(document.net_minor, currency))]]
    for (_, note, _), (net, tax) in sorted(sums.items()):
        words = f"{note or 'No tax'} on {amount(Money(net, currency))}"
        rows.append([words, amount(Money(tax, currency))])
    word = "Total that goes back" if document.corrects_id else "Total"
    rows.append([f"{word}, {currency.upper()}", amount(Money(document.total_minor, currency))])
    found: list[Flowable] = [
        Spacer(0, 3 * mm),
        table(rows, widths=[4, 1], size=8, head=False, strong_last=True),
        Spacer(0, 4 * mm),
        text(_payment(document)),
    ]
    if document.due_at and document.seller.get("payment_details"):
        found.append(text(document.seller["payment_details"]))
    return found


def _payment(document: Invoice) -> str:
    if document.corrects is not None:
        return (
            f"This corrects {document.corrects.number} of {_day(document.corrects.issued_at)}. The amount "
            "went back to the wallet or the way it was paid, or is no longer owed."
        )
    if document.due_at is None:
        return "Paid in full before it was issued: from the wallet, by card or by bank transfer."
    return f"Payable by {_day(document.due_at)}, naming {document.number}."


def _address(party: Mapping[str, str]) -> str:
    town = " ".join(word for word in (party["postal_code"], party["city"]) if word)
    lines = [party["street"], town, party["region"], party["country"], party["email"]]
    if party["tax_id"]:
        lines.append(f"Tax id {party['tax_id']}")
    return "\n".join(line for line in lines if line)


def _one_line(party: Mapping[str, str]) -> str:
    return ", ".join([party["name"], *_address(party).split("\n")]).rstrip(", ")


def _day(instant: dt.datetime) -> str:
    return f"{instant.astimezone(dt.UTC):%Y-%m-%d}"


def _hours(seconds: int) -> str:
    return f"{round_to(Fraction(seconds, SECONDS_PER_HOUR), quantum=_CENT):,}"
