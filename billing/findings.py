"""On what the payment provider and our books disagree now: object by object, booking by booking."""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from django.conf import settings
from django.db.models import Case, F, Max, Q, QuerySet, Sum, When

from billing import accounts, chargeable, disputes, ledger
from billing import stripe_gateway as gateway
from billing.models import (
    Account,
    BalanceTransaction,
    CardInquiry,
    CardRefund,
    Dispute,
    Intent,
    Payer,
    Payment,
    Refund,
    TopUpDispute,
    Transfer,
)
from billing.provider_states import CardRefundStatus, IntentKind, IntentStatus, PaymentStatus
from billing.provider_values import (
    ProviderDispute,
    ProviderPayment,
    ProviderRefund,
    ProviderTransfer,
)
from billing.states import AccountKind, RefundStatus
from marketplace.core.money import Money, grouped


class Listed(Protocol):
    """What the provider lists of its objects."""

    @property
    def id(self) -> str: ...

    @property
    def created_at(self) -> dt.datetime: ...


Made = TypeVar("Made", bound=Listed)
Row = TypeVar("Row")
Disputed = Dispute | TopUpDispute | CardInquiry

# How far back objects are compared: longer than a person is away over a weekend.
WINDOW_SECONDS = 4 * 86_400
# What is younger may be on its way between the two.
IN_FLIGHT_SECONDS = 900
CLEARING_OPEN_SECONDS = 3600  # a booking follows its object within minutes
ROWS_AT_ONCE = 500  # of the provider's, compared with one query of ours
# What a refund is here while it is that there; everything else there is still under way.
REFUND_STATES = {
    "succeeded": {CardRefundStatus.SUCCEEDED, RefundStatus.SETTLED},
    "failed": {CardRefundStatus.FAILED, RefundStatus.FAILED},
    "canceled": {CardRefundStatus.FAILED, RefundStatus.FAILED},
}
REFUND_UNDER_WAY = {CardRefundStatus.DUE, CardRefundStatus.PENDING, RefundStatus.SENT}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing on which the two sides disagree now."""

    kind: str
    object_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Span:
    """What is compared: objects that began since an instant, and are no longer in flight."""

    since: dt.datetime
    settled: dt.datetime

    @property
    def listed(self) -> Q:
        """Which of our rows must be in the provider's list, whose clock is nearly ours."""
        first = self.since + dt.timedelta(seconds=IN_FLIGHT_SECONDS)
        return Q(created_at__gt=first, created_at__lt=self.settled)


def find(*, at: dt.datetime) -> Iterator[Finding]:
    """Yield everything on which the two sides disagree; calls the provider.

    :raises GatewayError: when it does not answer.
    """
    settled = at - dt.timedelta(seconds=IN_FLIGHT_SECONDS)
    span = Span(since=at - dt.timedelta(seconds=WINDOW_SECONDS), settled=settled)
    yield from _payments(span)
    yield from _refunds(span)
    yield from _transfers(span)
    yield from _disputes(
        Span(since=at - dt.timedelta(seconds=settings.DISPUTE_WINDOW_SECONDS), settled=settled)
    )
    yield from _bookings(settled=settled)
    yield from clearings(at=at)
    yield from _balances()
    for intent in Intent.objects.filter(status=IntentStatus.UNKNOWN):
        yield Finding("intent_unknown", intent.pk, f"{intent.kind} for {intent.subject_id}")
    for payer in Payer.objects.filter(cash_minor__gte=chargeable.least(settings.CURRENCY)):
        yield Finding(
            "cash_left",
            payer.customer_id,
            f"{_said(payer.cash_minor, settings.CURRENCY)} sent by bank",
        )


def _said(minor: int, currency: str) -> str:
    """Return an amount as whoever ends the difference reads it."""
    return grouped(Money(minor, currency))


def _pairs(
    listed: Iterable[Made],
    *,
    span: Span,
    rows: Callable[[list[str]], Mapping[str, Row]],
    seen: set[str],
) -> Iterator[tuple[Made, Row | None]]:
    """Yield what the provider lists and is settled with our row of it, if any; note all of it as seen."""
    iterator = iter(listed)
    while batch := list(islice(iterator, ROWS_AT_ONCE)):
        ids = [made.id for made in batch]
        seen.update(ids)
        ours = rows(ids)
        for made in batch:
            if made.created_at < span.settled:
                yield made, ours.get(made.id)


def _unlisted(kind: str, ours: Iterable[tuple[str, str]], *, seen: set[str]) -> Iterator[Finding]:
    """Yield those of our rows, by id and object, whose object the provider did not list."""
    for pk, object_id in ours:
        if object_id not in seen:
            yield Finding(kind, pk, f"{object_id} is not listed")


def _payments(span: Span) -> Iterator[Finding]:
    def rows(ids: list[str]) -> dict[str, Payment]:
        return {row.provider_id: row for row in Payment.objects.filter(provider_id__in=ids)}

    seen: set[str] = set()
    listed = gateway.payments_since(since=span.since)
    for made, row in _pairs(listed, span=span, rows=rows, seen=seen):
        if row is None:
            yield Finding(
                "payment_without_row",
                made.id,
                f"{made.state}, {_said(made.received_minor, made.currency)} of "
                f"{_said(made.amount_minor, made.currency)}",
            )
        elif row.created_at < span.settled and _payment_differs(made, row):
            yield Finding(
                "payment_differs",
                made.id,
                f"{row.pk} is {row.status} with {_said(row.received_minor, row.currency)} of "
                f"{_said(row.amount_minor, row.currency)}; there it is {made.state} with "
                f"{_said(made.received_minor, made.currency)} of "
                f"{_said(made.amount_minor, made.currency)}",
            )
    ours = Payment.objects.filter(span.listed).exclude(provider_id="")
    pairs = ours.values_list("pk", "provider_id").iterator()
    yield from _unlisted("payment_without_object", pairs, seen=seen)


def _payment_differs(made: ProviderPayment, row: Payment) -> bool:
    is_paid = row.status == PaymentStatus.SUCCEEDED
    return (
        (made.state == "succeeded") != is_paid
        or made.received_minor != row.received_minor
        or (made.amount_minor, made.currency) != (row.amount_minor, row.currency)
    )


def _refunds(span: Span) -> Iterator[Finding]:
    seen: set[str] = set()
    listed = gateway.refunds_since(since=span.since)
    for made, row in _pairs(listed, span=span, rows=_refunds_of, seen=seen):
        if row is None:
            yield Finding("refund_without_row", made.id, _said(made.amount_minor, made.currency))
        elif _refund_differs(made, row):
            yield Finding(
                "refund_differs",
                made.id,
                f"{row.pk} is {row.status} for {_said(row.amount_minor, row.currency)}; "
                f"there it is {made.state} for {_said(made.amount_minor, made.currency)}",
            )
    of_cards = CardRefund.objects.filter(span.listed).exclude(provider_id="")
    of_reservations = Intent.objects.filter(
        span.listed, kind=IntentKind.REFUND, status=IntentStatus.DONE
    ).exclude(subject_id__in=of_cards.values("pk"))
    for pairs in (
        of_cards.values_list("pk", "provider_id"),
        of_reservations.values_list("subject_id", "object_id"),
    ):
        yield from _unlisted("refund_without_object", pairs.iterator(), seen=seen)


def _refunds_of(ids: list[str]) -> dict[str, CardRefund | Refund]:
    """Return our refunds by their objects: to cards those that name it, of reservations by their intent."""
    rows: dict[str, CardRefund | Refund] = {
        row.provider_id: row for row in CardRefund.objects.filter(provider_id__in=ids)
    }
    asked = Intent.objects.filter(kind=IntentKind.REFUND, object_id__in=ids)
    subjects = dict(asked.values_list("subject_id", "object_id"))
    for refund in Refund.objects.filter(pk__in=subjects):
        rows[subjects[refund.pk]] = refund
    return rows


def _refund_differs(made: ProviderRefund, row: CardRefund | Refund) -> bool:
    expected = REFUND_STATES.get(made.state, REFUND_UNDER_WAY)
    return row.status not in expected or made.amount_minor != row.amount_minor


def _transfers(span: Span) -> Iterator[Finding]:
    def rows(ids: list[str]) -> dict[str, Transfer]:
        return {row.provider_id: row for row in Transfer.objects.filter(provider_id__in=ids)}

    seen: set[str] = set()
    listed = gateway.transfers_since(since=span.since)
    for made, row in _pairs(listed, span=span, rows=rows, seen=seen):
        if row is None:
            yield Finding("transfer_without_row", made.id, _said(made.amount_minor, made.currency))
        elif _transfer_differs(made, row):
            yield Finding(
                "transfer_differs",
                made.id,
                f"{row.pk} is {_said(row.amount_minor, row.currency)}, "
                f"{_said(row.reversed_minor, row.currency)} taken back; "
                f"there it is {_said(made.amount_minor, made.currency)}, "
                f"{_said(made.reversed_minor, made.currency)} taken back",
            )
    ours = Transfer.objects.filter(span.listed).exclude(provider_id="")
    pairs = ours.values_list("pk", "provider_id").iterator()
    yield from _unlisted("transfer_without_object", pairs, seen=seen)


def _transfer_differs(made: ProviderTransfer, row: Transfer) -> bool:
    there = (made.amount_minor, made.reversed_minor, made.currency)
    return there != (row.amount_minor, row.reversed_minor, row.currency)


def _disputes(span: Span) -> Iterator[Finding]:
    def rows(ids: list[str]) -> dict[str, Disputed]:
        return {
            **CardInquiry.objects.in_bulk(ids),
            **Dispute.objects.in_bulk(ids),
            **TopUpDispute.objects.in_bulk(ids),
        }

    seen: set[str] = set()
    listed = gateway.disputes_since(since=span.since)
    for made, row in _pairs(listed, span=span, rows=rows, seen=seen):
        if row is None:
            yield Finding("dispute_without_row", made.id, f"{made.state} of {made.payment_id}")
        elif _dispute_differs(made, row):
            yield Finding(
                "dispute_differs",
                made.id,
                f"it is {_state_of(row)} for {_said(row.amount_minor, row.currency)}; "
                f"there it is {made.state} for {_said(made.amount_minor, made.currency)}",
            )
    first = span.since + dt.timedelta(seconds=IN_FLIGHT_SECONDS)
    models: tuple[type[Disputed], ...] = (Dispute, TopUpDispute, CardInquiry)
    for model in models:
        ours = model.objects.filter(opened_at__gt=first, opened_at__lt=span.settled)
        for object_id in ours.values_list("pk", flat=True).iterator():
            if object_id not in seen:
                yield Finding("dispute_without_object", object_id, "it is not listed")


def _dispute_differs(made: ProviderDispute, row: Disputed) -> bool:
    end = disputes.end_of(made)
    expected = "open" if end is None else end.value
    if isinstance(row, CardInquiry):
        expected = made.state
    return _state_of(row) != expected or made.amount_minor != row.amount_minor


def _state_of(row: Disputed) -> str:
    return row.state if isinstance(row, CardInquiry) else row.status


def _bookings(*, settled: dt.datetime) -> Iterator[Finding]:
    for row in BalanceTransaction.objects.filter(matched_at__isnull=True, created_at__lt=settled):
        yield Finding(
            "booking_unmatched",
            row.pk,
            f"{row.category} of {row.source_id or 'nothing'}: {_said(row.amount_minor, row.currency)}",
        )


def clearings(*, at: dt.datetime) -> Iterator[Finding]:
    """Yield the clearing accounts that nothing has moved for a while and that are not at zero."""
    for account in open_clearings(at=at):
        yield Finding(
            "clearing_open",
            account.subject_id,
            f"{_said(account.sum, account.currency)} are not matched",
        )


def open_clearings(*, at: dt.datetime) -> QuerySet[Account, Any]:
    """Return these accounts with their `sum`, in their normal side, and when they were `moved_at` last."""
    signed = Case(
        When(postings__side=F("normal_side"), then=F("postings__amount")),
        default=-F("postings__amount"),
    )
    return (
        Account.objects.filter(kind=AccountKind.PSP_CLEARING)
        .annotate(sum=Sum(signed), moved_at=Max("postings__entry__recorded_at"))
        .filter(~Q(sum=0), moved_at__lte=at - dt.timedelta(seconds=CLEARING_OPEN_SECONDS))
        .order_by("pk")
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
        yield Finding(
            "balance_differs",
            currency,
            f"there {_said(theirs, currency)}, in our books {_said(ours, currency)}",
        )
