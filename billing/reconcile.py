"""The provider's books against ours: object by object, and booking by booking.

What differs is written down once and stays open until it is gone. How old it may become before somebody is
called depends on what it is. What can be taken over can be adopted; nothing is adopted by itself.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Case, F, Max, Q, Sum, When

from billing import accounts, ledger, provider, provider_books
from billing import stripe_gateway as gateway
from billing.models import (
    Account,
    BalanceTransaction,
    CardRefund,
    Difference,
    Intent,
    Payment,
    Transfer,
)
from billing.provider_states import IntentKind, IntentStatus, PaymentStatus
from billing.provider_values import GatewayError
from billing.states import AccountKind
from marketplace import audit
from marketplace.core.errors import DomainError, StateConflict

log = structlog.get_logger(__name__)

# How far back objects are compared: longer than a person is away over a weekend.
WINDOW_SECONDS = 4 * 86_400
# What is younger may be on its way between the two.
IN_FLIGHT_SECONDS = 900
CLEARING_OPEN_SECONDS = 3600  # a booking follows its object within minutes
DETAIL_LENGTH_MAX = 500
# How long each kind of difference may be open before somebody is called; zero: at once.
ALERT_AFTER_SECONDS = {
    "payment_without_row": 0,
    "payment_without_object": 0,
    "payment_differs": 900,
    "refund_without_row": 0,
    "transfer_without_row": 0,
    "transfer_without_object": 0,
    "booking_unmatched": 3600,
    "clearing_open": 3600,
    "balance_differs": 3600,
    "intent_unknown": 0,
}


class ProviderAway(DomainError):
    """The provider does not answer, or none is connected: nothing was compared."""

    code = "provider_away"
    title = "The payment provider does not answer"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing on which the two sides disagree now."""

    kind: str
    object_id: str
    detail: str


def run(*, at: dt.datetime) -> list[Difference]:
    """Compare everything, write down what differs and what no longer does; return what is open.

    Calls the provider: no transaction may be open.

    :raises ProviderAway: when it does not answer, or none is connected.
    """
    if not provider.is_connected():
        raise ProviderAway("no payment provider is connected here")
    provider_books.fetch(at=at)
    try:
        findings = list(_findings(at=at))
    except GatewayError as error:
        raise ProviderAway(str(error)) from error
    _record(findings, at=at)
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
    """Say whether a difference is open for longer than its kind may be."""
    limit = dt.timedelta(seconds=ALERT_AFTER_SECONDS[difference.kind])
    return at - difference.first_seen_at >= limit


def adopt(*, difference: Difference, at: dt.datetime, actor: str) -> str:
    """Take over what the provider says, where that can be done; return what was done.

    :raises StateConflict: when a person has to find out first, or it is resolved.
    """
    if difference.resolved_at is not None:
        raise StateConflict(f"difference {difference.pk} is resolved")
    adopter = _ADOPTERS.get(difference.kind)
    if adopter is None or not adopter(difference.object_id, at):
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


def _findings(*, at: dt.datetime) -> Iterator[Finding]:
    since = at - dt.timedelta(seconds=WINDOW_SECONDS)
    settled = at - dt.timedelta(seconds=IN_FLIGHT_SECONDS)
    yield from _payments(since=since, settled=settled)
    yield from _refunds(since=since, settled=settled)
    yield from _transfers(since=since, settled=settled)
    yield from _bookings(settled=settled)
    yield from _clearings(at=at)
    yield from _balances()
    for intent in Intent.objects.filter(status=IntentStatus.UNKNOWN):
        yield Finding("intent_unknown", intent.pk, f"{intent.kind} for {intent.subject_id}")


def _payments(*, since: dt.datetime, settled: dt.datetime) -> Iterator[Finding]:
    rows = {
        row.provider_id: row
        for row in Payment.objects.filter(created_at__gte=since).exclude(provider_id="")
    }
    theirs = {made.id: made for made in gateway.payments_since(since=since)}
    known = set(
        Payment.objects.filter(provider_id__in=theirs).values_list("provider_id", flat=True)
    )
    for made in theirs.values():
        if made.id not in known and made.created_at < settled:
            yield Finding(
                "payment_without_row",
                made.id,
                f"{made.state}, {made.received_minor} of {made.amount_minor} {made.currency}",
            )
    for object_id, row in rows.items():
        if row.created_at >= settled:
            continue
        if object_id not in theirs:
            # The list is by the provider's clock, and the row by ours: nearly the same.
            if row.created_at > since + dt.timedelta(seconds=IN_FLIGHT_SECONDS):
                yield Finding("payment_without_object", row.pk, f"{object_id} is not listed")
            continue
        made = theirs[object_id]
        is_paid = row.status == PaymentStatus.SUCCEEDED
        if (made.state == "succeeded") != is_paid or made.received_minor != row.received_minor:
            yield Finding(
                "payment_differs",
                object_id,
                f"{row.pk} is {row.status} with {row.received_minor}; "
                f"there it is {made.state} with {made.received_minor}",
            )


def _refunds(*, since: dt.datetime, settled: dt.datetime) -> Iterator[Finding]:
    for made in gateway.refunds_since(since=since):
        is_known = (
            CardRefund.objects.filter(provider_id=made.id).exists()
            or Intent.objects.filter(kind=IntentKind.REFUND, object_id=made.id).exists()
        )
        if not is_known and made.created_at < settled:
            yield Finding("refund_without_row", made.id, f"{made.amount_minor} {made.currency}")


def _transfers(*, since: dt.datetime, settled: dt.datetime) -> Iterator[Finding]:
    theirs = {made.id: made for made in gateway.transfers_since(since=since)}
    ours = Transfer.objects.exclude(provider_id="")
    known = set(ours.filter(provider_id__in=theirs).values_list("provider_id", flat=True))
    for made in theirs.values():
        if made.id not in known and made.created_at < settled:
            yield Finding("transfer_without_row", made.id, f"{made.amount_minor} {made.currency}")
    recent = ours.filter(
        created_at__gt=since + dt.timedelta(seconds=IN_FLIGHT_SECONDS), created_at__lt=settled
    )
    for row in recent:
        if row.provider_id not in theirs:
            yield Finding("transfer_without_object", row.pk, f"{row.provider_id} is not listed")


def _bookings(*, settled: dt.datetime) -> Iterator[Finding]:
    for row in BalanceTransaction.objects.filter(matched_at__isnull=True, created_at__lt=settled):
        yield Finding(
            "booking_unmatched",
            row.pk,
            f"{row.category} of {row.source_id or 'nothing'}: {row.amount_minor} {row.currency}",
        )


def _clearings(*, at: dt.datetime) -> Iterator[Finding]:
    """Yield the clearing accounts that nothing has moved for a while and that are not at zero."""
    signed = Case(
        When(postings__side=F("normal_side"), then=F("postings__amount")),
        default=-F("postings__amount"),
    )
    opened = (
        Account.objects.filter(kind=AccountKind.PSP_CLEARING)
        .annotate(sum=Sum(signed), moved_at=Max("postings__entry__recorded_at"))
        .filter(~Q(sum=0), moved_at__lte=at - dt.timedelta(seconds=CLEARING_OPEN_SECONDS))
    )
    for account in opened.order_by("pk"):
        yield Finding(
            "clearing_open", account.subject_id, f"{account.sum} {account.currency} are not matched"
        )


def _balances() -> Iterator[Finding]:
    """Compare what lies at the provider with what our books say; only when all bookings are matched."""
    if BalanceTransaction.objects.filter(matched_at__isnull=True).exists():
        return
    currency = settings.CURRENCY
    theirs = sum(gateway.balances(currency=currency))
    ours = sum(
        ledger.balance(account=accounts.shared(kind=kind, currency=currency))
        for kind in (AccountKind.STRIPE_PENDING, AccountKind.STRIPE_AVAILABLE)
    )
    if theirs != ours:
        yield Finding("balance_differs", currency, f"there {theirs}, in our books {ours}")


@transaction.atomic
def _record(findings: Iterable[Finding], *, at: dt.datetime) -> None:
    seen = set()
    for finding in findings:
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


_ADOPTERS: dict[str, Callable[[str, dt.datetime], bool]] = {
    "payment_without_row": _reader("payment_intent"),
    "payment_differs": _reader("payment_intent"),
    "refund_without_row": _reader("refund"),
    "transfer_without_row": _reader("transfer"),
    "booking_unmatched": _aside,
}
