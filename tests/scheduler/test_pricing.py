"""The first price: the worked example of the README, and what must hold for every input."""

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from marketplace.core.money import Money
from scheduler.pricing import MULTIPLIER_CAP, PricedWindow, PriceInputs, quote_rate

README = Path(__file__).parents[2] / "scheduler" / "README.md"
floors = st.decimals(min_value="0.000001", max_value="99999", places=6)
fees = st.integers(min_value=0, max_value=9000)
shares = st.integers(min_value=0, max_value=10**6)


def priced(
    *, floor: Decimal, fee: int, booked: int, listed: int = 10**6, gpus: int = 1
) -> PricedWindow:
    return quote_rate(
        PriceInputs(
            floor_rate=floor,
            fee_basis_points=fee,
            booked_gpu_seconds=booked,
            listed_gpu_seconds=listed,
            gpus=gpus,
            window_seconds=7200,
            currency="usd",
        )
    )


class TestWorkedExample:
    def test_is_the_one_in_the_readme(self) -> None:
        price = priced(floor=Decimal("2.00"), fee=1500, booked=4, listed=8, gpus=4)

        assert price.breakdown == {
            "method": "floor_times_forward_use",
            "method_version": 1,
            "floor_rate": "2.000000",
            "fee_basis_points": 1500,
            "base_rate": "2.352942",
            "booked_share": "0.500000",
            "multiplier": "1.500000000000",
            "multiplier_cap": "3",
            "rate": "3.529412",
            "gpu_seconds": 28_800,
            "total_minor": 2_824,
            "currency": "usd",
        }
        text = README.read_text()
        for number in ("2.00 / (1 − 0.15)", "2.352942", "1 + 2 × 0.5²", "3.529412", "28.24"):
            assert number in text


class TestEveryPrice:
    @given(floor=floors, fee=fees, booked=shares)
    def test_leaves_the_owner_the_floor(self, floor: Decimal, fee: int, booked: int) -> None:
        rate = priced(floor=floor, fee=fee, booked=booked).rate

        assert Fraction(rate) * (10_000 - fee) / 10_000 >= Fraction(floor)
        assert rate == round(rate, 6)

    @given(floor=floors, fee=fees, booked=st.integers(min_value=0, max_value=10**9))
    def test_stays_under_the_cap(self, floor: Decimal, fee: int, booked: int) -> None:
        rate = priced(floor=floor, fee=fee, booked=booked).rate

        cap = Fraction(floor) * 10_000 / (10_000 - fee) * Fraction(MULTIPLIER_CAP)
        assert Fraction(rate) < cap + Fraction(1, 10**6)

    @given(floor=floors, fee=fees, booked=st.tuples(shares, shares))
    def test_never_falls_as_more_is_booked(
        self, floor: Decimal, fee: int, booked: tuple[int, int]
    ) -> None:
        fewer, more = sorted(booked)

        cheaper = priced(floor=floor, fee=fee, booked=fewer).rate
        assert cheaper <= priced(floor=floor, fee=fee, booked=more).rate

    @given(floor=floors, fee=fees, booked=shares)
    def test_can_be_recomputed_from_its_breakdown(
        self, floor: Decimal, fee: int, booked: int
    ) -> None:
        price = priced(floor=floor, fee=fee, booked=booked)
        inputs = price.breakdown

        share = Fraction(str(inputs["booked_share"]))
        exact = Fraction(str(inputs["floor_rate"])) * 10_000 / (10_000 - fee) * (1 + 2 * share**2)
        assert Fraction(price.rate) - Fraction(1, 10**6) < exact <= Fraction(price.rate)
        assert price.total == Money(int(str(inputs["total_minor"])), "usd")

    def test_is_the_base_where_nothing_is_listed_or_booked(self) -> None:
        assert priced(floor=Decimal(1), fee=0, booked=0, listed=0).rate == Decimal("1.000000")
