"""Buy what a quote promises: capacity and money move together, or neither does."""

import datetime as dt

from django.db import transaction

from billing import (
    accounts,
    budgets,
    credit,
    ledger,
    payments,
    promotions,
    provider,
    purchase_requests,
    purchases,
    tax,
)
from billing.models import CreditTerms
from billing.payments import Wishes
from billing.promised import Promise
from billing.provider_states import PaymentMeans
from billing.purchase_requests import Order
from marketplace.core.errors import DomainError, InvalidValue
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler import quotes, reservations
from scheduler.details import ReservationDetails
from scheduler.models import Quote, Reservation
from scheduler.states import PaymentMethod, QuoteStatus

# A bank transfer takes a day or two, and the GPUs are kept for half a day: closer to the start than this,
# the money would come when nobody can have them any more.
BANK_TRANSFER_AHEAD_SECONDS = 3 * 86_400
_MEANS = {
    PaymentMethod.CARD: PaymentMeans.CARD,
    PaymentMethod.BANK_TRANSFER: PaymentMeans.BANK_TRANSFER,
}


class PaymentMethodUnavailable(DomainError):
    """The contract knows this way to pay, but this market does not take it yet."""

    code = "payment_method_unavailable"
    title = "This way to pay is not available"


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
) -> Reservation:
    """Reserve the quoted capacity; from the wallet or on account it is bought and confirmed at once.

    From the wallet, promotions are spent before the tenant's own money: see `billing.promotions`.

    A refusal of any step leaves no trace of the others: no reservation, no GPU taken, the quote still open.
    By card and bank transfer the reservation waits for its payment, which `provider.drive_payment` asks
    for when this transaction is over.

    :raises InvalidValue: when nobody has ever heard of the payment method, or it takes too long here.
    :raises PaymentMethodUnavailable: where it takes a provider and none is connected.
    :raises budgets.BudgetExceeded: when a hard budget does not cover the price; likewise `ProjectFrozen`.
    :raises ApprovalRequired: above the tenant's own limit, unless another person has approved it.
    :raises payments.NoSavedCard: when the saved card is to pay and there is none.
    :raises ledger.InsufficientFunds: with the missing amount, when the wallet does not cover the price.
    :raises credit.CreditNotGranted: when nothing can be bought on account; likewise `CreditLimitExceeded`
        with the missing amount, and `InvoiceOverdue`.
    :raises DomainError: whatever refuses the reservation; see `scheduler.reservations.reserve`.
    """
    if payment_method not in PaymentMethod.values:
        raise InvalidValue(
            f"payment_method must be one of {', '.join(PaymentMethod.values)}",
            pointer="/payment_method",
        )
    method = PaymentMethod(payment_method)
    if method in _MEANS and not provider.is_connected():
        raise PaymentMethodUnavailable(
            f"Payment by {payment_method} needs a payment provider, and none is connected here; "
            "pay from the wallet.",
            pointer="/payment_method",
        )
    quote = quotes.get_for_use(organization=organization, quote_id=quote_id)
    if quote.status == QuoteStatus.OPEN and quote.expires_at > at:
        budgets.require(
            organization=organization, project=details.project, promise=Promise.of(quote), at=at
        )
        purchase_requests.require(order=Order.of_quote(quote, project=details.project))
    terms = _require_means(quote=quote, method=method, at=at)
    reservation = reservations.accept(
        quote=quote,
        payment_method=payment_method,
        details=details,
        at=at,
        actor=actor,
    )
    tax.freeze(reservation=reservation, at=at)
    if method == PaymentMethod.WALLET:
        price = purchases.price_with_tax(reservation=reservation)
        promotions.spend(reservation=reservation, amount_minor=price, key=reservation.id, at=at)
        purchases.post(reservation=reservation, at=at)
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
    payments.open_for_reservation(
        reservation=reservation,
        wishes=Wishes(means=_MEANS[method], with_saved_card=with_saved_card, saves_card=saves_card),
        at=at,
    )
    return reservation


def _require_means(*, quote: Quote, method: PaymentMethod, at: dt.datetime) -> CreditTerms | None:
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
        given = promotions.lock_minor(
            organization=quote.organization, currency=quote.currency, at=at
        )
        ledger.require_funds(
            account=accounts.wallet(organization=quote.organization, currency=quote.currency),
            amount=max(price.amount_minor - given, 0),
        )
    return None
