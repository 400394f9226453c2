"""The firm price: the documented formula with numbers worked out by hand, and its laws for every input."""

import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from scheduler.pricing import Rule
from scheduler.pricing.clearing import Demand, Supply, Vector, refresh
from scheduler.pricing.limits import UNKNOWN, gross_floors

HOURS = 24
BASE = 2_000_000  # micros per GPU-hour
RULE = Rule()
# What the examples worked out by hand reckon with.
WORKED = Rule(caution=Decimal(2), sold_slope=Decimal(0))

counts = st.integers(min_value=0, max_value=3_000)
rates = st.integers(min_value=BASE, max_value=4 * BASE)
per_hour = arrays.arrays(np.int64, HOURS, elements=counts)
demands = arrays.arrays(
    np.float64, HOURS, elements=st.floats(min_value=0, max_value=1e5, allow_nan=False)
)
openings = arrays.arrays(np.int64, HOURS, elements=st.one_of(st.just(UNKNOWN), rates))
floors = st.lists(
    st.integers(min_value=1, max_value=3 * BASE), min_size=1, max_size=4, unique=True
).map(lambda each: np.array(sorted(each), dtype=np.int64))


@st.composite
def supplies(draw: st.DrawFn) -> Supply:
    levels = draw(floors)
    capacity = draw(arrays.arrays(np.int64, (len(levels), HOURS), elements=counts))
    return Supply(base_micros=BASE, floor_micros=levels, capacity=capacity, sold=draw(per_hour))


def one_hour(*, room: int, demand: float, opening: int = UNKNOWN, floor: int = 1) -> Vector:
    """Price one hour of a pool of 1,024 GPUs, 96 % of which are reckoned with, and so many of these left."""
    return refresh(
        supply=Supply(
            base_micros=BASE,
            floor_micros=np.array([floor], dtype=np.int64),
            capacity=np.array([[1_024]], dtype=np.int64),
            sold=np.array([983 - room], dtype=np.int64),
        ),
        demand=Demand(gpus=np.array([demand]), size_ratio=16.0),
        rule=WORKED,
        opening=np.array([opening], dtype=np.int64),
    )


def demand_of(gpus: np.ndarray) -> Demand:
    return Demand(gpus=gpus, size_ratio=12.0)


class TestWorkedExample:
    """k = 16 and z = 2 give z√k = 8; 65 GPUs left give x = (−8 + √(64 + 260)) ÷ 2 = 5, and x² = 25."""

    def test_sells_at_the_median_where_half_the_demand_fits(self) -> None:
        # q = 25 ÷ 50 = 0.5; Φ⁻¹(0.5) = 0; p* = 1.295 × 2.00 = 2.59
        vector = one_hour(room=65, demand=50.0)

        assert vector.target_micros.tolist() == [2_590_000]
        assert vector.fitting_basis_points.tolist() == [5_000]

    def test_asks_one_sigma_more_where_a_sixth_fits(self) -> None:
        # q = 25 ÷ 157.5744 = 0.158655; Φ⁻¹(1 − q) = 1; p* = 2.59 × e^0.5 = 4.270188
        target = one_hour(room=65, demand=157.5744).target_micros[0]

        assert abs(int(target) - 4_270_188) < 30

    def test_stays_at_the_base_where_all_fits(self) -> None:
        assert one_hour(room=65, demand=25.0).target_micros.tolist() == [BASE]

    def test_ends_at_four_times_the_base_where_nothing_is_left(self) -> None:
        assert one_hour(room=0, demand=50.0).target_micros.tolist() == [4 * BASE]

    def test_moves_five_per_cent_up_and_one_per_cent_down_an_hour(self) -> None:
        rising = one_hour(room=0, demand=50.0, opening=2_000_000)
        assert rising.rate_micros.tolist() == [2_100_000]

        far = refresh(
            supply=Supply(
                base_micros=BASE,
                floor_micros=np.array([1], dtype=np.int64),
                capacity=np.full((1, 14), 1_024, dtype=np.int64),
                sold=np.zeros(14, dtype=np.int64),
            ),
            demand=demand_of(np.zeros(14)),
            rule=RULE,
            opening=np.full(14, 3_000_000, dtype=np.int64),
        )
        assert far.rate_micros.tolist() == [3_000_000] * 12 + [2_970_000] * 2


class TestOwnersFloors:
    def supply(self, *, sold: int) -> Supply:
        """Offer 300 GPUs at 1.70 and 300 at 3.40: 2.00 and 4.00 with the fee."""
        return Supply(
            base_micros=BASE,
            floor_micros=np.array([1_700_000, 3_400_000], dtype=np.int64),
            capacity=np.array([[300], [300]], dtype=np.int64),
            sold=np.array([sold], dtype=np.int64),
        )

    def target(self, *, sold: int, demand: float = 0.0) -> int:
        vector = refresh(
            supply=self.supply(sold=sold),
            demand=demand_of(np.array([demand])),
            rule=WORKED,
            opening=np.array([UNKNOWN], dtype=np.int64),
        )
        return int(vector.target_micros[0])

    def test_are_used_from_the_cheapest_on(self) -> None:
        assert self.target(sold=0) == 2_000_000
        assert self.target(sold=287) == 2_000_000
        assert self.target(sold=288) == 4_000_000
        assert self.target(sold=600) == 8_000_000

    def test_bring_dearer_owners_in_only_at_their_price(self) -> None:
        # The cheap 300 alone would clear far above 4.00; with the dear ones there is room for all.
        assert self.target(sold=200, demand=400.0) == 4_000_000

    def test_are_paid_in_full_after_the_fee(self) -> None:
        for fee in (0, 1, 1_500, 3_333, 9_000):
            floor = np.array([1, 999_999, 1_700_000], dtype=np.int64)
            gross = gross_floors(floor_micros=floor, fee_basis_points=fee)
            for kept, wanted in zip(gross.tolist(), floor.tolist(), strict=True):
                assert Fraction(kept * (10_000 - fee), 10_000) >= wanted
                assert Fraction((kept - 1) * (10_000 - fee), 10_000) < wanted


class TestEveryVector:
    @given(supply=supplies(), demand=demands, opening=openings)
    def test_lies_between_the_base_and_the_cap(
        self, supply: Supply, demand: np.ndarray, opening: np.ndarray
    ) -> None:
        vector = refresh(supply=supply, demand=demand_of(demand), rule=RULE, opening=opening)

        assert (vector.rate_micros >= BASE).all()
        assert (vector.rate_micros <= 4 * BASE).all()

    @given(supply=supplies(), demand=demands)
    def test_aims_at_no_less_than_the_floor_of_the_cheapest_owner_with_a_gpu_left(
        self, supply: Supply, demand: np.ndarray
    ) -> None:
        target = refresh(
            supply=supply,
            demand=demand_of(demand),
            rule=RULE,
            opening=np.zeros(HOURS, dtype=np.int64),
        ).target_micros

        gross = gross_floors(floor_micros=supply.floor_micros, fee_basis_points=1_500)
        left = np.cumsum(supply.capacity, axis=0) * 96 // 100 > supply.sold
        for hour in range(HOURS):
            if left[:, hour].any():
                marginal = int(gross[left[:, hour].argmax()])
                assert target[hour] >= min(marginal, 4 * BASE)

    @given(supply=supplies(), demand=demands, opening=openings)
    def test_moves_at_most_one_step_an_hour_and_never_falls_near_its_hour(
        self, supply: Supply, demand: np.ndarray, opening: np.ndarray
    ) -> None:
        moved = refresh(
            supply=supply, demand=demand_of(demand), rule=RULE, opening=opening
        ).rate_micros

        known = opening != UNKNOWN
        assert (moved[known] * 100 <= opening[known] * 105).all()
        assert (moved[known] * 100 >= opening[known] * 99).all()
        assert (moved[:12] >= opening[:12]).all()

    @given(supply=supplies(), demand=demands, opening=openings, more=per_hour)
    def test_is_never_cheaper_when_more_is_sold(
        self, supply: Supply, demand: np.ndarray, opening: np.ndarray, more: np.ndarray
    ) -> None:
        fuller = Supply(
            base_micros=BASE,
            floor_micros=supply.floor_micros,
            capacity=supply.capacity,
            sold=supply.sold + more,
        )
        before, after = (
            refresh(supply=each, demand=demand_of(demand), rule=RULE, opening=opening)
            for each in (supply, fuller)
        )

        assert (after.rate_micros >= before.rate_micros).all()
        assert (after.target_micros >= before.target_micros).all()

    @given(supply=supplies(), demand=demands, opening=openings, data=st.data())
    def test_is_never_dearer_when_more_is_offered(
        self, supply: Supply, demand: np.ndarray, opening: np.ndarray, data: st.DataObject
    ) -> None:
        level = data.draw(st.integers(0, len(supply.floor_micros) - 1))
        # An empty hour costs the base and a small pool has another formula: neither is compared here.
        offered = np.maximum(supply.capacity, RULE.small_pool_gpus)
        larger = offered.copy()
        larger[level] += data.draw(per_hour)
        smaller, bigger = (
            refresh(
                supply=Supply(
                    base_micros=BASE,
                    floor_micros=supply.floor_micros,
                    capacity=capacity,
                    sold=supply.sold,
                ),
                demand=demand_of(demand),
                rule=RULE,
                opening=opening,
            )
            for capacity in (offered, larger)
        )

        assert (bigger.rate_micros <= smaller.rate_micros).all()

    @given(supply=supplies(), opening=openings)
    def test_holds_its_laws_without_a_forecast(self, supply: Supply, opening: np.ndarray) -> None:
        one, two = (
            refresh(
                supply=Supply(
                    base_micros=BASE,
                    floor_micros=supply.floor_micros,
                    capacity=supply.capacity,
                    sold=supply.sold + extra,
                ),
                demand=None,
                rule=RULE,
                opening=opening,
            )
            for extra in (0, 5)
        )

        assert (two.rate_micros >= one.rate_micros).all()
        assert (one.rate_micros <= 4 * BASE).all()
        assert (one.fitting_basis_points == -1).all()

    @given(supply=supplies(), demand=demands, opening=openings)
    def test_does_not_move_twice_in_one_clock_hour(
        self, supply: Supply, demand: np.ndarray, opening: np.ndarray
    ) -> None:
        once = refresh(supply=supply, demand=demand_of(demand), rule=RULE, opening=opening)
        again = refresh(
            supply=supply,
            demand=demand_of(demand),
            rule=RULE,
            opening=opening,
            latest=once.rate_micros,
        )

        assert (again.rate_micros == once.rate_micros).all()


class TestSplitting:
    @settings(max_examples=50)
    @given(
        supply=supplies(),
        demand=demands,
        opening=openings,
        parts=st.lists(st.integers(1, 64), min_size=2, max_size=8),
    )
    def test_one_request_into_many_is_never_cheaper(
        self, supply: Supply, demand: np.ndarray, opening: np.ndarray, parts: list[int]
    ) -> None:
        posted = refresh(supply=supply, demand=demand_of(demand), rule=RULE, opening=opening)
        whole = int(posted.rate_micros.sum()) * sum(parts)
        paid, sold, latest = 0, supply.sold, posted.rate_micros
        for gpus in parts:
            paid += int(latest.sum()) * gpus
            sold = sold + gpus
            latest = refresh(
                supply=Supply(
                    base_micros=BASE,
                    floor_micros=supply.floor_micros,
                    capacity=supply.capacity,
                    sold=sold,
                ),
                demand=demand_of(demand),
                rule=RULE,
                opening=opening,
                latest=latest,
            ).rate_micros

        assert paid >= whole

    def test_a_vector_once_made_is_not_moved_by_what_is_sold_from_it(self) -> None:
        supply = Supply(
            base_micros=BASE,
            floor_micros=np.array([1], dtype=np.int64),
            capacity=np.full((1, HOURS), 1_024, dtype=np.int64),
            sold=np.zeros(HOURS, dtype=np.int64),
        )
        opening = np.full(HOURS, BASE, dtype=np.int64)
        posted = refresh(
            supply=supply, demand=demand_of(np.full(HOURS, 100.0)), rule=RULE, opening=opening
        )
        kept = posted.rate_micros.copy()
        supply.sold[:] = 983
        refresh(
            supply=supply,
            demand=demand_of(np.full(HOURS, 100.0)),
            rule=RULE,
            opening=posted.rate_micros,
        )

        assert (posted.rate_micros == kept).all()


class TestSpeed:
    def test_refreshes_a_hundred_pools_of_180_days_in_under_five_seconds(self) -> None:
        hours, levels = 180 * 24, 5
        supply = Supply(
            base_micros=BASE,
            floor_micros=np.arange(1, levels + 1, dtype=np.int64) * 400_000,
            capacity=np.full((levels, hours), 205, dtype=np.int64),
            sold=np.full(hours, 700, dtype=np.int64),
        )
        demand = demand_of(np.full(hours, 300.0))
        opening = np.full(hours, BASE, dtype=np.int64)

        began = time.perf_counter()
        for _ in range(100):
            refresh(supply=supply, demand=demand, rule=RULE, opening=opening)
        assert time.perf_counter() - began < 5
