"""Buy what a quote promises: capacity and money move together, or neither does."""

import datetime as dt

from django.db import transaction

from billing import budgets, payments, provider, purchases, tax
from billing.payments import Wishes
from billing.provider_states import PaymentMeans
from marketplace.core.errors import DomainError, InvalidValue
from marketplace.models import Organization
from scheduler import reservations
from scheduler.details import ReservationDetails
from scheduler.models import Reservation
from scheduler.states import PaymentMethod

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
    """Reserve the quoted capacity; from the wallet it is paid and confirmed at once, in one transaction.

    A refusal of any step leaves no trace of the others: no reservation, no GPU taken, the quote still open.
    By card and bank transfer the reservation waits for its payment, which `provider.drive_payment` asks
    for when this transaction is over.

    :raises InvalidValue: when nobody has ever heard of the payment method, or it takes too long here.
    :raises PaymentMethodUnavailable: for `invoice`, and where no provider is connected.
    :raises budgets.BudgetExceeded: when a hard budget does not cover the price; likewise `ProjectFrozen`.
    :raises payments.NoSavedCard: when the saved card is to pay and there is none.
    :raises ledger.InsufficientFunds: with the missing amount, when the wallet does not cover the price.
    :raises DomainError: whatever refuses the reservation; see `scheduler.reservations.reserve`.
    """
    if payment_method not in PaymentMethod.values:
        raise InvalidValue(
            f"payment_method must be one of {', '.join(PaymentMethod.values)}",
            pointer="/payment_method",
        )
    method = PaymentMethod(payment_method)
    if method != PaymentMethod.WALLET and (method not in _MEANS or not provider.is_connected()):
        raise PaymentMethodUnavailable(
            f"Payment by {payment_method} needs "
            + ("a credit limit, and none is kept here yet; " if method not in _MEANS else "")
            + ("a payment provider, and none is connected here; " if method in _MEANS else "")
            + "pay from the wallet.",
            pointer="/payment_method",
        )
    budgets.require_for_quote(
        organization=organization, quote_id=quote_id, project=details.project, at=at
    )
    reservation = reservations.reserve(
        organization=organization,
        quote_id=quote_id,
        payment_method=payment_method,
        details=details,
        at=at,
        actor=actor,
    )
    tax.freeze(reservation=reservation, at=at)
    if method == PaymentMethod.WALLET:
        purchases.post(reservation=reservation, at=at)
        return reservations.confirm(reservation_id=reservation.id, at=at, actor=actor)
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
