"""The small pool's fallback, the reclaimable tier, the limits they share, and the words on a quote."""

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from scheduler.pricing import Rule, RuleInvalid, explain, reclaimable, small_pool
from scheduler.pricing.limits import UNKNOWN, aligned

HOURS = 48
BASE = 2_000_000
RULE = Rule(reclaimable_discount=Decimal("0.3"), reclaimable_discount_max=Decimal("0.6"))

shares = arrays.arrays(np.int64, HOURS, elements=st.integers(0, 10_000))
used = arrays.arrays(np.int64, HOURS, elements=st.integers(0, 1_100))
rates = arrays.arrays(np.int64, HOURS, elements=st.integers(BASE, 4 * BASE))


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


class TestSmallPool:
    def test_follows_the_documented_formula(self) -> None:
        # 0.93 × 2.00 × (1 + 0), (1 + 1/2), (1 + 1); nothing on offer counts as empty
        targets = small_pool.targets(
            base_micros=BASE, capacity=ints(8, 8, 8, 0), sold=ints(0, 4, 8, 0), rule=RULE
        )

        assert targets.tolist() == [1_860_000, 2_790_000, 3_720_000, 1_860_000]


class TestReclaimable:
    def vector(
        self,
        *,
        firm: np.ndarray,
        in_use: np.ndarray,
        likelihood: np.ndarray,
        opening: np.ndarray | None = None,
        floor: int = 850_000,
    ) -> np.ndarray:
        hours = len(firm)
        return reclaimable.refresh(
            firm_micros=firm,
            base_micros=BASE,
            floor_micros=np.full(hours, floor, dtype=np.int64),
            capacity=np.full(hours, 1_000, dtype=np.int64),
            used=in_use,
            likelihood=likelihood,
            rule=RULE,
            opening=np.zeros(hours, dtype=np.int64) if opening is None else opening,
        ).rate_micros

    def test_follows_the_documented_formula(self) -> None:
        # floor 0.85 ÷ 0.85 = 1.00; firm 4.00 × 0.7 = 2.80; 1.00 + 1.80 × 0.5² = 1.45; full: 2.80
        rate = self.vector(
            firm=ints(4_000_000, 4_000_000, 4_000_000),
            in_use=ints(0, 500, 1_000),
            likelihood=ints(0, 0, 0),
        )

        assert rate.tolist() == [1_000_000, 1_450_000, 2_800_000]

    def test_costs_least_where_a_reclaim_is_certain_and_near(self) -> None:
        # d = 0.3 + 0.3 × likelihood × 24 ÷ (24 + hours until)
        discounts = reclaimable.discounts(likelihood=np.full(25, 10_000), rule=RULE)
        assert discounts[[0, 24]].tolist() == [6_000, 4_500]

        unlikely = reclaimable.discounts(likelihood=np.zeros(25, dtype=np.int64), rule=RULE)
        assert set(unlikely.tolist()) == {3_000}

    def test_decays_to_the_floor_of_an_idle_hour_and_stays(self) -> None:
        rate = np.full(HOURS, 2_500_000, dtype=np.int64)
        nothing = np.zeros(HOURS, dtype=np.int64)
        for _ in range(12):
            rate = self.vector(
                firm=np.full(HOURS, BASE, dtype=np.int64),
                in_use=nothing,
                likelihood=nothing,
                opening=rate,
            )
        assert set(rate.tolist()) == {1_000_000}

    @given(firm=rates, in_use=used, likelihood=shares, floor=st.integers(1, BASE))
    def test_lies_between_the_floor_and_the_discounted_firm_rate(
        self, firm: np.ndarray, in_use: np.ndarray, likelihood: np.ndarray, floor: int
    ) -> None:
        rate = self.vector(firm=firm, in_use=in_use, likelihood=likelihood, floor=floor)

        assert (rate * (10_000 - 1_500) >= floor * 10_000).all()
        lowest = max(-(-floor * 10_000 // 8_500), BASE // 4)
        assert (rate <= np.maximum(firm * 7 // 10, lowest)).all()

    @given(firm=rates, in_use=used, likelihood=shares, more=used, likelier=shares)
    def test_never_falls_with_use_nor_rises_with_the_risk(
        self,
        firm: np.ndarray,
        in_use: np.ndarray,
        likelihood: np.ndarray,
        more: np.ndarray,
        likelier: np.ndarray,
    ) -> None:
        rate = self.vector(firm=firm, in_use=in_use, likelihood=likelihood)

        assert (self.vector(firm=firm, in_use=in_use + more, likelihood=likelihood) >= rate).all()
        riskier = np.maximum(likelihood, likelier)
        assert (self.vector(firm=firm, in_use=in_use, likelihood=riskier) <= rate).all()


class TestAligned:
    def test_shifts_a_stored_vector_to_the_running_hour(self) -> None:
        stored = ints(10, 11, 12, 13)

        assert aligned(micros=stored, first_hour=100, to_first_hour=102, hours=4).tolist() == [
            12,
            13,
            UNKNOWN,
            UNKNOWN,
        ]
        assert aligned(micros=stored, first_hour=100, to_first_hour=99, hours=3).tolist() == [
            UNKNOWN,
            10,
            11,
        ]
        assert aligned(micros=stored, first_hour=100, to_first_hour=200, hours=2).tolist() == [
            UNKNOWN,
            UNKNOWN,
        ]


class TestRule:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"cap_multiple": 0},
            {"fee_basis_points": 10_000},
            {"up_per_hour": 0},
            {"reclaimable_discount": RULE.reclaimable_discount_max * 2},
            {"slow_hours": 24, "fast_hours": 72},
        ],
    )
    def test_refuses_what_lies_outside_its_bounds(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(RuleInvalid):
            Rule(**wrong)


class TestWords:
    def test_name_the_dearest_hour_and_why(self) -> None:
        # 2026-11-27 14:00 UTC is hour 498,830
        text = explain.words(
            hour=498_830,
            facts=explain.HourFacts(
                rate_micros=3_000_000,
                base_micros=BASE,
                on_offer=1_000,
                sold=815,
                fitting_basis_points=4_350,
            ),
        )
        assert text == (
            "Fri 27 Nov 14:00 UTC is the dearest hour: 81 % of it is sold, there is room for 43 % of the"
            " demand expected for it, and it costs 1.50 times the base rate."
        )

    def test_do_not_speak_of_a_forecast_where_there_is_none(self) -> None:
        text = explain.words(
            hour=498_830,
            facts=explain.HourFacts(
                rate_micros=BASE, base_micros=BASE, on_offer=8, sold=4, fitting_basis_points=-1
            ),
        )
        assert "demand" not in text
        assert "50 % of it is sold" in text
