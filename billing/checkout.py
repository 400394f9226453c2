"""Buy what a quote promises: capacity and money move together, or neither does."""

import datetime as dt

from django.db import transaction

from billing import (
    accounts,
    budgets,
    credit,
    deposits,
    ledger,
    payment_methods,
    payments,
    promotions,
    provider,
    purchase_requests,
    purchases,
    tag_policy,
    tax,
    top_up_disputes,
    wallet_holds,
)
from billing.models import CreditTerms, WalletHold
from billing.payments import Wishes
from billing.promised import Promise
from billing.purchase_requests import Order
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler import quotes, reservations
from scheduler.details import ReservationDetails
from scheduler.models import Quote, Reservation
from scheduler.states import PaymentMethod, QuoteStatus

# A bank transfer takes a day or two, and the GPUs are kept for half a day: closer to the start than this,
# the money would come when nobody can have them any more.
BANK_TRANSFER_AHEAD_SECONDS = 3 * 86_400


@transaction.atomic
def purchase(
    *,
    organization: Organization,
    quote_id: str,
    payment_method: str,
    details: ReservationDetails,
    at: dt.datetime,
    actor: str,
    with_saved_card: bool = False,
    saves_card: bool = False,
    in_two_parts: bool = False,
) -> Reservation:
    """Reserve the quoted capacity; from the wallet or on account it is bought and confirmed at once.

    From the wallet, promotions are spent before the tenant's own money: see `billing.promotions`. What was
    held while the order waited for a second person is spent then, or goes back: see `billing.wallet_holds`.

    A refusal of any step leaves no trace of the others: no reservation, no GPU taken, the quote still open.
    By card and bank transfer the reservation waits for its payment, which `provider.drive_payment` asks
    for when this transaction is over.

    :raises InvalidValue: when nobody has ever heard of the payment method, or it takes too long here.
    :raises payment_methods.PaymentMethodUnavailable: where it takes a provider and none is connected.
    :raises tag_policy.TagRequired: without a tag that the tenant requires; likewise `TagValueNotAllowed`.
    :raises budgets.BudgetExceeded: when a hard budget does not cover the price; likewise `ProjectFrozen`.
    :raises ApprovalRequired: above the tenant's own limit, unless another person has approved it.
    :raises deposits.PaymentPlanUnavailable: when the price cannot be paid in two parts.
    :raises payments.NoSavedCard: when the saved card is to pay and there is none.
    :raises ledger.InsufficientFunds: with the missing amount, when the wallet does not cover the price.
    :raises credit.CreditNotGranted: when nothing can be bought on account; likewise `CreditLimitExceeded`
        with the missing amount, and `InvoiceOverdue`.
    :raises DomainError: whatever refuses the reservation; see `scheduler.reservations.reserve`.
    """
    method = payment_methods.named(payment_method)
    payment_methods.require_provider(method, is_connected=provider.is_connected())
    quote = quotes.get_for_use(organization=organization, quote_id=quote_id)
    if quote.status == QuoteStatus.OPEN and quote.expires_at > at:
        tag_policy.require(organization=organization, tags=details.tags)
        budgets.require(
            organization=organization, project=details.project, promise=Promise.of(quote), at=at
        )
        purchase_requests.require(order=Order.of_quote(quote, project=details.project))
    parts = _parts_of(quote=quote, method=method, at=at) if in_two_parts else None
    held = wallet_holds.open_of(quote_id=quote.pk)
    terms = _require_means(quote=quote, method=method, held=held, at=at)
    if held is not None and method != PaymentMethod.WALLET:
        wallet_holds.void(held, at=at)
    reservation = reservations.accept(
        quote=quote,
        payment_method=payment_method,
        details=details,
        at=at,
        actor=actor,
        unpaid_minor=parts.balance_net_minor if parts is not None else 0,
    )
    tax.freeze(reservation=reservation, at=at)
    if method == PaymentMethod.WALLET:
        price = purchases.price_with_tax(reservation=reservation)
        promoted_minor = promotions.spend(
            reservation=reservation, amount_minor=price, key=reservation.id, at=at
        )
        purchases.post(reservation=reservation, at=at, held=held, promoted_minor=promoted_minor)
        reservations.confirm_in_hand(reservation=reservation, at=at, actor=actor)
        return reservation
    if method == PaymentMethod.INVOICE:
        assert terms is not None, quote_id
        credit.buy(terms=terms, reservation=reservation, at=at)
        reservations.confirm_in_hand(reservation=reservation, at=at, actor=actor)
        return reservation
    ahead = dt.timedelta(seconds=BANK_TRANSFER_AHEAD_SECONDS)
    if method == PaymentMethod.BANK_TRANSFER and reservation.starts_at - at < ahead:
        raise InvalidValue(
            f"A bank transfer needs {ahead.days} days before the start; pay by card or wallet.",
            pointer="/payment_method",
        )
    if parts is not None:
        deposits.make(reservation=reservation, parts=parts, at=at)
    payments.open_for_reservation(
        reservation=reservation,
        wishes=Wishes(
            means=payment_methods.MEANS[method],
            with_saved_card=with_saved_card,
            saves_card=saves_card,
        ),
        at=at,
    )
    return reservation


def _parts_of(*, quote: Quote, method: PaymentMethod, at: dt.datetime) -> deposits.Parts | None:
    """Return in which parts a quote is paid; one that is not open is refused by the scheduler.

    :raises deposits.PaymentPlanUnavailable: when it cannot be paid in two parts, or not in this way.
    """
    if method != PaymentMethod.CARD:
        raise deposits.PaymentPlanUnavailable(
            "A deposit is paid by card: the balance is charged to the same one.",
            pointer="/payment_plan",
        )
    if quote.status != QuoteStatus.OPEN:
        return None
    terms = tax.current_terms(organization=quote.organization, at=at)
    return deposits.require(quote=quote, terms=terms, at=at)


def _require_means(
    *, quote: Quote, method: PaymentMethod, held: WalletHold | None, at: dt.datetime
) -> CreditTerms | None:
    """Keep wallet or credit for this purchase before it takes GPUs; return the terms of what is on account.

    Who cannot pay takes no GPUs from who can, not even for a moment. A quote that is not open is refused by
    the scheduler, in its own words.

    :raises ledger.InsufficientFunds: when the wallet does not cover it.
    :raises credit.CreditNotGranted: when nothing can be bought on account; likewise `CreditLimitExceeded`
        and `InvoiceOverdue`.
    """
    if quote.status != QuoteStatus.OPEN:
        return None
    price = Money(
        tax.gross_minor(
            net_minor=quote.total_minor,
            terms=tax.current_terms(organization=quote.organization, at=at),
        ),
        quote.currency,
    )
    if method == PaymentMethod.INVOICE:
        return credit.require(organization=quote.organization, amount=price, at=at)
    if method == PaymentMethod.WALLET:
        top_up_disputes.square(organization=quote.organization, at=at)
        given = promotions.lock_minor(
            organization=quote.organization, currency=quote.currency, at=at
        )
        ledger.require_funds(
            account=accounts.wallet(organization=quote.organization, currency=quote.currency),
            amount=max(price.amount_minor - given - (held.amount_minor if held else 0), 0),
        )
    return None
