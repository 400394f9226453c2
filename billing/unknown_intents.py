"""Calls of which nobody knows whether they happened: a person looks, and says which of the two it is.

Either answer has the consequences that it would have had at once, and stands in the audit trail.
"""

import datetime as dt
from collections.abc import Callable

from django.db import transaction

from billing import intents, provider
from billing import stripe_gateway as gateway
from billing.intents import Made
from billing.models import Intent
from billing.provider_states import IntentKind, IntentStatus
from billing.provider_values import GatewayError, Refusal
from marketplace import audit
from marketplace.core.errors import DomainError, InvalidValue, StateConflict

DID_NOT_HAPPEN = "did_not_happen"


class NotThisObject(DomainError):
    """The object is not what the call was to make, or another call has made it."""

    code = "not_this_object"
    title = "The call did not make this object"


def did_not_happen(*, intent_id: str, reason: str, at: dt.datetime, actor: str) -> Intent:
    """Take the arrow unknown → refused, with the consequences of a refusal. Calls the provider.

    The provider is asked once more for an object that bears our mark.

    :raises InvalidValue: without a reason.
    :raises StateConflict: when the outcome is known, the object is there, or the provider does not answer.
    """
    if not reason.strip():
        raise InvalidValue("Say how you know.", pointer="/reason")
    intent = _unknown(intent_id)
    try:
        is_there = provider.look_up(intent=intent, at=at)
    except GatewayError as error:
        raise StateConflict(f"the provider does not say: {error}") from error
    if is_there:
        raise StateConflict(
            f"{intent.pk} did happen: its object bears our mark, and was taken over"
        )
    with transaction.atomic():
        intents.give_up(
            intent=intent,
            refusal=Refusal(code=DID_NOT_HAPPEN, message=reason.strip()),
            handlers=provider.HANDLERS,
            at=at,
        )
        _trail(intent, action="intent.did_not_happen", at=at, actor=actor, reason=reason.strip())
    intent.refresh_from_db()
    return intent


def is_object(*, intent_id: str, object_id: str, at: dt.datetime, actor: str) -> Intent:
    """Take the arrow unknown → done with one of the provider's objects. Calls the provider.

    :raises StateConflict: when the outcome is known, or the provider does not have the object.
    :raises NotThisObject: when the object is another call's, or of another amount.
    """
    intent = _unknown(intent_id)
    try:
        made = _READERS[IntentKind(intent.kind)](intent, object_id)
    except GatewayError as error:
        raise StateConflict(f"the provider says of {object_id}: {error}") from error
    if made.intent_id not in {"", intent.pk}:
        raise NotThisObject(f"{object_id} bears the mark of {made.intent_id}")
    if Intent.objects.filter(kind=intent.kind, object_id=object_id).exclude(pk=intent.pk).exists():
        raise NotThisObject(f"{object_id} was made by another call")
    wanted = intent.params.get("amount_minor")
    if wanted is not None and wanted != made.amount_minor:
        raise NotThisObject(f"{object_id} is of {made.amount_minor}, and {wanted} were asked for")
    with transaction.atomic():
        intents.adopt(intent=intent, made=made, handlers=provider.HANDLERS, at=at)
        _trail(intent, action="intent.is_object", at=at, actor=actor, object_id=object_id)
    intent.refresh_from_db()
    return intent


def _unknown(intent_id: str) -> Intent:
    intent = (
        Intent.objects.filter(pk=intent_id, status=IntentStatus.UNKNOWN)
        .select_related("organization")
        .first()
    )
    if intent is None:
        raise StateConflict(f"there is no call {intent_id} of which the outcome is unknown")
    return intent


def _trail(intent: Intent, *, action: str, at: dt.datetime, actor: str, **detail: str) -> None:
    audit.record(
        at=at,
        actor=actor,
        action=action,
        object_id=intent.pk,
        organization=intent.organization,
        detail={"kind": intent.kind, "subject_id": intent.subject_id, **detail},
    )


def _payment(_intent: Intent, object_id: str) -> Made:
    return gateway.read_payment(payment_id=object_id)


_READERS: dict[IntentKind, Callable[[Intent, str], Made]] = {
    IntentKind.CUSTOMER: lambda _, object_id: gateway.read_customer(customer_id=object_id),
    IntentKind.PAYMENT: _payment,
    IntentKind.CAPTURE: _payment,
    IntentKind.CANCEL: _payment,
    IntentKind.REFUND: lambda _, object_id: gateway.read_refund(refund_id=object_id),
    IntentKind.ACCOUNT: lambda _, object_id: gateway.read_account(account_id=object_id),
    IntentKind.TRANSFER: lambda _, object_id: gateway.read_transfer(transfer_id=object_id),
    IntentKind.REVERSAL: lambda intent, object_id: gateway.read_reversal(
        transfer_id=intent.params["transfer_id"], reversal_id=object_id
    ),
}
