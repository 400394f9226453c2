"""The arrows of a payment, and what everybody who takes one does besides."""

import datetime as dt
from urllib.parse import urlencode

from django.conf import settings
from django.db import transaction

from billing import intents, ledger
from billing.models import Intent, Payment, ProviderTransition
from billing.provider_states import (
    CONFIRMING_PURPOSES,
    PAYMENT_ARROWS,
    PAYMENT_OPEN_STATUSES,
    IntentKind,
    Machine,
    PaymentMeans,
    PaymentPurpose,
    PaymentStatus,
)
from billing.states import AccountKind
from marketplace import events
from marketplace.core.errors import StateConflict
from marketplace.core.windows import format_instant
from marketplace.states import EventKind
from scheduler import extensions, reservations
from scheduler.models import Reservation
from scheduler.states import ExtensionDropReason, ReservationStatus

ACTOR = "billing.payments"
OPEN_STATUSES = PAYMENT_OPEN_STATUSES


def clearing(*, payment: Payment) -> ledger.AccountRef:
    """Return the account of what came in and is not yet matched with the provider's own books."""
    return ledger.AccountRef(
        AccountKind.PSP_CLEARING, payment.currency, payment.pk, payment.organization
    )


def page_url(*, payment: Payment) -> str | None:
    """Return the address of the page on which a tenant can pay; None when nothing can be done there.

    Without the key that a browser may know there is no page: a client brings its own, with the secret.
    """
    is_open = payment.status == PaymentStatus.OPEN and payment.means == PaymentMeans.CARD
    if not is_open or not payment.client_secret or not settings.STRIPE_PUBLISHABLE_KEY:
        return None
    query = urlencode({"secret": payment.client_secret})
    return f"{settings.BASE_URL}/pay/{payment.pk}?{query}"


def close(payment: Payment, *, at: dt.datetime) -> None:
    """End a payment that will not be made any more, and put the GPUs back on sale."""
    failed = bool(payment.failure_code)
    to = PaymentStatus.FAILED if failed else PaymentStatus.CANCELLED
    if payment.status == to:
        return
    move(payment, to=to, reason=payment.failure_code, at=at)
    give_back(payment, at=at)
    tell(payment, kind=EventKind.PAYMENT_CLOSED, occasion="closed", at=at)


def give_up(payment: Payment, *, at: dt.datetime) -> bool:
    """Ask the provider to cancel a payment, or close one that it never heard of; say whether it is done."""
    if payment.provider_id:
        intents.write(
            kind=IntentKind.CANCEL,
            subject_id=payment.pk,
            organization=payment.organization,
            params={"payment_id": payment.provider_id},
            at=at,
        )
        return True
    if Intent.objects.filter(kind=IntentKind.PAYMENT, subject_id=payment.pk).exists():
        return False  # the call may be on its way: its outcome says what there is to cancel
    with transaction.atomic():
        current = (
            Payment.objects.select_for_update(no_key=True, of=("self",))
            .select_related("organization", "reservation", "extension__quote")
            .get(pk=payment.pk)
        )
        if current.status == PaymentStatus.CREATED and not current.provider_id:
            close(current, at=at)
    return True


def give_back(payment: Payment, *, at: dt.datetime) -> None:
    """Put on sale again what was kept for a payment that will not be made."""
    if reservation_waits(payment):
        assert payment.reservation_id is not None
        reservations.fail_payment(reservation_id=payment.reservation_id, at=at, actor=ACTOR)
    if payment.extension_id is not None:
        extensions.drop_held(
            hold_id=payment.extension_id, reason=ExtensionDropReason.PAYMENT_DECLINED, at=at
        )


def reservation_waits(payment: Payment) -> bool:
    """Say whether a reservation still counts on this payment: pending, or held and not yet taken."""
    if payment.purpose not in CONFIRMING_PURPOSES:
        return False
    reservation = Reservation.objects.get(pk=payment.reservation_id)
    if reservation.status == ReservationStatus.SCHEDULED:
        return reservation.is_payment_held
    return reservation.status == ReservationStatus.PAYMENT_PENDING


def tell(
    payment: Payment, *, kind: EventKind, occasion: str, at: dt.datetime, why: str = ""
) -> None:
    events.record(
        organization=payment.organization,
        kind=kind,
        object_id=payment.pk,
        data={
            "amount_minor": payment.amount_minor,
            "currency": payment.currency,
            "purpose": payment.purpose,
            "reservation_id": payment.reservation_id,
            "extension_id": payment.extension_id,
            "invoice_id": payment.invoice_id or None,
            "code": payment.failure_code or None,
            "detail": why or payment.failure_message or None,
            **_how_to_pay(payment),
        },
        at=at,
        key=f"{payment.pk}:{occasion}",
    )


def _how_to_pay(payment: Payment) -> dict[str, object]:
    """Return where a tenant pays a balance that nobody asked it for in person, and until when."""
    if payment.purpose != PaymentPurpose.BALANCE or payment.status not in OPEN_STATUSES:
        return {}
    return {
        "client_secret": payment.client_secret or None,
        "checkout_url": page_url(payment=payment),
        "due_at": format_instant(payment.due_at),
    }


def move(payment: Payment, *, to: PaymentStatus, reason: str, at: dt.datetime) -> None:
    """Compare and set; the row is locked by the caller."""
    came_from = PaymentStatus(payment.status)
    if not PAYMENT_ARROWS.allows(came_from, to):
        raise StateConflict(f"{payment.pk} is {came_from}; it cannot become {to}")
    ended = to not in OPEN_STATUSES
    changed = Payment.objects.filter(pk=payment.pk, status=came_from).update(
        status=to, closed_at=at if ended else None
    )
    if not changed:
        raise StateConflict(f"{payment.pk} moved on; it cannot become {to}")
    payment.status = to
    note(payment, from_status=came_from, reason=reason, at=at)


def note(payment: Payment, *, from_status: str, reason: str, at: dt.datetime) -> None:
    ProviderTransition.objects.create(
        machine=Machine.PAYMENT,
        subject_id=payment.pk,
        from_status=from_status,
        to_status=payment.status,
        reason=reason[:100],
        at=at,
    )
