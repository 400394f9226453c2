"""What is added on account to a reservation that was bought before: an invoice of its own, at once."""

import datetime as dt

from django.db import transaction

from billing import tax
from billing.invoices.issuing import LineDraft, issue, lock
from billing.invoices.terms import LineTax
from billing.invoices.wording import purchased
from billing.models import Invoice
from marketplace.core.windows import Window
from scheduler.models import Change


@transaction.atomic
def issue_for_change(*, change: Change, due_at: dt.datetime, at: dt.datetime) -> Invoice:
    """Issue the invoice of what a change adds on account; return the first one if called again.

    It is issued before the change is posted, which names it: see `billing.changes.post`.
    """
    key = f"change:{change.id}"
    reservation = change.reservation
    lock(reservation.organization)
    earlier = Invoice.objects.filter(lines__entry_key=key, corrects__isnull=True).first()
    if earlier is not None:
        return earlier
    assert change.starts_at is not None, f"{change.id} leaves no window"
    assert change.ends_at is not None, f"{change.id} leaves no window"
    window = Window(change.starts_at, change.ends_at)
    part = tax.part_of(reservation=reservation, key=key, charged=change.charged_minor)
    terms = tax.terms_of(reservation=reservation)
    line = LineDraft(
        entry_key=key,
        reservation=reservation,
        description=f"Added: {purchased(reservation=reservation, window=window)}",
        window=window,
        gpu_seconds=change.gpu_seconds_added,
        net_minor=change.charged_minor,
        tax_minor=part.charged,
        tax=LineTax(
            jurisdiction=terms.jurisdiction,
            rate_basis_points=terms.rate_basis_points,
            treatment=terms.treatment,
            note=terms.note,
        ),
    )
    return issue(
        organization=reservation.organization,
        currency=change.currency,
        lines=[line],
        at=at,
        due_at=due_at,
    )
