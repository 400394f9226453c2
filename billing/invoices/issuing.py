"""Issue a document: number, parties and lines in the caller's transaction, and never anything else of it.

Numbers have no gaps because the series' row is locked until the transaction ends: what is rolled back gives
its number to the next. Whoever issues holds the tenant's row, then the series' row, and should end soon.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction

from billing.invoices.parties import buyer_of, purchase_order_number_of, seller
from billing.models import Invoice, InvoiceLine, InvoiceSeries
from billing.states import InvoiceKind
from billing.tax import NO_TAX, TaxTerms
from marketplace import events
from marketplace.core.errors import InvalidValue
from marketplace.core.windows import Window
from marketplace.models import Organization
from marketplace.states import EventKind
from scheduler.models import Reservation

LINES_MAX = 5_000  # of one document: a month of a large tenant has hundreds; more is a mistake
_MARKS = {InvoiceKind.INVOICE: "", InvoiceKind.CREDIT_NOTE: "CN-"}
_TOLD = {
    InvoiceKind.INVOICE: EventKind.INVOICE_ISSUED,
    InvoiceKind.CREDIT_NOTE: EventKind.CREDIT_NOTE_ISSUED,
}


class InvoiceRefused(InvalidValue):
    """No document can say this: it has no lines, or too many."""

    code = "invoice_refused"
    title = "This cannot be invoiced"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineDraft:
    """A line before it has a document: amounts in minor units, none negative.

    `entry_key` is the idempotency key of the entry that charges or gives back; a credit names the line that
    it takes back.
    """

    entry_key: str
    reservation: Reservation | None
    description: str
    window: Window | None
    gpu_seconds: int
    net_minor: int
    tax_minor: int = 0
    terms: TaxTerms = NO_TAX
    corrects_line: InvoiceLine | None = None


@transaction.atomic
def issue(
    *,
    organization: Organization,
    currency: str,
    lines: Sequence[LineDraft],
    at: dt.datetime,
    due_at: dt.datetime | None = None,
    period: str = "",
    corrects: Invoice | None = None,
) -> Invoice:
    """Issue an invoice, or the credit note that corrects one; tell its tenant.

    The document is dated `at`, or with the document before it where a clock was ahead: numbers and dates
    have the same order. `due_at` moves with it.

    :raises InvoiceRefused: without lines, or with more than a document holds.
    """
    if not 0 < len(lines) <= LINES_MAX:
        raise InvoiceRefused(f"A document has 1 to {LINES_MAX} lines, not {len(lines)}.")
    kind = InvoiceKind.CREDIT_NOTE if corrects else InvoiceKind.INVOICE
    lock(organization)
    sequence, issued_at = _next(kind=kind, at=at)
    net, tax = (sum(getattr(line, name) for line in lines) for name in ("net_minor", "tax_minor"))
    year, issuer = issued_at.astimezone(dt.UTC).year, settings.INVOICE_ISSUER
    invoice = Invoice(
        kind=kind,
        issuer=issuer,
        year=year,
        sequence=sequence,
        number=f"{issuer}-{_MARKS[kind]}{year}-{sequence:06d}",
        organization=organization,
        corrects=corrects,
        currency=currency,
        net_minor=net,
        tax_minor=tax,
        total_minor=net + tax,
        issued_at=issued_at,
        due_at=None if due_at is None else max(due_at, issued_at),
        period=period,
        seller=seller(),
        buyer=buyer_of(organization=organization),
        purchase_order_number=purchase_order_number_of(organization=organization),
        simulated=settings.SIMULATED_PAYMENTS,
    )
    invoice.save(force_insert=True)
    InvoiceLine.objects.bulk_create(
        _row(invoice, line, position=position) for position, line in enumerate(lines, start=1)
    )
    events.record(
        organization=organization,
        kind=_TOLD[kind],
        object_id=invoice.id,
        data={
            "number": invoice.number,
            "total_minor": invoice.total_minor,
            "currency": invoice.currency,
            "due_at": invoice.due_at and invoice.due_at.isoformat(),
            "corrects": corrects and corrects.id,
        },
        at=at,
        key=f"{invoice.id}:issued",
    )
    return invoice


def lock(organization: Organization) -> None:
    """Let nobody else issue for a tenant until the transaction ends: what is left to credit stays so."""
    Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)


def _next(*, kind: InvoiceKind, at: dt.datetime) -> tuple[int, dt.datetime]:
    """Take the next number of the series of the year, and the instant that its document is dated."""
    place = {
        "issuer": settings.INVOICE_ISSUER,
        "kind": kind,
        "year": at.astimezone(dt.UTC).year,
    }
    InvoiceSeries.objects.bulk_create([InvoiceSeries(**place)], ignore_conflicts=True)
    series = InvoiceSeries.objects.select_for_update(no_key=True).get(**place)
    issued_at = at if series.last_issued_at is None else max(at, series.last_issued_at)
    sequence = series.last_sequence + 1
    InvoiceSeries.objects.filter(pk=series.pk).update(
        last_sequence=sequence, last_issued_at=issued_at
    )
    return sequence, issued_at


def _row(invoice: Invoice, line: LineDraft, *, position: int) -> InvoiceLine:
    return InvoiceLine(
        invoice=invoice,
        position=position,
        reservation=line.reservation,
        entry_key=line.entry_key,
        corrects_line=line.corrects_line,
        description=line.description,
        starts_at=line.window.starts_at if line.window else None,
        ends_at=line.window.ends_at if line.window else None,
        gpu_seconds=line.gpu_seconds,
        net_minor=line.net_minor,
        tax_minor=line.tax_minor,
        tax_jurisdiction=line.terms.jurisdiction,
        tax_rate_basis_points=line.terms.rate_basis_points,
        tax_treatment=line.terms.treatment,
        tax_note=line.terms.note if line.terms.is_reported else "",
    )
