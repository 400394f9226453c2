"""What reservations owe their tenants, sent back the way it came: the provider's side of `refunds`."""

import datetime as dt

from django.db import transaction
from django.db.models import Exists, F, OuterRef

from billing import disputes, intents, parking, receivables, refunds, runs
from billing.models import Dispute, Payment, Refund
from billing.provider_states import IntentKind, PaymentStatus
from billing.provider_values import ProviderRefund
from billing.states import DisputeStatus, RefundStatus
from marketplace import events
from marketplace.states import EventKind

ACTOR = "billing.reservation_refunds"


def ask_due(*, at: dt.datetime) -> int:
    """Ask the provider for the refunds that are due of what it once took; return how many.

    Those of parked money wait. One that cannot be asked for is logged and holds up nobody else.
    """
    taken = Payment.objects.filter(
        reservation=OuterRef("reservation"), status=PaymentStatus.SUCCEEDED
    )
    disputed = Dispute.objects.filter(
        reservation=OuterRef("reservation"), status=DisputeStatus.OPEN
    )
    due = Refund.objects.filter(Exists(taken), ~Exists(disputed), status=RefundStatus.DUE).exclude(
        reservation__organization__in=parking.parked()
    )
    ids = due.order_by("pk").values_list("pk", flat=True)[: intents.INTENTS_PER_RUN_MAX]
    return runs.one_by_one(ids, lambda pk: ask(refund_id=pk, at=at), name="ask_refunds")


@transaction.atomic
def ask(*, refund_id: str, at: dt.datetime) -> bool:
    """Send one refund; say whether it was this call that did it.

    What came otherwise than through the provider, as a later extension from the wallet does, goes to the
    wallet; so does what its payment has no room for any more. While a bank has the money nothing is sent.
    """
    known = Refund.objects.filter(pk=refund_id, status=RefundStatus.DUE)
    found = known.first()
    if found is None:
        return False
    refunds.lock(found)
    refund = (
        known.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .select_related("reservation__organization", "payment")
        .first()
    )
    if refund is None or disputes.holds_back(reservation_id=refund.reservation_id, at=at):
        return False
    payment = refund.payment
    fits = Payment.objects.filter(
        pk=refund.payment_id, received_minor__gte=F("refunded_minor") + refund.amount_minor
    ).update(refunded_minor=F("refunded_minor") + refund.amount_minor)
    if payment is None or not fits:
        receivables.lock_refund(reservation=refund.reservation)
        refunds.send(refund_id=refund.pk, at=at, actor=ACTOR)
        refunds.fail(refund_id=refund.pk, at=at, actor=ACTOR)
        _tell(refund, kind=EventKind.REFUND_FAILED, at=at)
        return True
    refunds.send(refund_id=refund.pk, at=at, actor=ACTOR)
    intents.write(
        kind=IntentKind.REFUND,
        subject_id=refund.pk,
        organization=refund.reservation.organization,
        params={
            "payment_id": payment.provider_id,
            "amount_minor": refund.amount_minor,
            "metadata": {"tenant": payment.organization_id, "refund": refund.pk},
        },
        at=at,
    )
    return True


@transaction.atomic
def apply(*, refund_id: str, made: ProviderRefund, at: dt.datetime) -> None:
    """Take over what the provider says of a refund. Safe to call with the same, or with older news."""
    refund = _locked(refund_id)
    if made.state == "succeeded" and refund.status == RefundStatus.SENT:
        refunds.settle(refund_id=refund.pk, at=at, actor=ACTOR)
        _tell(refund, kind=EventKind.REFUND_SENT, at=at)
    elif made.state in {"failed", "canceled"}:
        _fail(refund, code=made.failure_code, at=at)


@transaction.atomic
def refused(*, refund_id: str, code: str, at: dt.datetime) -> None:
    """Give to the wallet what the provider would not even try to return, unless a bank may return it."""
    _fail(_locked(refund_id), code=code, at=at)


def _fail(refund: Refund, *, code: str, at: dt.datetime) -> None:
    if refund.status not in {RefundStatus.SENT, RefundStatus.SETTLED}:
        return
    is_disputed = code == disputes.REFUSED_AS_DISPUTED or disputes.holds_back(
        reservation_id=refund.reservation_id, at=at
    )
    refunds.fail(refund_id=refund.pk, at=at, actor=ACTOR, stays_payable=is_disputed)
    Payment.objects.filter(pk=refund.payment_id).update(
        refunded_minor=F("refunded_minor") - refund.amount_minor
    )
    if not is_disputed:
        _tell(refund, kind=EventKind.REFUND_FAILED, at=at)


def _locked(refund_id: str) -> Refund:
    refunds.lock(Refund.objects.get(pk=refund_id))
    return (
        Refund.objects.select_for_update(no_key=True, of=("self",))
        .select_related("reservation__organization")
        .get(pk=refund_id)
    )


def _tell(refund: Refund, *, kind: EventKind, at: dt.datetime) -> None:
    events.record(
        organization=refund.reservation.organization,
        kind=kind,
        object_id=refund.pk,
        data={
            "amount_minor": refund.amount_minor,
            "currency": refund.currency,
            "reservation_id": refund.reservation_id,
        },
        at=at,
        key=f"{refund.pk}:{kind.value}",
    )
