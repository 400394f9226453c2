"""Which ways to pay there are, and how the provider is asked for those that take it."""

from billing.provider_states import PaymentMeans
from marketplace.core.errors import DomainError, InvalidValue
from scheduler.states import PaymentMethod

MEANS = {
    PaymentMethod.CARD: PaymentMeans.CARD,
    PaymentMethod.BANK_TRANSFER: PaymentMeans.BANK_TRANSFER,
}


class PaymentMethodUnavailable(DomainError):
    """The contract knows this way to pay, but this market does not take it yet."""

    code = "payment_method_unavailable"
    title = "This way to pay is not available"


def named(name: str) -> PaymentMethod:
    """Return the way to pay of a name.

    :raises InvalidValue: when nobody has ever heard of it.
    """
    if name not in PaymentMethod.values:
        raise InvalidValue(
            f"payment_method must be one of {', '.join(PaymentMethod.values)}",
            pointer="/payment_method",
        )
    return PaymentMethod(name)


def require_provider(method: PaymentMethod, *, is_connected: bool) -> None:
    """Refuse a way to pay that takes a provider where none is connected.

    :raises PaymentMethodUnavailable: then.
    """
    if method in MEANS and not is_connected:
        raise PaymentMethodUnavailable(
            f"Payment by {method} needs a payment provider, and none is connected here; "
            "pay from the wallet.",
            pointer="/payment_method",
        )
