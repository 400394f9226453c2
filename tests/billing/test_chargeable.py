"""Which amounts are asked for and sent back in which currency: what the provider takes, and no other."""

import pytest

from billing import chargeable
from marketplace.core.money import currency_exponent
from tests.fakes.stripe import currencies
from tests.fakes.stripe.world import ApiError


@pytest.mark.parametrize(
    ("currency", "amount", "is_taken"),
    [
        ("usd", 49, False),
        ("usd", 50, True),
        ("gbp", 30, True),
        ("huf", 17_499, False),
        ("jpy", 50, True),
        ("jpy", 51, True),
        ("kwd", 5_120, True),
        ("kwd", 5_124, False),
        ("usd", 99_999_999, True),
        ("usd", 100_000_000, False),
    ],
)
def test_an_amount_is_taken_alike_here_and_by_the_stand_in(
    *, currency: str, amount: int, is_taken: bool
) -> None:
    assert chargeable.is_taken(amount_minor=amount, currency=currency) == is_taken
    if is_taken:
        currencies.require_charge(amount, currency)
    else:
        with pytest.raises(ApiError):
            currencies.require_charge(amount, currency)


def test_both_tables_say_the_same() -> None:
    assert currencies.LEAST_OF == chargeable.LEAST_MINOR
    assert {currency_exponent(currency) for currency in currencies.THREE_DECIMALS} == {3}


@pytest.mark.parametrize(
    ("currency", "amount", "up", "down"),
    [("kwd", 4_706, 4_710, 4_700), ("kwd", 4_700, 4_700, 4_700), ("jpy", 625, 625, 625)],
)
def test_what_is_asked_for_covers_the_price_and_what_goes_back_does_not_exceed_it(
    currency: str, amount: int, up: int, down: int
) -> None:
    assert chargeable.rounded_up(amount_minor=amount, currency=currency) == up
    assert chargeable.rounded_down(amount_minor=amount, currency=currency) == down
