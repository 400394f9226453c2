"""What is bought on account: an invoice of its own, at once, to be paid later.

It is issued before the entry that charges it is posted, because that one names it: see
`purchases.capture_invoice`.
"""

import datetime as dt

from django.db import transaction

from billing import tax
from billing.invoices.issuing import LineDraft, issue, lock
from billing.invoices.movements import window_of_change
from billing.invoices.wording import charge_of
from billing.models import Invoice
from billing.states import EntryKind
from marketplace.core.windows import Window
from scheduler.models import Change, Reservation


@transaction.atomic
def issue_for_purchase(
    *, reservation: Reservation, due_at: dt.datetime, at: dt.datetime
) -> Invoice:
    """Issue the invoice of a reservation that is bought on account; return the first one if called again."""
    return _issue(
        key=f"purchase:{reservation.id}",
        kind=EntryKind.PURCHASE,
        reservation=reservation,
        change=None,
        window=reservation.window,
        gpu_seconds=reservation.gpus * reservation.window.seconds,
        net_minor=reservation.total_minor,
        tax_minor=tax.tax_minor(
            net_minor=reservation.total_minor, terms=tax.terms_of(reservation=reservation)
        ),
        due_at=due_at,
        at=at,
    )


@transaction.atomic
def issue_for_change(*, change: Change, due_at: dt.datetime, at: dt.datetime) -> Invoice:
    """Issue the invoice of what a change adds on account; return the first one if called again."""
    key, reservation = f"change:{change.id}", change.reservation
    part = tax.part_of(
        reservation=reservation,
        key=key,
        charged=change.charged_minor,
        refunded=change.refunded_minor,
    )
    return _issue(
        key=key,
        kind=EntryKind.CHANGE,
        reservation=reservation,
        change=change,
        window=window_of_change(change),
        gpu_seconds=change.gpu_seconds_added,
        net_minor=change.charged_minor,
        tax_minor=part.charged,
        due_at=due_at,
        at=at,
    )


def _issue(
    *,
    key: str,
    kind: EntryKind,
    reservation: Reservation,
    change: Change | None,
    window: Window,
    gpu_seconds: int,
    net_minor: int,
    tax_minor: int,
    due_at: dt.datetime,
    at: dt.datetime,
) -> Invoice:
    lock(reservation.organization)
    earlier = Invoice.objects.filter(lines__entry_key=key, corrects__isnull=True).first()
    if earlier is not None:
        return earlier
    line = LineDraft(
        entry_key=key,
        reservation=reservation,
        description=charge_of(
            kind=kind, change=change, reservation=reservation, window=window, net_minor=net_minor
        ),
        window=window,
        gpu_seconds=gpu_seconds,
        net_minor=net_minor,
        tax_minor=tax_minor,
        terms=tax.terms_of(reservation=reservation),
    )
    return issue(
        organization=reservation.organization,
        currency=reservation.currency,
        lines=[line],
        at=at,
        due_at=due_at,
    )
