"""What is bought on account: an invoice of its own, at once, to be paid later."""

import datetime as dt

from django.db import transaction

from billing.invoices.issuing import LineDraft, issue, lock
from billing.invoices.wording import purchased
from billing.models import Invoice
from scheduler.models import Reservation


@transaction.atomic
def issue_for_purchase(
    *, reservation: Reservation, due_at: dt.datetime, at: dt.datetime
) -> Invoice:
    """Issue the invoice of a reservation that is bought on account; return the first one if called again.

    It is issued before the purchase is posted, which names it: see `purchases.capture_invoice`.
    """
    key = f"purchase:{reservation.id}"
    lock(reservation.organization)
    earlier = Invoice.objects.filter(lines__entry_key=key, corrects__isnull=True).first()
    if earlier is not None:
        return earlier
    line = LineDraft(
        entry_key=key,
        reservation=reservation,
        description=purchased(reservation=reservation, window=reservation.window),
        window=reservation.window,
        gpu_seconds=reservation.gpus * reservation.window.seconds,
        net_minor=reservation.total_minor,
    )
    return issue(
        organization=reservation.organization,
        currency=reservation.currency,
        lines=[line],
        at=at,
        due_at=due_at,
    )
