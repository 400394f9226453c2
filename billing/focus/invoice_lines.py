"""Lines of invoices and credit notes as rows of Invoice Detail; the tax of a line is a row of its own."""

import datetime as dt
import json
from collections.abc import Iterator

from django.db.models import Q

from billing import budgets
from billing.budgets import NO_LABELS, Labels
from billing.focus import numbers
from billing.focus.columns import TAX_SUFFIX
from billing.focus.facts import Payer
from billing.focus.frames import Row, as_text
from billing.models import Entry, InvoiceLine
from billing.states import InvoiceKind
from marketplace.models import Organization

ROWS_PER_PAGE = 1_000  # lines; each is a row or two
_DAY = dt.timedelta(days=1)


def pages(*, organization: Organization, month: str, payer: Payer) -> Iterator[list[Row]]:
    """Yield the lines of the documents of a month: of those that close it, and of others issued in it."""
    issued = Q(
        invoice__period="",
        invoice__issued_at__gte=payer.starts_at,
        invoice__issued_at__lt=payer.ends_at,
    )
    lines = (
        InvoiceLine.objects.filter(
            issued | Q(invoice__period=month), invoice__organization=organization
        )
        .select_related("invoice__corrects", "reservation")
        .order_by("pk")
    )
    last = ""
    while page := list(lines.filter(pk__gt=last)[:ROWS_PER_PAGE]):
        labels = _labels(page)
        yield [
            row
            for line in page
            for row in rows_of(line, payer=payer, labels=labels.get(line.pk, NO_LABELS))
        ]
        last = page[-1].pk


def _labels(lines: list[InvoiceLine]) -> dict[str, Labels]:
    """Return what was said of the reservation of each line when it was charged; two queries.

    What is invoiced before it is posted is charged as it is issued.
    """
    reservations = {line.reservation.pk: line.reservation for line in lines if line.reservation}
    said = budgets.histories(reservations=reservations.values())
    entries = Entry.objects.filter(idempotency_key__in=[line.entry_key for line in lines])
    charged_at = dict(entries.values_list("idempotency_key", "effective_at"))
    return {
        line.pk: said[line.reservation_id].before(
            charged_at.get(line.entry_key, line.invoice.issued_at)
        )
        for line in lines
        if line.reservation_id
    }


def rows_of(line: InvoiceLine, *, payer: Payer, labels: Labels) -> list[Row]:
    """Return a line without its tax, then its tax where there is any; a credit note's are negative."""
    invoice = line.invoice
    sign = -1 if invoice.kind == InvoiceKind.CREDIT_NOTE else 1
    issued_at = numbers.instant(invoice.issued_at)
    row = {
        "BilledCost": numbers.money(sign * line.net_minor, invoice.currency),
        "BillingAccountId": payer.account_id,
        "BillingCurrency": invoice.currency.upper(),
        "BillingPeriodEnd": numbers.instant(payer.ends_at),
        "BillingPeriodStart": numbers.instant(payer.starts_at),
        "ChargeCategory": "Purchase",
        "InvoiceDetailCreated": issued_at,
        "InvoiceDetailDescription": as_text(line.description),
        "InvoiceDetailGrain": _grain(line, project=labels.project),
        "InvoiceDetailId": line.pk,
        "InvoiceDetailLastUpdated": issued_at,
        "InvoiceId": invoice.number,
        "InvoiceIssueDate": issued_at,
        "InvoiceIssueStatus": "Issued",
        "InvoiceIssuerName": payer.issuer_name,
        "PaymentDueDate": numbers.instant(invoice.due_at) if invoice.due_at else "",
        "PaymentTerms": _terms(issued_at=invoice.issued_at, due_at=invoice.due_at),
        "PurchaseOrderNumber": as_text(invoice.purchase_order_number),
        # What is not a correction refers to itself: the column may not be empty.
        "ReferenceInvoiceId": invoice.corrects.number if invoice.corrects else invoice.number,
        "x_LedgerEntryKey": line.entry_key,
        "x_ReservationId": line.reservation_id or "",
    }
    if not line.tax_minor:
        return [row]
    tax = {
        **row,
        "BilledCost": numbers.money(sign * line.tax_minor, invoice.currency),
        "ChargeCategory": "Tax",
        "InvoiceDetailDescription": as_text(line.tax_note or "Tax"),
        "InvoiceDetailId": f"{line.pk}{TAX_SUFFIX}",
    }
    return [row, tax]


def _grain(line: InvoiceLine, *, project: str) -> str:
    """Return by what the charges of a line can be found in Cost and Usage."""
    reservation = line.reservation
    if reservation is None:
        return ""
    grain = {"RegionId": reservation.region, "x_ReservationId": reservation.pk}
    if project:
        grain["SubAccountId"] = as_text(project)
    return json.dumps(grain, sort_keys=True, ensure_ascii=False)


def _terms(*, issued_at: dt.datetime, due_at: dt.datetime | None) -> str:
    return "Paid before issue" if due_at is None else f"Net {(due_at - issued_at) // _DAY} days"
