"""Which amounts are taken in which currency, as docs.stripe.com/currencies lists them."""

from __future__ import annotations

from tests.fakes.stripe.world import ApiError

THREE_DECIMALS = ("bhd", "jod", "kwd", "omr", "tnd")
LEAST = {
    50: ("aud", "brl", "cad", "chf", "eur", "inr", "jpy", "nzd", "sgd", "usd"),
    30: ("gbp",),
    100: ("bgn",),
    200: ("aed", "myr", "pln", "ron"),
    250: ("dkk",),
    300: ("nok", "sek"),
    400: ("hkd",),
    1000: ("mxn", "thb"),
    1500: ("czk",),
    17500: ("huf",),
}
MOST = 99_999_999
LEAST_OF = {currency: least for least, group in LEAST.items() for currency in group}


def require_charge(amount: int, currency: str) -> None:
    """Refuse a charge that is too small or too large, or has a last digit that banks do not know."""
    require_step(amount, currency)
    if amount < LEAST_OF.get(currency, 1):
        raise ApiError(
            400, "The amount is below the minimum charge.", code="amount_too_small", param="amount"
        )
    if amount > MOST:
        raise ApiError(400, "The amount is too large.", code="amount_too_large", param="amount")


def require_step(amount: int, currency: str) -> None:
    if currency in THREE_DECIMALS and amount % 10:
        raise ApiError(
            400,
            "The last digit of an amount in a three-decimal currency must be 0.",
            code="parameter_invalid_integer",
            param="amount",
        )
