"""What banks ask about card payments before they take anything back: told and listed, and nothing is posted.

The provider speaks of an inquiry as of a dispute whose state begins with a warning, without a booking. When
the bank is content it is closed; when it is not, the same object becomes a dispute and the money leaves.
"""

import datetime as dt

from django.db import transaction

from billing import receivables
from billing.disputes import PREVENTED
from billing.models import CardInquiry, Dispute, Payment, TopUpDispute
from billing.provider_values import ProviderDispute
from marketplace import events
from marketplace.states import EventKind

# The provider's words, https://docs.stripe.com/api/disputes/object#dispute_object-status
CLOSED = frozenset({"warning_closed", PREVENTED})
STATES = frozenset({"warning_needs_response", "warning_under_review", *CLOSED})


def is_one(made: ProviderDispute) -> bool:
    """Say whether a bank only asks, or was content before it took anything, and nothing has been posted.

    What was posted as a dispute stays one: its own room closes it.
    """
    if made.state not in STATES or made.taken_minor:
        return False
    posted = Dispute.objects.filter(pk=made.id), TopUpDispute.objects.filter(pk=made.id)
    return not any(rows.exists() for rows in posted)


@transaction.atomic
def apply(*, payment: Payment, made: ProviderDispute, at: dt.datetime) -> CardInquiry:
    """Take over what the provider says of an inquiry. Safe to call with the same, or with older news."""
    receivables.lock(payment.organization)
    inquiry, is_new = CardInquiry.objects.get_or_create(
        pk=made.id,
        defaults={
            "payment": payment,
            "state": made.state,
            "amount_minor": made.amount_minor,
            "currency": made.currency,
            "opened_at": made.created_at,
        },
    )
    if is_new:
        _tell(inquiry, kind=EventKind.INQUIRY_OPENED, at=at)
    if inquiry.closed_at is not None or inquiry.disputed_at is not None:
        return inquiry
    inquiry.state = made.state
    if made.state in CLOSED:
        inquiry.closed_at = at
    inquiry.save(update_fields=["state", "closed_at"])
    if inquiry.closed_at is not None:
        _tell(inquiry, kind=EventKind.INQUIRY_CLOSED, at=at)
    return inquiry


@transaction.atomic
def end_in_dispute(*, payment: Payment, made: ProviderDispute, at: dt.datetime) -> None:
    """Note that a bank has made a dispute of what it asked about; nothing where it never asked."""
    receivables.lock(payment.organization)
    inquiry = CardInquiry.objects.filter(
        pk=made.id, closed_at__isnull=True, disputed_at__isnull=True
    ).first()
    if inquiry is None:
        return
    inquiry.state, inquiry.disputed_at = made.state, at
    inquiry.save(update_fields=["state", "disputed_at"])
    _tell(inquiry, kind=EventKind.INQUIRY_CLOSED, at=at)


def _tell(inquiry: CardInquiry, *, kind: EventKind, at: dt.datetime) -> None:
    events.record(
        organization=inquiry.payment.organization,
        kind=kind,
        object_id=inquiry.payment_id,
        data={
            "amount_minor": inquiry.amount_minor,
            "currency": inquiry.currency,
            "is_disputed": inquiry.disputed_at is not None,
        },
        at=at,
        key=f"{inquiry.pk}:{kind.value}",
    )
