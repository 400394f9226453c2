"""The provider's books against ours: object by object, and booking by booking.

What differs is written down once and stays open until it is gone. How old it may become before somebody is
called depends on what it is. What can be taken over can be adopted; nothing is adopted by itself. What is
nobody's here a person dismisses with a reason: it stays listed, and calls nobody any more.
"""

import datetime as dt
from collections.abc import Callable, Iterable

import structlog
from django.db import transaction

from billing import cash, findings, ledger, provider, provider_books, provider_money
from billing.findings import Finding
from billing.models import (
    Account,
    CardRefund,
    Difference,
    Dismissal,
    Intent,
    Payment,
    Transfer,
)
from billing.provider_states import IntentKind
from billing.provider_values import GatewayError
from billing.states import AccountKind
from marketplace import audit
from marketplace.core.errors import DomainError, InvalidValue, StateConflict

log = structlog.get_logger(__name__)

DETAIL_LENGTH_MAX = 500
# What somebody did there by hand, or another market on the same account: nothing here can end it.
DISMISSIBLE = (
    "payment_without_row",
    "refund_without_row",
    "transfer_without_row",
    "dispute_without_row",
)
# How long each kind of difference may be open before somebody is called; zero: at once.
ALERT_AFTER_SECONDS = {
    "payment_without_row": 0,
    "payment_without_object": 0,
    "payment_differs": 900,
    "refund_without_row": 0,
    "refund_without_object": 0,
    "refund_differs": 900,
    "transfer_without_row": 0,
    "transfer_without_object": 0,
    "transfer_differs": 900,
    "dispute_without_row": 900,
    "dispute_without_object": 0,
    "dispute_differs": 900,
    "booking_unmatched": 3600,
    "clearing_open": 3600,
    "balance_differs": 3600,
    "intent_unknown": 0,
    "cash_left": 86_400,  # a payment takes it within minutes
}


class ProviderAway(DomainError):
    """The provider does not answer, or none is connected: nothing was compared."""

    code = "provider_away"
    title = "The payment provider does not answer"


def run(*, at: dt.datetime) -> list[Difference]:
    """Compare everything, write down what differs and what no longer does; return what is open.

    Calls the provider: no transaction may be open.

    :raises ProviderAway: when it does not answer, or none is connected.
    """
    if not provider.is_connected():
        raise ProviderAway("no payment provider is connected here")
    provider_books.fetch(at=at)
    cash.read_due(at=at)
    try:
        found = list(findings.find(at=at))
    except GatewayError as error:
        raise ProviderAway(str(error)) from error
    _record(found, at=at)
    opened = Difference.objects.filter(resolved_at__isnull=True)
    for difference in opened:
        if is_overdue(difference=difference, at=at):
            log.error(
                "the provider's books and ours differ",
                kind=difference.kind,
                object=difference.object_id,
                detail=difference.detail,
            )
    return list(opened)


def is_overdue(*, difference: Difference, at: dt.datetime) -> bool:
    """Say whether a difference is open for longer than its kind may be, and nobody has dismissed it."""
    if is_dismissed(difference=difference):
        return False
    limit = dt.timedelta(seconds=ALERT_AFTER_SECONDS[difference.kind])
    return at - difference.first_seen_at >= limit


def is_dismissed(*, difference: Difference) -> bool:
    """Say whether a person has dismissed a difference: it stays listed, and calls nobody."""
    return Dismissal.objects.filter(pk=difference.pk).exists()


def dismiss(*, difference: Difference, reason: str, at: dt.datetime, actor: str) -> Dismissal:
    """Dismiss an object of the provider's that is nobody's here, as a person found out. Calls the provider.

    What bears our mark is taken over instead, so that no money of ours is dismissed. The difference stays
    listed until it is gone there; what was booked for it is a difference of its own.

    :raises InvalidValue: without a reason.
    :raises StateConflict: when it is resolved or dismissed, is no object of somebody else's, or the provider
        does not answer.
    """
    if not reason.strip():
        raise InvalidValue("Say what it is.", pointer="/reason")
    if difference.kind not in DISMISSIBLE:
        raise StateConflict(f"{difference.kind} {difference.object_id} is ours, and for us to end")
    if difference.resolved_at is not None or is_dismissed(difference=difference):
        raise StateConflict(f"difference {difference.pk} was decided before")
    try:
        is_ours = _ADOPTERS[difference.kind](difference.object_id, at)
    except GatewayError as error:
        raise StateConflict(f"the provider says: {error}") from error
    if is_ours:
        raise StateConflict(f"{difference.object_id} bears our mark, and was taken over")
    with transaction.atomic():
        made, is_new = Dismissal.objects.get_or_create(
            pk=difference.pk,
            defaults={"reason": reason.strip()[:DETAIL_LENGTH_MAX], "actor": actor, "at": at},
        )
        if not is_new:
            raise StateConflict(f"difference {difference.pk} was decided before")
        audit.record(
            at=at,
            actor=actor,
            action="difference.dismissed",
            object_id=difference.object_id[:32],
            organization=None,
            detail={"kind": difference.kind, "detail": difference.detail, "reason": made.reason},
        )
    return made


def adopt(*, difference: Difference, at: dt.datetime, actor: str) -> str:
    """Take over what the provider says, where that can be done; return what was done.

    :raises StateConflict: when a person has to find out first, or it is resolved.
    """
    if difference.resolved_at is not None:
        raise StateConflict(f"difference {difference.pk} is resolved")
    adopter = _ADOPTERS.get(difference.kind)
    try:
        is_adopted = adopter is not None and adopter(difference.object_id, at)
    except GatewayError as error:
        raise StateConflict(f"the provider says: {error}") from error
    if not is_adopted:
        raise StateConflict(f"{difference.kind} {difference.object_id} cannot be adopted")
    with transaction.atomic():
        Difference.objects.filter(pk=difference.pk).update(
            resolved_at=at, resolution=f"adopted by {actor}"[:100]
        )
        audit.record(
            at=at,
            actor=actor,
            action="difference.adopted",
            object_id=difference.object_id[:32],
            organization=None,
            detail={"kind": difference.kind, "detail": difference.detail},
        )
    return f"adopted by {actor}"


@transaction.atomic
def _record(found: Iterable[Finding], *, at: dt.datetime) -> None:
    seen = set()
    for finding in found:
        seen.add((finding.kind, finding.object_id))
        Difference.objects.update_or_create(
            kind=finding.kind,
            object_id=finding.object_id,
            resolved_at=None,
            defaults={"detail": finding.detail[:DETAIL_LENGTH_MAX], "last_seen_at": at},
            create_defaults={
                "detail": finding.detail[:DETAIL_LENGTH_MAX],
                "first_seen_at": at,
                "last_seen_at": at,
            },
        )
    for difference in Difference.objects.filter(resolved_at__isnull=True):
        if (difference.kind, difference.object_id) not in seen:
            difference.resolved_at, difference.resolution = at, "vanished"
            difference.save(update_fields=["resolved_at", "resolution"])


def _reader(kind: str) -> Callable[[str, dt.datetime], bool]:
    return lambda object_id, at: provider.READERS[kind](object_id, at)


def _aside(object_id: str, at: dt.datetime) -> bool:
    provider_books.put_aside(transaction_id=object_id, at=at)
    return True


def _cleared(object_id: str, at: dt.datetime) -> bool:
    """Match what can be matched by now, and put what is left of a clearing account aside: nobody's yet."""
    provider_books.fetch(at=at)
    for account in Account.objects.filter(kind=AccountKind.PSP_CLEARING, subject_id=object_id):
        ref = ledger.AccountRef(
            AccountKind.PSP_CLEARING, account.currency, object_id, account.organization
        )
        provider_money.put_aside(account=ref, at=at)
    return True


def _looked_up(intent_id: str, at: dt.datetime) -> bool:
    """Adopt what a call made after all; whether it made nothing is for a person to say."""
    return provider.look_up(intent=Intent.objects.get(pk=intent_id), at=at)


def _payment(payment_id: str, at: dt.datetime) -> bool:
    return _reader("payment_intent")(Payment.objects.get(pk=payment_id).provider_id, at)


def _transfer(transfer_id: str, at: dt.datetime) -> bool:
    return _reader("transfer")(Transfer.objects.get(pk=transfer_id).provider_id, at)


def _refund(refund_id: str, at: dt.datetime) -> bool:
    row = CardRefund.objects.filter(pk=refund_id).first()
    intent = Intent.objects.filter(kind=IntentKind.REFUND, subject_id=refund_id).first()
    object_id = row.provider_id if row else intent.object_id if intent else ""
    return bool(object_id) and _reader("refund")(object_id, at)


# What is not in a list may be there all the same: then reading it is all that there is to do.
_ADOPTERS: dict[str, Callable[[str, dt.datetime], bool]] = {
    "payment_without_row": _reader("payment_intent"),
    "payment_without_object": _payment,
    "payment_differs": _reader("payment_intent"),
    "refund_without_row": _reader("refund"),
    "refund_without_object": _refund,
    "refund_differs": _reader("refund"),
    "transfer_without_row": _reader("transfer"),
    "transfer_without_object": _transfer,
    "transfer_differs": _reader("transfer"),
    "dispute_without_row": _reader("dispute"),
    "dispute_without_object": _reader("dispute"),
    "dispute_differs": _reader("dispute"),
    "booking_unmatched": _aside,
    "clearing_open": _cleared,
    "intent_unknown": _looked_up,
    "cash_left": _reader("cash_balance"),
}
