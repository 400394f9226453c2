"""Exact money: integer minor units per currency, decimal rates, one rounding function."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

# ISO 4217 exponents of the currencies that Stripe settles and that are not 2.
_EXPONENTS = {
    **dict.fromkeys(
        (
            "bif",
            "clp",
            "djf",
            "gnf",
            "jpy",
            "kmf",
            "krw",
            "mga",
            "pyg",
            "rwf",
            "ugx",
            "vnd",
            "vuv",
            "xaf",
            "xof",
            "xpf",
        ),
        0,
    ),
    **dict.fromkeys(("bhd", "iqd", "jod", "kwd", "lyd", "omr", "tnd"), 3),
}
RATE_DECIMAL_PLACES = 6
RATE_MAX = Decimal("99999")  # per GPU-hour; a typing error, not a price, above that
SECONDS_PER_HOUR = 3600
_RATE_QUANTUM = Decimal(1).scaleb(-RATE_DECIMAL_PLACES)


def currency_exponent(currency: str) -> int:
    """Return how many decimal digits a currency's minor unit has: usd 2, jpy 0, kwd 3."""
    assert re.fullmatch(r"[a-z]{3}", currency), currency
    return _EXPONENTS.get(currency, 2)


@dataclass(frozen=True, slots=True, order=False)
class Money:
    """An amount in integer minor units. Adding two currencies is a bug and raises `AssertionError`."""

    amount_minor: int
    currency: str

    def __post_init__(self) -> None:
        assert isinstance(self.amount_minor, int) and not isinstance(self.amount_minor, bool)  # noqa: PT018

    def __add__(self, other: "Money") -> "Money":
        assert self.currency == other.currency, (self.currency, other.currency)
        return Money(self.amount_minor + other.amount_minor, self.currency)

    def __sub__(self, other: "Money") -> "Money":
        return self + Money(-other.amount_minor, other.currency)

    def __str__(self) -> str:
        exponent = currency_exponent(self.currency)
        return (
            f"{Decimal(self.amount_minor).scaleb(-exponent):.{exponent}f} {self.currency.upper()}"
        )


def grouped(money: Money) -> str:
    """Return an amount as people read it, in groups of three digits: `1,250.00 USD`."""
    exponent = currency_exponent(money.currency)
    return f"{Decimal(money.amount_minor).scaleb(-exponent):,.{exponent}f} {money.currency.upper()}"


def divide_half_even(numerator: int, denominator: int) -> int:
    """Round a quotient to the nearest integer, ties to even: the only rounding of money we do.

    The denominator is positive. Of integers, because a month of FOCUS rounds millions of them.
    """
    whole, rest = divmod(numerator, denominator)
    doubled = 2 * rest
    return whole + (doubled > denominator or (doubled == denominator and whole % 2 == 1))


def round_half_even(value: Fraction) -> int:
    """Round an exact number to the nearest integer, ties to even."""
    return divide_half_even(value.numerator, value.denominator)


def round_to(value: Fraction, *, quantum: Decimal) -> Decimal:
    """Round an exact number to a multiple of a quantum, ties to even; it has the quantum's places."""
    return round_half_even(value / Fraction(quantum)) * quantum


def amount_for(*, rate: Decimal, gpu_seconds: int, currency: str) -> Money:
    """Return what `gpu_seconds` cost at `rate` per GPU-hour, rounded once."""
    exact = Fraction(rate) * gpu_seconds / SECONDS_PER_HOUR * 10 ** currency_exponent(currency)
    return Money(round_half_even(exact), currency)


def share_of(*, total_minor: int, part: int, whole: int) -> int:
    """Return the share `part / whole` of a total, rounded; `0 <= part <= whole`, `whole > 0`."""
    assert 0 <= part <= whole, (part, whole)
    assert whole > 0, whole
    return round_half_even(Fraction(total_minor * part, whole))


def split_by_weights(*, total_minor: int, weights: Sequence[int]) -> list[int]:
    """Split a total so that the parts add up to it: each part is the difference of two rounded sums.

    The parts do not depend on how the weights are batched. All weights are `>= 0`, their sum is `> 0`.
    """
    whole = sum(weights)
    parts, running, previous = [], 0, 0
    for weight in weights:
        running += weight
        share = share_of(total_minor=total_minor, part=running, whole=whole)
        parts.append(share - previous)
        previous = share
    return parts


def quantize_rate(rate: Decimal) -> Decimal:
    """Round a rate per GPU-hour to the six places in which it is published and locked."""
    with localcontext() as context:
        context.prec = 40
        return rate.quantize(_RATE_QUANTUM, rounding=ROUND_HALF_EVEN)


def format_rate(rate: Decimal) -> str:
    """Return a rate as it is published: a decimal string with six places."""
    return f"{quantize_rate(rate):.{RATE_DECIMAL_PLACES}f}"
