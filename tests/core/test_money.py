import re
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.amounts import amounts_of
from marketplace.core.money import (
    Money,
    amount_for,
    currency_exponent,
    divide_half_even,
    format_rate,
    quantize_rate,
    round_half_even,
    round_to,
    share_of,
    split_by_weights,
)
from tests.architecture.sources import ROOT

_ROW = re.compile(
    r"^\| (\d+\.\d{6}) \| (\d+) \| ([a-z]{3}) \| " + r" \| ".join([r"(\d+)"] * 7) + r" \|$"
)
AMOUNTS = st.integers(min_value=0, max_value=10**15)
WEIGHTS = st.lists(st.integers(min_value=0, max_value=10**9), min_size=1, max_size=30).filter(any)


def rows_of_the_readme() -> list[tuple[str, ...]]:
    lines = (ROOT / "billing" / "README.md").read_text(encoding="utf-8").splitlines()
    return [match.groups() for line in lines if (match := _ROW.match(line))]


class TestReadme:
    def test_has_a_worked_table(self):
        assert len(rows_of_the_readme()) == 7
        assert {row[2] for row in rows_of_the_readme()} == {"usd", "jpy", "kwd"}

    @pytest.mark.parametrize("row", rows_of_the_readme())
    def test_rounds_as_its_table_says(self, row):
        rate, currency = Decimal(row[0]), row[2]
        bought, price, delivered, fee_bp, *result = (int(row[n]) for n in (1, 3, 4, 5, 6, 7, 8, 9))
        assert amount_for(rate=rate, gpu_seconds=bought, currency=currency) == Money(
            price, currency
        )
        amounts = amounts_of(
            bought_minor=price,
            delivered=Fraction(delivered, bought),
            fee_basis_points=fee_bp,
        )
        assert [amounts.earned, amounts.fee, amounts.owner, amounts.refunded] == result


class TestMoney:
    @pytest.mark.parametrize(
        ("money", "text"),
        [
            (Money(1250, "usd"), "12.50 USD"),
            (Money(-5, "usd"), "-0.05 USD"),
            (Money(1250, "jpy"), "1250 JPY"),
            (Money(1250, "kwd"), "1.250 KWD"),
            (Money(10**17, "usd"), "1000000000000000.00 USD"),
        ],
    )
    def test_is_written_with_its_currencys_digits(self, money, text):
        assert str(money) == text

    def test_adds_and_subtracts(self):
        assert Money(5, "usd") + Money(7, "usd") - Money(2, "usd") == Money(10, "usd")

    def test_refuses_to_mix_currencies(self):
        with pytest.raises(AssertionError):
            Money(5, "usd") + Money(5, "eur")

    @pytest.mark.parametrize("amount", [1.0, True, "1", Decimal(1), None])
    def test_is_made_of_integers_alone(self, amount):
        with pytest.raises(AssertionError):
            Money(amount, "usd")


class TestCurrencyExponent:
    @pytest.mark.parametrize(
        ("currency", "digits"), [("usd", 2), ("jpy", 0), ("kwd", 3), ("eur", 2)]
    )
    def test_knows_the_currencies(self, currency, digits):
        assert currency_exponent(currency) == digits

    @pytest.mark.parametrize("currency", ["USD", "us", "gpu_second", "usd\n"])
    def test_refuses_what_is_no_currency(self, currency):
        with pytest.raises(AssertionError):
            currency_exponent(currency)


class TestRounding:
    @pytest.mark.parametrize(
        ("value", "rounded"),
        [
            ("0.5", 0),
            ("1.5", 2),
            ("2.5", 2),
            ("-0.5", 0),
            ("0.51", 1),
            ("2.4999999999999999999", 2),
        ],
    )
    def test_goes_to_the_even_neighbour_from_halfway(self, value, rounded):
        assert round_half_even(Fraction(value)) == rounded

    @given(st.integers(), st.integers(min_value=1, max_value=10**9))
    def test_is_that_of_the_standard_library(self, numerator, denominator):
        assert divide_half_even(numerator, denominator) == round(Fraction(numerator, denominator))

    @given(st.decimals(min_value=-(10**6), max_value=10**6, places=6))
    def test_to_a_quantum_is_that_of_decimals(self, value):
        cent = Decimal("0.01")
        rounded = round_to(Fraction(value), quantum=cent)
        assert rounded == value.quantize(cent, rounding=ROUND_HALF_EVEN)
        assert rounded.as_tuple().exponent == -2

    @given(rate=st.decimals("0.000001", "99999", places=6), seconds=st.integers(1, 10**12))
    def test_of_a_price_is_at_most_half_a_unit_off(self, rate, seconds):
        exact = Fraction(rate) * seconds / 36
        amount = amount_for(rate=rate, gpu_seconds=seconds, currency="usd").amount_minor
        assert abs(amount - exact) <= Fraction(1, 2)

    @pytest.mark.parametrize(
        ("rate", "text"),
        [
            ("2.35294117", "2.352941"),
            ("2.4375", "2.437500"),
            ("0.0000005", "0.000000"),
            ("99999", "99999.000000"),
        ],
    )
    def test_of_a_rate_keeps_six_places(self, rate, text):
        assert format_rate(Decimal(rate)) == text
        assert quantize_rate(Decimal(text)) == Decimal(text)


class TestSplit:
    @given(total=AMOUNTS, weights=WEIGHTS)
    def test_adds_up_and_gives_nobody_a_negative_part(self, total, weights):
        parts = split_by_weights(total_minor=total, weights=weights)
        assert sum(parts) == total
        assert min(parts) >= 0
        assert len(parts) == len(weights)

    @given(total=AMOUNTS, weights=WEIGHTS)
    def test_is_less_than_one_unit_away_from_the_exact_part(self, total, weights):
        whole = sum(weights)
        for part, weight in zip(
            split_by_weights(total_minor=total, weights=weights), weights, strict=True
        ):
            assert abs(part - Fraction(total * weight, whole)) <= 1

    @given(total=AMOUNTS, weights=WEIGHTS, data=st.data())
    def test_does_not_depend_on_how_weights_are_batched(self, total, weights, data):
        cut = data.draw(st.integers(0, len(weights)))
        parts = split_by_weights(total_minor=total, weights=weights)
        batched = split_by_weights(
            total_minor=total, weights=[sum(weights[:cut]), sum(weights[cut:])]
        )
        assert batched == [sum(parts[:cut]), sum(parts[cut:])]

    @given(total=AMOUNTS, whole=st.integers(1, 10**9))
    def test_gives_all_for_all_and_nothing_for_nothing(self, total, whole):
        assert share_of(total_minor=total, part=whole, whole=whole) == total
        assert share_of(total_minor=total, part=0, whole=whole) == 0

    @pytest.mark.parametrize(("part", "whole"), [(-1, 1), (2, 1), (0, 0)])
    def test_refuses_a_share_that_is_none(self, part, whole):
        with pytest.raises(AssertionError):
            share_of(total_minor=1, part=part, whole=whole)
