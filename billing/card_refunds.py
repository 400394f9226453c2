"""Money that goes back the way it came: out of the wallet, to the provider, to the tenant's card or bank.

It leaves the wallet when it is promised, so that nobody can spend it meanwhile; when the provider cannot
return it, then or days later, it is in the wallet again and the tenant is told.
"""

import datetime as dt

from django.db import transaction
from django.db.models import Exists, F, OuterRef

from billing import (
    disputes,
    intents,
    ledger,
    parking,
    runs,
    top_up_disputes,
    wallet,
    withdrawal_notices,
)
from billing.models import CardRefund, Intent, Payment, ProviderTransition
from billing.provider_states import (
    CARD_REFUND_ARROWS,
    CardRefundStatus,
    IntentKind,
    Machine,
    PaymentStatus,
)
from billing.provider_values import ProviderRefund
from billing.states import AccountKind, EntryKind
from marketplace import events
from marketplace.core.errors import StateConflict
from marketplace.states import EventKind

READ_AGAIN_SECONDS = 3600  # a pending refund takes days; a webhook says when it is through


@transaction.atomic
def write(*, payment: Payment, amount_minor: int, reason: str, at: dt.datetime) -> CardRefund:
    """Promise to return a part of what a payment brought; whoever drives its intent sends it.

    While the tenant's money is parked it stays in the wallet: the promise is kept by `send_due` afterwards.

    :raises StateConflict: when the payment has not that much left, or a bank has it or may get it.
    :raises ledger.InsufficientFunds: when the wallet has spent it.
    """
    if top_up_disputes.holds_back(payment=payment):
        raise StateConflict(f"{payment.pk} is disputed: its money does not go back twice")
    changed = Payment.objects.filter(
        pk=payment.pk,
        status=PaymentStatus.SUCCEEDED,
        received_minor__gte=F("refunded_minor") + amount_minor,
    ).update(refunded_minor=F("refunded_minor") + amount_minor)
    if not changed:
        raise StateConflict(f"{payment.pk} has not {amount_minor} left to return")
    refund = CardRefund.objects.create(
        payment=payment,
        status=CardRefundStatus.DUE,
        amount_minor=amount_minor,
        currency=payment.currency,
        reason=reason,
        read_due_at=at + dt.timedelta(seconds=READ_AGAIN_SECONDS),
        created_at=at,
    )
    _note(refund, from_status="", reason=reason, at=at)
    if not parking.is_parked(organizations=[payment.organization]):
        _withdraw(refund, at=at)
    return refund


def send_due(*, at: dt.datetime) -> int:
    """Send what was promised of money that was parked and moves again; return how many.

    What the tenant has spent before that goes back to nobody, and what is disputed by now its bank returns.
    """
    asked = Intent.objects.filter(kind=IntentKind.REFUND, subject_id=OuterRef("pk"))
    waiting = CardRefund.objects.filter(~Exists(asked), status=CardRefundStatus.DUE).exclude(
        payment__organization__in=parking.parked()
    )
    ids = waiting.order_by("pk").values_list("pk", flat=True)[: intents.INTENTS_PER_RUN_MAX]
    return runs.one_by_one(ids, lambda pk: _send(pk, at=at), name="send_card_refunds")


@transaction.atomic
def apply(*, refund_id: str, made: ProviderRefund, at: dt.datetime) -> CardRefund:
    """Take over what the provider says of a refund. Safe to call with the same, or with older news."""
    refund = _locked(refund_id)
    if CARD_REFUND_ARROWS.is_final(CardRefundStatus(refund.status)):
        return refund
    refund.provider_id = made.id
    refund.read_due_at = at + dt.timedelta(seconds=READ_AGAIN_SECONDS)
    refund.save(update_fields=["provider_id", "read_due_at"])
    if refund.status == CardRefundStatus.DUE:
        ledger.post(
            idempotency_key=f"refund-sent:{refund.pk}",
            kind=EntryKind.REFUND_SENT,
            subject_id=refund.pk,
            effective_at=at,
            legs=ledger.transfer(
                debited=_payable(refund),
                credited=clearing(refund=refund),
                amount=refund.amount_minor,
            ),
        )
    match made.state:
        case "succeeded":
            if refund.status != CardRefundStatus.SUCCEEDED:
                _move(refund, to=CardRefundStatus.SUCCEEDED, reason="", at=at)
                _tell(refund, kind=EventKind.REFUND_SENT, at=at)
                withdrawal_notices.tell_ended(refund, at=at)
        case "failed" | "canceled":
            _fail(
                refund, code=made.failure_code or made.state, source=clearing(refund=refund), at=at
            )
        case _:
            if refund.status == CardRefundStatus.DUE:
                _move(refund, to=CardRefundStatus.PENDING, reason=made.state, at=at)
    return refund


@transaction.atomic
def refused(*, refund_id: str, code: str, at: dt.datetime) -> None:
    """Put back what the provider would not even try to return."""
    refund = _locked(refund_id)
    if refund.status == CardRefundStatus.DUE:
        _fail(refund, code=code, source=_payable(refund), at=at)


def clearing(*, refund: CardRefund) -> ledger.AccountRef:
    """Return the account of what was sent and is not yet matched with the provider's own books."""
    return ledger.AccountRef(
        AccountKind.PSP_CLEARING, refund.currency, refund.pk, refund.payment.organization
    )


def _send(refund_id: str, *, at: dt.datetime) -> bool:
    refund = _locked(refund_id)
    if top_up_disputes.holds_back(payment=refund.payment):
        _close_failed(refund, code=disputes.REFUSED_AS_DISPUTED, at=at)
        return True
    try:
        with transaction.atomic():
            _withdraw(refund, at=at)
    except ledger.InsufficientFunds:
        _close_failed(refund, code="spent", at=at)
    return True


def _withdraw(refund: CardRefund, *, at: dt.datetime) -> None:
    """Take a promised refund out of the wallet, and ask the provider to return it."""
    ledger.post(
        idempotency_key=f"withdrawal:{refund.pk}",
        kind=EntryKind.WITHDRAWAL,
        subject_id=refund.pk,
        effective_at=at,
        legs=ledger.transfer(
            debited=_wallet(refund), credited=_payable(refund), amount=refund.amount_minor
        ),
    )
    payment = refund.payment
    intents.write(
        kind=IntentKind.REFUND,
        subject_id=refund.pk,
        organization=payment.organization,
        params={
            "payment_id": payment.provider_id,
            "amount_minor": refund.amount_minor,
            "metadata": {"tenant": payment.organization_id, "refund": refund.pk},
        },
        at=at,
    )


def _fail(refund: CardRefund, *, code: str, source: ledger.AccountRef, at: dt.datetime) -> None:
    """Put what could not be returned into the wallet again, from where it was on its way."""
    ledger.post(
        idempotency_key=f"refund-failed:{refund.pk}",
        kind=EntryKind.REFUND_FAILED,
        subject_id=refund.pk,
        effective_at=at,
        legs=ledger.transfer(debited=source, credited=_wallet(refund), amount=refund.amount_minor),
    )
    _close_failed(refund, code=code, at=at)


def _close_failed(refund: CardRefund, *, code: str, at: dt.datetime) -> None:
    refund.failure_code = code[:100]
    refund.save(update_fields=["failure_code"])
    _move(refund, to=CardRefundStatus.FAILED, reason=code, at=at)
    Payment.objects.filter(pk=refund.payment_id).update(
        refunded_minor=F("refunded_minor") - refund.amount_minor
    )
    _tell(refund, kind=EventKind.REFUND_FAILED, at=at)
    withdrawal_notices.tell_ended(refund, at=at)


def _payable(refund: CardRefund) -> ledger.AccountRef:
    return ledger.AccountRef(
        AccountKind.REFUND_PAYABLE, refund.currency, refund.pk, refund.payment.organization
    )


def _wallet(refund: CardRefund) -> ledger.AccountRef:
    return wallet.account(organization=refund.payment.organization, currency=refund.currency)


def _locked(refund_id: str) -> CardRefund:
    return (
        CardRefund.objects.select_for_update(no_key=True, of=("self",))
        .select_related("payment__organization")
        .get(pk=refund_id)
    )


def _tell(refund: CardRefund, *, kind: EventKind, at: dt.datetime) -> None:
    events.record(
        organization=refund.payment.organization,
        kind=kind,
        object_id=refund.pk,
        data={
            "amount_minor": refund.amount_minor,
            "currency": refund.currency,
            "payment_id": refund.payment_id,
            "reason": refund.reason,
            "code": refund.failure_code or None,
        },
        at=at,
        key=f"{refund.pk}:{kind.value}",
    )


def _move(refund: CardRefund, *, to: CardRefundStatus, reason: str, at: dt.datetime) -> None:
    """Compare and set; the row is locked by the caller."""
    came_from = CardRefundStatus(refund.status)
    if not CARD_REFUND_ARROWS.allows(came_from, to):
        raise StateConflict(f"{refund.pk} is {came_from}; it cannot become {to}")
    ended = to in {CardRefundStatus.SUCCEEDED, CardRefundStatus.FAILED}
    CardRefund.objects.filter(pk=refund.pk, status=came_from).update(
        status=to, closed_at=at if ended else None
    )
    refund.status = to
    _note(refund, from_status=came_from, reason=reason, at=at)


def _note(refund: CardRefund, *, from_status: str, reason: str, at: dt.datetime) -> None:
    ProviderTransition.objects.create(
        machine=Machine.REFUND,
        subject_id=refund.pk,
        from_status=from_status,
        to_status=refund.status,
        reason=reason[:100],
        at=at,
    )
