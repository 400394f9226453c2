"""Calls to the payment provider that survive a crash: written down, made, and their outcome written down.

1. The intent is committed, in the transaction of whatever wants it.
2. Somebody claims it, for `LEASE_SECONDS`, and calls with the intent's id as idempotency key. No
   transaction is open meanwhile.
3. The provider's object and what it means to the books are committed together.

Whoever finds an intent that was sent and has no outcome looks it up at the provider by our id before the
call is made again. So the effect is adopted if it happened, also after the provider has forgotten the key;
and the key is never another one while the outcome is unknown.
"""

import datetime as dt
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from django.db import transaction
from django.db.models import QuerySet

from billing import parking, steps
from billing import stripe_gateway as gateway
from billing.models import Intent, ProviderTransition
from billing.provider_states import INTENT_ARROWS, IntentKind, IntentStatus, Machine
from billing.provider_values import GatewayError, KeyMismatch, OutcomeUnknown, Refusal, TryLater
from marketplace.core.errors import StateConflict
from marketplace.models import Organization

log = structlog.get_logger(__name__)

# Above the gateway's limit of a call by far: a claim this old is a dead process's.
LEASE_SECONDS = 60
# The provider answers 429 for seconds at a time; after ten tries a minute apart something else is wrong.
FIRST_PAUSE_SECONDS = 2
LONGEST_PAUSE_SECONDS = 300
# The provider keeps a key for a day at least. What is not known then is for a person.
UNKNOWN_AFTER_SECONDS = 86_400
INTENTS_PER_RUN_MAX = 50  # about ten seconds of calls; the next tick takes the rest
MESSAGE_LENGTH_MAX = 500
CLOCKS_DIFFER_SECONDS = 3600  # at most so much, the provider's from ours

# Of parked money none of these is called first; what was called before is followed to its end, because it may
# have had its effect.
MOVES_MONEY = (
    IntentKind.CAPTURE,
    IntentKind.REFUND,
    IntentKind.TRANSFER,
    IntentKind.REVERSAL,
)

Made = Any  # the provider's object, as a value of `provider_values`


@dataclass(frozen=True, slots=True)
class Handler:
    """What an outcome means to the rest: called in the transaction that records it."""

    done: Callable[[Intent, Made, dt.datetime], None]
    refused: Callable[[Intent, Refusal, dt.datetime], None]


Handlers = Mapping[IntentKind, Handler]


def write(
    *,
    kind: IntentKind,
    subject_id: str,
    organization: Organization,
    params: Mapping[str, object],
    at: dt.datetime,
    due_at: dt.datetime | None = None,
) -> Intent:
    """Write down a call that is to be made once per kind and subject, now or at `due_at`."""
    intent, is_new = Intent.objects.get_or_create(
        kind=kind,
        subject_id=subject_id,
        defaults={
            "organization": organization,
            "params": dict(params),
            "due_at": due_at or at,
            "created_at": at,
            "status": IntentStatus.NEW,
        },
    )
    if is_new:
        _note(intent, from_status="", reason="", at=at)
    return intent


def due(*, at: dt.datetime, subject_ids: Collection[str] | None = None) -> list[str]:
    """Return the ids of what is to be called or looked up now, the oldest first."""
    waiting = _waiting(at=at)
    if subject_ids is not None:
        waiting = waiting.filter(subject_id__in=subject_ids)
    return list(waiting.order_by("due_at", "pk").values_list("pk", flat=True)[:INTENTS_PER_RUN_MAX])


def drive(*, intent_id: str, handlers: Handlers, at: dt.datetime) -> bool:
    """Make one call and record its outcome; say whether it has one now.

    Nothing happens when somebody else has claimed it, or it is not due, or it has its outcome.
    """
    intent = _claim(intent_id=intent_id, at=at)
    if intent is None:
        return Intent.objects.filter(pk=intent_id, closed_at__isnull=False).exists()
    reached(step="claimed", intent=intent)
    handler = handlers[IntentKind(intent.kind)]
    try:
        made = _look_up(intent) if intent.attempts > 1 else None
        if made is None:
            made = CALLS[IntentKind(intent.kind)](intent)
    except Refusal as refusal:
        reached(step="refused", intent=intent)
        _close_refused(intent, refusal, handler=handler, at=at)
        return True
    except (OutcomeUnknown, TryLater, KeyMismatch) as error:
        _put_off(intent, error, at=at)
        return False
    reached(step="called", intent=intent)
    _close_done(intent, made, handler=handler, at=at)
    reached(step="recorded", intent=intent)
    return True


def reached(*, step: str, intent: Intent) -> None:
    """Mark a place between two steps at which a process may die without harm."""
    steps.reached(f"{intent.kind}.{step}")


@transaction.atomic
def adopt(*, intent: Intent, made: Made, handlers: Handlers, at: dt.datetime) -> None:
    """Record an outcome that was found at the provider by somebody else than the caller.

    :raises StateConflict: when the intent has another outcome already.
    """
    current = Intent.objects.select_for_update(no_key=True).get(pk=intent.pk)
    if current.status == IntentStatus.DONE and current.object_id == made.id:
        return
    _record_done(current, made, handler=handlers[IntentKind(current.kind)], at=at)


@transaction.atomic
def give_up(*, intent: Intent, refusal: Refusal, handlers: Handlers, at: dt.datetime) -> None:
    """Record that a call of unknown outcome did not happen, as somebody found out.

    :raises StateConflict: when its outcome is known.
    """
    current = Intent.objects.select_for_update(no_key=True).get(pk=intent.pk)
    if current.status != IntentStatus.UNKNOWN:
        raise StateConflict(f"{current.pk} is {current.status}: its outcome is not unknown")
    _record_refused(current, refusal, handler=handlers[IntentKind(current.kind)], at=at)


def _waiting(*, at: dt.datetime) -> QuerySet[Intent]:
    """Return what may be called or looked up at `at`."""
    return Intent.objects.filter(
        status__in=(IntentStatus.NEW, IntentStatus.SENT), due_at__lte=at
    ).exclude(status=IntentStatus.NEW, kind__in=MOVES_MONEY, organization__in=parking.parked())


def _claim(*, intent_id: str, at: dt.datetime) -> Intent | None:
    # Durable: raises when a transaction is open around it, so that none is during the call.
    with transaction.atomic(durable=True):
        intent = (
            _waiting(at=at)
            .select_for_update(skip_locked=True, no_key=True, of=("self",))
            .filter(pk=intent_id)
            .select_related("organization")
            .first()
        )
        if intent is None:
            return None
        came_from = IntentStatus(intent.status)
        intent.status = IntentStatus.SENT
        intent.attempts += 1
        intent.sent_at = intent.sent_at or at
        intent.due_at = at + dt.timedelta(seconds=LEASE_SECONDS)
        intent.save(update_fields=["status", "attempts", "sent_at", "due_at"])
        if came_from != IntentStatus.SENT:
            _note(intent, from_status=came_from, reason="", at=at)
        return intent


def _close_done(intent: Intent, made: Made, *, handler: Handler, at: dt.datetime) -> None:
    with transaction.atomic(durable=True):
        current = Intent.objects.select_for_update(no_key=True).get(pk=intent.pk)
        if current.status == IntentStatus.DONE:  # a slow rival was faster after all
            return
        _record_done(current, made, handler=handler, at=at)


def _record_done(intent: Intent, made: Made, *, handler: Handler, at: dt.datetime) -> None:
    _move(intent, to=IntentStatus.DONE, reason="", at=at, object_id=made.id)
    handler.done(intent, made, at)


def _close_refused(intent: Intent, refusal: Refusal, *, handler: Handler, at: dt.datetime) -> None:
    with transaction.atomic(durable=True):
        current = Intent.objects.select_for_update(no_key=True).get(pk=intent.pk)
        if current.closed_at is not None:
            return
        _record_refused(current, refusal, handler=handler, at=at)


def _record_refused(intent: Intent, refusal: Refusal, *, handler: Handler, at: dt.datetime) -> None:
    _move(
        intent,
        to=IntentStatus.REFUSED,
        reason=refusal.code,
        at=at,
        object_id=refusal.object_id,
        refusal_code=refusal.code[:100],
        refusal_message=refusal.message[:MESSAGE_LENGTH_MAX],
    )
    handler.refused(intent, refusal, at)


def _put_off(intent: Intent, error: GatewayError, *, at: dt.datetime) -> None:
    """Try again after a pause that doubles; after a day, or when our own call is at fault, ask a person."""
    log.warning("the provider did not answer", intent=intent.pk, kind=intent.kind, error=str(error))
    assert intent.sent_at is not None
    age_seconds = (at - intent.sent_at).total_seconds()
    with transaction.atomic(durable=True):
        current = Intent.objects.select_for_update(no_key=True).get(pk=intent.pk)
        if current.closed_at is not None or current.status != IntentStatus.SENT:
            return
        if isinstance(error, KeyMismatch) or age_seconds >= UNKNOWN_AFTER_SECONDS:
            _move(current, to=IntentStatus.UNKNOWN, reason=str(error)[:100], at=at)
            return
        pause = min(FIRST_PAUSE_SECONDS * 2**current.attempts, LONGEST_PAUSE_SECONDS)
        current.due_at = at + dt.timedelta(seconds=pause)
        current.save(update_fields=["due_at"])


def _move(
    intent: Intent, *, to: IntentStatus, reason: str, at: dt.datetime, **changes: object
) -> None:
    came_from = IntentStatus(intent.status)
    if not INTENT_ARROWS.allows(came_from, to):
        raise StateConflict(f"{intent.pk} is {came_from}; it cannot become {to}")
    closed_at = at if INTENT_ARROWS.is_final(to) else None
    for name, value in {**changes, "status": to, "closed_at": closed_at}.items():
        setattr(intent, name, value)
    intent.save()
    _note(intent, from_status=came_from, reason=reason, at=at)


def _note(intent: Intent, *, from_status: str, reason: str, at: dt.datetime) -> None:
    ProviderTransition.objects.create(
        machine=Machine.INTENT,
        subject_id=intent.pk,
        from_status=from_status,
        to_status=intent.status,
        reason=reason[:100],
        at=at,
    )


def _look_up(intent: Intent) -> Made | None:
    return LOOKUPS[IntentKind(intent.kind)](intent)


def _cancel_outcome(intent: Intent) -> Made | None:
    """Return the payment when it is cancelled, or too far for that: both are an outcome."""
    payment = gateway.read_payment(payment_id=intent.params["payment_id"])
    return payment if payment.state in {"canceled", "succeeded"} else None


def _capture_outcome(intent: Intent) -> Made | None:
    payment = gateway.read_payment(payment_id=intent.params["payment_id"])
    return payment if payment.state == "succeeded" else None


def _before(intent: Intent) -> dt.datetime:
    """Return an instant by the provider's clock at which what the intent makes was not there yet."""
    return intent.created_at - dt.timedelta(seconds=CLOCKS_DIFFER_SECONDS)


CALLS: dict[IntentKind, Callable[[Intent], Made]] = {
    IntentKind.CUSTOMER: lambda i: gateway.create_customer(key=i.pk, **i.params),
    IntentKind.PAYMENT: lambda i: gateway.create_payment(key=i.pk, **i.params),
    IntentKind.CAPTURE: lambda i: gateway.capture_payment(key=i.pk, **i.params),
    IntentKind.CANCEL: lambda i: gateway.cancel_payment(key=i.pk, **i.params),
    IntentKind.REFUND: lambda i: gateway.create_refund(key=i.pk, **i.params),
    IntentKind.ACCOUNT: lambda i: gateway.create_account(key=i.pk, **i.params),
    IntentKind.TRANSFER: lambda i: gateway.create_transfer(key=i.pk, **i.params),
    IntentKind.REVERSAL: lambda i: gateway.reverse_transfer(key=i.pk, **i.params),
}
LOOKUPS: dict[IntentKind, Callable[[Intent], Made | None]] = {
    IntentKind.CUSTOMER: lambda i: gateway.find_customer(intent_id=i.pk, since=_before(i)),
    IntentKind.PAYMENT: lambda i: gateway.find_payment(
        customer_id=i.params["customer_id"], intent_id=i.pk, since=_before(i)
    ),
    IntentKind.CAPTURE: _capture_outcome,
    IntentKind.CANCEL: _cancel_outcome,
    IntentKind.REFUND: lambda i: gateway.find_refund(
        payment_id=i.params["payment_id"], intent_id=i.pk
    ),
    IntentKind.ACCOUNT: lambda i: gateway.find_account(intent_id=i.pk),
    IntentKind.TRANSFER: lambda i: gateway.find_transfer(
        account_id=i.params["account_id"], intent_id=i.pk, since=_before(i)
    ),
    IntentKind.REVERSAL: lambda i: gateway.find_reversal(
        transfer_id=i.params["transfer_id"], intent_id=i.pk
    ),
}
