"""Buy what a quote promises: capacity and money move together, or neither does."""

import datetime as dt

from django.db import transaction

from billing import purchases
from marketplace.core.errors import DomainError, InvalidValue
from marketplace.models import Organization
from scheduler import reservations
from scheduler.details import ReservationDetails
from scheduler.models import Reservation
from scheduler.states import PaymentMethod


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
) -> Reservation:
    """Reserve the quoted capacity, take its price from the wallet, and confirm: one transaction.

    A refusal of any step leaves no trace of the others: no reservation, no GPU taken, the quote still open.

    :raises InvalidValue: when nobody has ever heard of the payment method.
    :raises PaymentMethodUnavailable: for `card` and `invoice`.
    :raises ledger.InsufficientFunds: with the missing amount, when the wallet does not cover the price.
    :raises DomainError: whatever refuses the reservation; see `scheduler.reservations.reserve`.
    """
    if payment_method not in PaymentMethod.values:
        raise InvalidValue(
            f"payment_method must be one of {', '.join(PaymentMethod.values)}",
            pointer="/payment_method",
        )
    if payment_method != PaymentMethod.WALLET:
        raise PaymentMethodUnavailable(
            f"Payment by {payment_method} needs a payment provider, and none is connected here; "
            "pay from the wallet.",
            pointer="/payment_method",
        )
    reservation = reservations.reserve(
        organization=organization,
        quote_id=quote_id,
        payment_method=payment_method,
        details=details,
        at=at,
        actor=actor,
    )
    purchases.post(reservation=reservation, at=at)
    return reservations.confirm(reservation_id=reservation.id, at=at, actor=actor)
