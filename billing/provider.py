"""Drive what is due at the payment provider, and hand each outcome to the room that asked for it."""

import datetime as dt
from collections.abc import Callable

import structlog
from django.db import transaction

from billing import (
    card_refunds,
    cash,
    disputes,
    inquiries,
    intents,
    onboarding,
    payments,
    receivables,
    reservation_refunds,
    top_up_disputes,
    transfers,
)
from billing import stripe_gateway as gateway
from billing.intents import Handler, Made
from billing.models import CardRefund, Intent, Payment, PayoutAccount, Refund, Transfer
from billing.provider_states import CardRefundStatus, IntentKind, PaymentStatus
from billing.provider_values import GatewayError, ProviderDispute, Refusal
from billing.states import DisputeStatus, RefundStatus
from scheduler.models import Reservation

log = structlog.get_logger(__name__)

ACTOR = "billing.provider"
READS_PER_RUN_MAX = 50  # the provider allows 100 calls a second to all of us
# A payment may need its customer first: two calls, and one more for what those have made due.
ROUNDS_MAX = 3


def is_connected() -> bool:
    """Say whether this market can take money through a provider."""
    return gateway.is_configured()


def drive_due(*, at: dt.datetime) -> int:
    """Make the calls that are due; return how many have an outcome now."""
    if not is_connected():
        return 0
    return sum(drive(intent_id=intent_id, at=at) for intent_id in intents.due(at=at))


def drive(*, intent_id: str, at: dt.datetime) -> bool:
    """Make one call, and say whether it has an outcome; a fault of ours is logged, and it comes again."""
    try:
        return intents.drive(intent_id=intent_id, handlers=HANDLERS, at=at)
    except Exception:
        log.exception("an intent could not be driven", intent=intent_id)
        return False


def drive_payment(*, payment_id: str, at: dt.datetime) -> None:
    """Make the calls that a new payment waits for, while its tenant waits."""
    payment = Payment.objects.get(pk=payment_id)
    subjects = (payment.pk, payment.organization_id)
    for _ in range(ROUNDS_MAX):
        for waiting in intents.due(at=at, subject_ids=subjects):
            drive(intent_id=waiting, at=at)
    payment.refresh_from_db()
    if payment.provider_id and payment.status == PaymentStatus.CREATED:
        read_payment(payment_id=payment.pk, object_id=payment.provider_id, at=at)


def drive_subject(*, subject_id: str, at: dt.datetime) -> None:
    """Make the calls that are due for one thing of ours, while somebody waits for them."""
    for intent_id in intents.due(at=at, subject_ids=(subject_id,)):
        drive(intent_id=intent_id, at=at)


def read_due(*, at: dt.datetime) -> int:
    """Ask the provider after what nobody has heard of for a while; return how many were read."""
    if not is_connected():
        return 0
    waiting = Payment.objects.filter(
        status__in=payments.OPEN_STATUSES, read_due_at__lte=at
    ).exclude(provider_id="")
    count = 0
    for payment_id, object_id in waiting.order_by("read_due_at").values_list("pk", "provider_id")[
        :READS_PER_RUN_MAX
    ]:
        count += read_payment(payment_id=payment_id, object_id=object_id, at=at)
    refunds = CardRefund.objects.filter(status=CardRefundStatus.PENDING, read_due_at__lte=at)
    for refund_id, object_id in refunds.order_by("read_due_at").values_list("pk", "provider_id")[
        :READS_PER_RUN_MAX
    ]:
        try:
            made = gateway.read_refund(refund_id=object_id)
        except GatewayError as error:
            log.warning("a refund could not be read", refund=refund_id, error=str(error))
            continue
        card_refunds.apply(refund_id=refund_id, made=made, at=at)
        count += 1
    return count + _read_sent_refunds(at=at) + onboarding.read_due(at=at) + cash.read_due(at=at)


def _read_sent_refunds(*, at: dt.datetime) -> int:
    """Read the refunds of reservations that the provider has and is not through with, hour by hour."""
    sent = Refund.objects.filter(status=RefundStatus.SENT).values("pk")
    pause = dt.timedelta(seconds=card_refunds.READ_AGAIN_SECONDS)
    waiting = Intent.objects.filter(
        kind=IntentKind.REFUND, subject_id__in=sent, closed_at__isnull=False, due_at__lte=at
    )
    count = 0
    for intent in waiting.order_by("due_at")[:READS_PER_RUN_MAX]:
        Intent.objects.filter(pk=intent.pk).update(due_at=at + pause)
        try:
            made = gateway.read_refund(refund_id=intent.object_id)
        except GatewayError as error:
            log.warning("a refund could not be read", refund=intent.subject_id, error=str(error))
            continue
        _refund_done(intent, made, at)
        count += 1
    return count


def read_payment(*, payment_id: str, object_id: str, at: dt.datetime) -> bool:
    """Read one payment at the provider and take over what it says; say whether that was possible."""
    try:
        made = gateway.read_payment(payment_id=object_id)
    except GatewayError as error:
        log.warning("a payment could not be read", payment=payment_id, error=str(error))
        return False
    payments.apply(payment_id=payment_id, made=made, at=at)
    return True


def _refresh_payment(object_id: str, at: dt.datetime) -> bool:
    made = gateway.read_payment(payment_id=object_id)
    payment = Payment.objects.filter(provider_id=object_id).first()
    if payment is not None:
        payments.apply(payment_id=payment.pk, made=made, at=at)
        return True
    return _adopt(made, at=at)


def _refresh_refund(object_id: str, at: dt.datetime) -> bool:
    made = gateway.read_refund(refund_id=object_id)
    refund = CardRefund.objects.filter(provider_id=object_id).first()
    if refund is not None:
        card_refunds.apply(refund_id=refund.pk, made=made, at=at)
        return True
    intent = Intent.objects.filter(kind=IntentKind.REFUND, object_id=object_id).first()
    if intent is not None:
        _refund_done(intent, made, at)
        return True
    return _adopt(made, at=at)


def _refresh_dispute(object_id: str, at: dt.datetime) -> bool:
    """Take over a dispute after the payment that it is about, and after what its money is on its way to.

    The news of the payment may come later than that of its dispute, and only the payment tells whether it
    bought its reservation. A refund that is being asked for may be refused because of the dispute: until that
    is known the wallet does not hold what it has to bear.
    """
    made = gateway.read_dispute(dispute_id=object_id)
    if not made.payment_id or not _refresh_payment(made.payment_id, at):
        return False
    payment = Payment.objects.select_related("organization", "reservation").get(
        provider_id=made.payment_id
    )
    is_going_back = Intent.objects.filter(
        kind=IntentKind.REFUND, closed_at__isnull=True, subject_id__in=payment.refunds.values("pk")
    )
    if is_going_back.exists():
        return False
    _take_dispute_over(payment, made, at=at)
    return True


@transaction.atomic
def _take_dispute_over(payment: Payment, made: ProviderDispute, *, at: dt.datetime) -> None:
    """Post a dispute where the money of its payment is; what is only asked about is told."""
    receivables.lock(payment.organization)
    if inquiries.is_one(made):
        inquiries.apply(payment=payment, made=made, at=at)
        return
    # What could not buy its reservation went back, or to the wallet: it bought nothing that is disputed.
    if payment.reservation is None or payment.refunds.exists():
        top_up_disputes.apply(payment=payment, made=made, at=at)
    else:
        _apply_dispute(payment, payment.reservation, made, at=at)
    inquiries.end_in_dispute(payment=payment, made=made, at=at)


def _apply_dispute(
    payment: Payment, reservation: Reservation, made: ProviderDispute, *, at: dt.datetime
) -> None:
    """Take over what the provider says of the dispute of a reservation's payment; it moves forward only."""
    dispute = disputes.open_dispute(
        dispute_id=made.id,
        reservation=reservation,
        payment=payment,
        amount_minor=made.amount_minor,
        fee_minor=made.fee_minor,
        currency=made.currency,
        at=at,
        actor=ACTOR,
    )
    end = disputes.end_of(made)
    if dispute.status != DisputeStatus.OPEN or end is None:
        return
    if end == DisputeStatus.WON:
        disputes.win(dispute_id=made.id, at=at, actor=ACTOR)
    else:
        disputes.lose(dispute_id=made.id, at=at, actor=ACTOR)


def _refresh_transfer(object_id: str, at: dt.datetime) -> bool:
    made = gateway.read_transfer(transfer_id=object_id)
    transfer = Transfer.objects.filter(provider_id=object_id).first()
    if transfer is None:
        return _adopt(made, at=at)
    if made.reversed_minor == transfer.reversed_minor:
        return True
    for back in gateway.reversals_of(transfer_id=object_id):
        # One that we did not ask for stays a difference: it is for a person to say what the owner is owed.
        _adopt(back, at=at)
    transfer.refresh_from_db()
    return made.reversed_minor == transfer.reversed_minor


def _refresh_account(object_id: str, at: dt.datetime) -> bool:
    made = gateway.read_account(account_id=object_id)
    account = PayoutAccount.objects.filter(provider_id=object_id).first()
    if account is not None:
        onboarding.seen(account_id=account.pk, made=made, at=at)
        return True
    return _adopt(made, at=at)


def _refresh_cash(customer_id: str, at: dt.datetime) -> bool:
    return cash.read(customer_id=customer_id, at=at)


def _adopt(made: Made, *, at: dt.datetime) -> bool:
    """Find the intent that made an object whose answer was lost, and give it its outcome."""
    intent = Intent.objects.filter(pk=made.intent_id).first() if made.intent_id else None
    if intent is None:
        return False
    intents.adopt(intent=intent, made=made, handlers=HANDLERS, at=at)
    return True


def look_up(*, intent: Intent, at: dt.datetime) -> bool:
    """Look for what a call made, by our mark on it, and give the call its outcome; say whether it was there.

    :raises GatewayError: when the provider fails.
    """
    made = intents.LOOKUPS[IntentKind(intent.kind)](intent)
    if made is None:
        return False
    intents.adopt(intent=intent, made=made, handlers=HANDLERS, at=at)
    return True


def _customer_done(intent: Intent, made: Made, at: dt.datetime) -> None:
    payments.customer_made(organization=intent.organization, customer_id=made.id, at=at)


def _customer_refused(intent: Intent, refusal: Refusal, at: dt.datetime) -> None:
    for payment in Payment.objects.filter(
        organization=intent.organization, status=PaymentStatus.CREATED, provider_id=""
    ):
        payments.refused(payment_id=payment.pk, code=refusal.code, message=refusal.message, at=at)


def _payment_done(intent: Intent, made: Made, at: dt.datetime) -> None:
    payments.apply(payment_id=intent.subject_id, made=made, at=at)


def _payment_refused(intent: Intent, refusal: Refusal, at: dt.datetime) -> None:
    """A declined saved card leaves a payment at the provider: it is read, and may be paid otherwise."""
    if refusal.object_id:
        payments.declined_at_once(
            payment_id=intent.subject_id,
            provider_id=refusal.object_id,
            code=refusal.code,
            message=refusal.message,
            at=at,
        )
    else:
        payments.refused(
            payment_id=intent.subject_id, code=refusal.code, message=refusal.message, at=at
        )


def _read_soon(intent: Intent, refusal: Refusal, at: dt.datetime) -> None:
    """The payment is further than we knew: a reading says how far."""
    Payment.objects.filter(pk=intent.subject_id).update(read_due_at=at)


def _refund_done(intent: Intent, made: Made, at: dt.datetime) -> None:
    if CardRefund.objects.filter(pk=intent.subject_id).exists():
        card_refunds.apply(refund_id=intent.subject_id, made=made, at=at)
    else:
        reservation_refunds.apply(refund_id=intent.subject_id, made=made, at=at)


def _refund_refused(intent: Intent, refusal: Refusal, at: dt.datetime) -> None:
    if CardRefund.objects.filter(pk=intent.subject_id).exists():
        card_refunds.refused(refund_id=intent.subject_id, code=refusal.code, at=at)
    else:
        reservation_refunds.refused(refund_id=intent.subject_id, code=refusal.code, at=at)


def _account_done(intent: Intent, made: Made, at: dt.datetime) -> None:
    onboarding.seen(account_id=intent.subject_id, made=made, at=at)


def _account_refused(intent: Intent, refusal: Refusal, at: dt.datetime) -> None:
    PayoutAccount.objects.filter(pk=intent.subject_id).update(
        missing=[refusal.message[:200]], retired_at=at
    )


def _transfer_done(intent: Intent, made: Made, at: dt.datetime) -> None:
    transfers.apply(transfer_id=intent.subject_id, made=made, at=at)


def _transfer_refused(intent: Intent, refusal: Refusal, at: dt.datetime) -> None:
    transfers.refused(transfer_id=intent.subject_id, code=refusal.code, at=at)


def _reversal_done(intent: Intent, made: Made, at: dt.datetime) -> None:
    transfers.taken_back(reversal_id=intent.subject_id, made=made, at=at)


def _reversal_refused(intent: Intent, refusal: Refusal, at: dt.datetime) -> None:
    transfers.not_taken_back(reversal_id=intent.subject_id, code=refusal.code, at=at)


HANDLERS: dict[IntentKind, Handler] = {
    IntentKind.CUSTOMER: Handler(done=_customer_done, refused=_customer_refused),
    IntentKind.PAYMENT: Handler(done=_payment_done, refused=_payment_refused),
    IntentKind.CAPTURE: Handler(done=_payment_done, refused=_read_soon),
    IntentKind.CANCEL: Handler(done=_payment_done, refused=_read_soon),
    IntentKind.REFUND: Handler(done=_refund_done, refused=_refund_refused),
    IntentKind.ACCOUNT: Handler(done=_account_done, refused=_account_refused),
    IntentKind.TRANSFER: Handler(done=_transfer_done, refused=_transfer_refused),
    IntentKind.REVERSAL: Handler(done=_reversal_done, refused=_reversal_refused),
}

# How an object is read anew, by the provider's word for its kind; False: we have no row of it.
READERS: dict[str, Callable[[str, dt.datetime], bool]] = {
    "payment_intent": _refresh_payment,
    "refund": _refresh_refund,
    "dispute": _refresh_dispute,
    "transfer": _refresh_transfer,
    "v2.core.account": _refresh_account,
    "cash_balance": _refresh_cash,
}
