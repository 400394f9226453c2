"""Orders above a tenant's own limit: one asks by ordering, another one of the tenant approves or refuses.

Asking stands before the order and writes the request in a transaction of its own, so that it outlives the
refusal; `require` stands in the transaction that accepts the order. The price stays locked, held GPUs stay
held, and so does what a wallet is to pay, for as long as the quote lives and no longer: then the request has
nothing to buy any more. See `billing.wallet_holds`.
"""

import datetime as dt
from dataclasses import dataclass

from django.db import transaction

from billing import tax, wallet_holds
from billing.approval_limits import limit_of
from billing.approvals import FourEyesNeeded
from billing.models import PurchaseRequest, PurchaseRequestTransition, WalletHold
from billing.states import APPROVAL_ARROWS, ApprovalStatus, PurchaseKind
from marketplace import events
from marketplace.core.errors import DomainError, NotFound, StateConflict
from marketplace.core.money import Money
from marketplace.core.windows import format_instant
from marketplace.models import Organization
from marketplace.states import EventKind
from scheduler.models import ChangeQuote, Quote, Reservation
from scheduler.states import PaymentMethod, QuoteStatus

_TOLD = {
    ApprovalStatus.REQUESTED: EventKind.PURCHASE_REQUEST_OPENED,
    ApprovalStatus.APPROVED: EventKind.PURCHASE_REQUEST_APPROVED,
    ApprovalStatus.REFUSED: EventKind.PURCHASE_REQUEST_REFUSED,
}


class ApprovalRequired(DomainError):
    """It is above what one person orders alone; `extra` names the request that another one decides."""

    code = "approval_required"
    title = "This order takes a second person"


class ApprovalRefused(DomainError):
    code = "approval_refused"
    title = "This order was refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be bought: a quote, what the reservation comes to with it, and what is asked for now.

    The `amount` is net of tax and decides; `added` of it is to be paid, also net.
    """

    organization: Organization
    kind: PurchaseKind
    quote_id: str
    amount: Money
    added: Money
    expires_at: dt.datetime
    project: str
    reservation: Reservation | None = None

    @classmethod
    def of_quote(cls, quote: Quote, *, project: str) -> "Order | None":
        """Return the order that a quote makes, None where there is nothing left to order."""
        if quote.status != QuoteStatus.OPEN:
            return None
        return cls(
            organization=quote.organization,
            kind=PurchaseKind.RESERVATION,
            quote_id=quote.pk,
            amount=Money(quote.total_minor, quote.currency),
            added=Money(quote.total_minor, quote.currency),
            expires_at=quote.expires_at,
            project=project,
        )

    @classmethod
    def of_change(cls, quote: ChangeQuote) -> "Order | None":
        """Return the order that a change makes, None where it costs nothing more.

        It comes to the whole of what the reservation will cost: a large one is not made of small steps.
        """
        if quote.used_at is not None or quote.charge_minor <= 0:
            return None
        return cls(
            organization=quote.organization,
            kind=PurchaseKind.CHANGE,
            quote_id=quote.pk,
            amount=Money(quote.total_minor, quote.currency),
            added=Money(quote.charge_minor, quote.currency),
            expires_at=quote.expires_at,
            project=quote.reservation.project,
            reservation=quote.reservation,
        )

    def price(self, *, at: dt.datetime) -> Money:
        """Return what is asked for now with its tax, as far as that is known before it is bought."""
        net_minor = self.added.amount_minor
        if self.reservation is not None:
            taxed = tax.preview(reservation=self.reservation, charged=net_minor)
            return Money(net_minor + taxed.charged, self.added.currency)
        terms = tax.current_terms(organization=self.organization, at=at)
        return Money(tax.gross_minor(net_minor=net_minor, terms=terms), self.added.currency)


def ask_for_quote(
    *,
    organization: Organization,
    quote_id: str,
    project: str,
    payment_method: str,
    at: dt.datetime,
    actor: str,
) -> None:
    """Let an order of a quote pass, or ask for it: once per quote, and in a transaction of its own.

    What the wallet is to pay is held with it. A quote that cannot be used is for the order itself to refuse.

    :raises ApprovalRequired: when it is above the limit and nobody else has approved it yet.
    :raises ApprovalRefused: when somebody else has refused it.
    :raises ledger.InsufficientFunds: with the missing amount, when the wallet does not cover what is asked.
    :raises parking.MoneyParked: when it is to pay and its money is parked.
    """
    if limit_of(organization=organization) is None or "\x00" in quote_id:
        return
    quote = Quote.objects.visible_to(organization).filter(pk=quote_id).first()
    if quote is not None:
        order = Order.of_quote(quote, project=project)
        _ask(order, payment_method=payment_method, at=at, actor=actor)


def ask_for_change(
    *,
    organization: Organization,
    reservation_id: str,
    quote_id: str,
    payment_method: str,
    at: dt.datetime,
    actor: str,
) -> None:
    """Let a change of a reservation pass, or ask for it, as `ask_for_quote` does.

    :raises ApprovalRequired: when it is above the limit and nobody else has approved it yet.
    :raises ApprovalRefused: when somebody else has refused it.
    :raises ledger.InsufficientFunds: with the missing amount, when the wallet does not cover what is added.
    :raises parking.MoneyParked: when it is to pay and its money is parked.
    """
    if limit_of(organization=organization) is None or "\x00" in quote_id + reservation_id:
        return
    known = ChangeQuote.objects.visible_to(organization).select_related("reservation")
    quote = known.filter(pk=quote_id, reservation=reservation_id).first()
    if quote is not None:
        _ask(Order.of_change(quote), payment_method=payment_method, at=at, actor=actor)


def require(*, order: Order | None) -> None:
    """Refuse an order above the limit that nobody else has approved; in the transaction that accepts it.

    :raises ApprovalRequired: then.
    :raises ApprovalRefused: when somebody else has refused it.
    """
    if order is None:
        return
    limit = limit_of(organization=order.organization)
    if limit is None or order.amount.amount_minor <= limit.amount_minor:
        return
    request = PurchaseRequest.objects.visible_to(order.organization).filter(quote_id=order.quote_id)
    _check(request.first(), order=order, limit=limit)


def get(*, organization: Organization, request_id: str) -> PurchaseRequest:
    """Return a tenant's request.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    known = PurchaseRequest.objects.visible_to(organization)
    found = known.filter(pk=request_id).first() if "\x00" not in request_id else None
    if found is None:
        raise NotFound(f"no purchase request {request_id}")
    return found


@transaction.atomic
def approve(
    *, organization: Organization, request_id: str, at: dt.datetime, actor: str
) -> PurchaseRequest:
    """Take the arrow requested → approved: whoever asked may order it now, until the quote expires.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    :raises FourEyesNeeded: when the same person asked for it.
    :raises StateConflict: when it was decided before, or its quote has expired.
    """
    request = get(organization=organization, request_id=request_id)
    if request.expires_at <= at:
        raise StateConflict(f"its quote expired at {format_instant(request.expires_at)}")
    return _decide(request, to=ApprovalStatus.APPROVED, at=at, actor=actor)


@transaction.atomic
def refuse(
    *, organization: Organization, request_id: str, at: dt.datetime, actor: str
) -> PurchaseRequest:
    """Take the arrow requested → refused: this quote is not to be ordered, and what is held goes back.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    :raises FourEyesNeeded: when the same person asked for it.
    :raises StateConflict: when it was decided before.
    """
    request = get(organization=organization, request_id=request_id)
    return _decide(request, to=ApprovalStatus.REFUSED, at=at, actor=actor)


def held_minor(request: PurchaseRequest) -> int:
    """Return what of the wallet is held for a request now, with tax, in minor units."""
    held: WalletHold | None = getattr(request, "hold", None)
    return held.amount_minor if held is not None and held.resolved_at is None else 0


def _ask(order: Order | None, *, payment_method: str, at: dt.datetime, actor: str) -> None:
    if order is None or order.expires_at <= at:
        return
    limit = limit_of(organization=order.organization)
    if limit is None or order.amount.amount_minor <= limit.amount_minor:
        return
    with transaction.atomic():
        request, is_new = PurchaseRequest.objects.get_or_create(
            quote_id=order.quote_id,
            defaults={
                "organization": order.organization,
                "kind": order.kind,
                "reservation_id": order.reservation.pk if order.reservation else "",
                "project": order.project,
                "amount_minor": order.amount.amount_minor,
                "currency": order.amount.currency,
                "requested_by": actor,
                "requested_at": at,
                "expires_at": order.expires_at,
            },
        )
        if payment_method == PaymentMethod.WALLET:
            _hold(request, order=order, at=at)
        if is_new:
            _note(request, came_from="", at=at, actor=actor)
    _check(request, order=order, limit=limit)


def _hold(request: PurchaseRequest, *, order: Order, at: dt.datetime) -> None:
    """Hold what the wallet is to pay for a request that waits, once: asked by card before, or new."""
    current = PurchaseRequest.objects.select_for_update(no_key=True).get(pk=request.pk)
    waits = current.status == ApprovalStatus.REQUESTED and current.project == order.project
    if waits and not WalletHold.objects.filter(purchase_request=request).exists():
        wallet_holds.hold(request=request, price=order.price(at=at), at=at)


def _check(request: PurchaseRequest | None, *, order: Order, limit: Money) -> None:
    if request is not None and request.project != order.project:
        raise ApprovalRefused(
            f"it was asked for the project {request.project!r}; ask for another quote",
            extra={"purchase_request_id": request.pk},
        )
    if request is not None and request.status == ApprovalStatus.APPROVED:
        return
    extra: dict[str, object] = {
        "purchase_request_id": request.pk if request else None,
        "limit": {"amount_minor": limit.amount_minor, "currency": limit.currency},
        "expires_at": format_instant(order.expires_at),
    }
    if request is not None and request.status == ApprovalStatus.REFUSED:
        raise ApprovalRefused(
            f"{request.decided_by} refused it; ask for another quote", extra=extra
        )
    raise ApprovalRequired(
        f"{order.amount} is above the {limit} that one person orders alone: let somebody else of the "
        "organization approve it, then order again before the quote expires",
        extra=extra,
    )


def _decide(
    request: PurchaseRequest, *, to: ApprovalStatus, at: dt.datetime, actor: str
) -> PurchaseRequest:
    """Compare and set; the winner writes the transition in the same transaction, the loser raises."""
    if actor == request.requested_by:
        raise FourEyesNeeded(f"{actor} asked for this; somebody else decides it.")
    came_from = ApprovalStatus(request.status)
    won = APPROVAL_ARROWS.allows(came_from, to) and PurchaseRequest.objects.filter(
        pk=request.pk, status=came_from
    ).update(status=to, decided_by=actor, decided_at=at)
    if not won:
        raise StateConflict(f"{request.pk} was decided before")
    request.status, request.decided_by, request.decided_at = to, actor, at
    if to is ApprovalStatus.REFUSED:
        wallet_holds.void_of(request=request, at=at)
    _note(request, came_from=came_from, at=at, actor=actor)
    return request


def _note(request: PurchaseRequest, *, came_from: str, at: dt.datetime, actor: str) -> None:
    status = ApprovalStatus(request.status)
    PurchaseRequestTransition.objects.create(
        purchase_request=request, from_status=came_from, to_status=status, actor=actor, at=at
    )
    events.record(
        organization=request.organization,
        kind=_TOLD[status],
        object_id=request.pk,
        data={
            "kind": request.kind,
            "quote_id": request.quote_id,
            "reservation_id": request.reservation_id or None,
            "project": request.project,
            "amount_minor": request.amount_minor,
            "currency": request.currency,
            "held_minor": held_minor(request),
            "expires_at": format_instant(request.expires_at),
            "actor": actor,
        },
        at=at,
        key=f"{request.pk}:{status.value}",
    )
