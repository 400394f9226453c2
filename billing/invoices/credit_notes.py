"""Credit notes: what goes back of what was invoiced, line by line, and never more of a line than it says.

What a reservation gives back is taken from the line that was invoiced last: an extension goes before the
purchase. What exceeds everything that was invoiced for it so far waits for the documents that invoice the
rest; what exceeds all that ever is invoiced is no price, and on no document.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import QuerySet, Sum, Value
from django.db.models.functions import Coalesce

from billing.invoices import movements
from billing.invoices.issuing import LineDraft, issue, lock
from billing.invoices.movements import Movement
from billing.models import Invoice, InvoiceLine
from marketplace.core.errors import StateConflict
from marketplace.models import Organization


class CreditExceedsInvoice(StateConflict):
    """A credit note would take back more of a line than was invoiced, or a line of another document."""

    code = "credit_exceeds_invoice"
    title = "This was not invoiced"


@dataclass(slots=True, kw_only=True)
class _Left:
    """What is left of an invoiced line after the credit notes so far."""

    line: InvoiceLine
    net_minor: int
    tax_minor: int
    gpu_seconds: int


@transaction.atomic
def credit_note(
    *, invoice: Invoice, lines: Sequence[LineDraft], at: dt.datetime, period: str = ""
) -> Invoice:
    """Issue a credit note that corrects an invoice; each line names the one that it takes back.

    :raises CreditExceedsInvoice: when a line takes back more than is left, or corrects another document.
    :raises InvoiceRefused: without lines, or with more than a document holds.
    """
    lock(invoice.organization)
    found = {left.line.pk: left for left in _left(InvoiceLine.objects.filter(invoice=invoice))}
    for line in lines:
        left = found.get(line.corrects_line.pk) if line.corrects_line else None
        if left is None or line.net_minor > left.net_minor or line.tax_minor > left.tax_minor:
            raise CreditExceedsInvoice(f"{invoice.number} has no such amount left to credit.")
        left.net_minor -= line.net_minor
        left.tax_minor -= line.tax_minor
    return issue(
        organization=invoice.organization,
        currency=invoice.currency,
        lines=lines,
        at=at,
        period=period,
        corrects=invoice,
    )


def credit(
    *, organization: Organization, returns: Iterable[Movement], at: dt.datetime, period: str = ""
) -> list[Invoice]:
    """Issue a credit note for each invoice of which something went back; the oldest invoice first.

    The caller has locked the tenant.
    """
    returns = list(returns)
    left: dict[str, list[_Left]] = {}
    invoiced = InvoiceLine.objects.filter(
        invoice__organization=organization,
        corrects_line__isnull=True,
        reservation__in={movement.reservation.pk for movement in returns},
    )
    for each in _left(invoiced.order_by("-invoice__issued_at", "-invoice__number", "-position")):
        left.setdefault(str(each.line.reservation_id), []).append(each)
    drafts: dict[Invoice, list[LineDraft]] = {}
    for movement in returns:
        for draft in _take(movement, left.get(movement.reservation.pk, [])):
            assert draft.corrects_line is not None, draft
            drafts.setdefault(draft.corrects_line.invoice, []).append(draft)
    return [
        credit_note(invoice=invoice, lines=drafts[invoice], at=at, period=period)
        for invoice in sorted(drafts, key=lambda each: (each.issued_at, each.number))
    ]


def credit_on_account(*, organization: Organization, at: dt.datetime) -> list[Invoice]:
    """Issue the credit notes of what has gone back so far of purchases on account; return them.

    A tenant that is still to pay must not wait for the month's end to see what it owes. What it has paid
    before is invoiced at the month's end alone, and credited with that. Safe to run twice.
    """
    with transaction.atomic():
        lock(organization)
        found = movements.untold(organization=organization, before=at).returns
        invoiced = set(
            InvoiceLine.objects.filter(
                invoice__organization=organization,
                invoice__due_at__isnull=False,
                reservation__in={movement.reservation.pk for movement in found},
            ).values_list("reservation_id", flat=True)
        )
        returns = [movement for movement in found if movement.reservation.pk in invoiced]
        return credit(organization=organization, returns=returns, at=at)


def _left(lines: QuerySet[InvoiceLine]) -> list[_Left]:
    rows = lines.select_related("invoice__organization").annotate(
        credited_net=Coalesce(Sum("corrections__net_minor"), Value(0)),
        credited_tax=Coalesce(Sum("corrections__tax_minor"), Value(0)),
        credited_seconds=Coalesce(Sum("corrections__gpu_seconds"), Value(0)),
    )
    return [
        _Left(
            line=row,
            net_minor=row.net_minor - row.credited_net,
            tax_minor=row.tax_minor - row.credited_tax,
            gpu_seconds=max(row.gpu_seconds - row.credited_seconds, 0),
        )
        for row in rows
    ]


def _take(movement: Movement, left: list[_Left]) -> Iterable[LineDraft]:
    """Yield what a movement takes back of each line, and take it off what is left of that line."""
    net, tax, seconds = movement.net_minor, movement.tax_minor, movement.gpu_seconds
    for each in left:
        part_net, part_tax = min(net, each.net_minor), min(tax, each.tax_minor)
        if not part_net and not part_tax:
            continue
        part_seconds = min(seconds, each.gpu_seconds) if net > part_net else seconds
        each.net_minor -= part_net
        each.tax_minor -= part_tax
        each.gpu_seconds = max(each.gpu_seconds - part_seconds, 0)
        net, tax, seconds = net - part_net, tax - part_tax, seconds - part_seconds
        yield LineDraft(
            entry_key=movement.entry_key,
            reservation=movement.reservation,
            description=movement.description,
            window=movement.window,
            gpu_seconds=part_seconds,
            net_minor=part_net,
            tax_minor=part_tax,
            terms=movement.terms,
            corrects_line=each.line,
        )
