"""Price tables: what a window costs by them, and how the next version comes about."""

import datetime as dt
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import numpy as np
import pytest
from django.db import IntegrityError, connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from agents.models import Node
from marketplace.core.money import Money
from marketplace.core.windows import Window, to_instant, to_seconds
from marketplace.models import Listing
from marketplace.states import Tier
from scheduler.lots import GpusAtFloor
from scheduler.models import PriceVersion
from scheduler.pool_keys import PoolKey
from scheduler.prices import PriceTable, refresh, tables
from scheduler.prices.packed import pack, unpack
from scheduler.prices.tables import floors_only
from scheduler.states import PriceCause
from tests.scheduler.factories import (
    MODEL,
    NOW,
    REGION,
    hours,
    make_listing,
    make_node,
    make_organization,
    make_pool,
    make_reservation,
    seconds,
    window_in,
)

KEY = PoolKey(gpu_model_id=MODEL, region=REGION, tier=Tier.FIRM)
FIRST = to_seconds(NOW)


def a_table(*rates: int, base: int = 2_000_000, fee: int = 0) -> PriceTable:
    """Return a table of some hours from NOW on, in micros."""
    vector = np.array(rates, dtype=np.int64)
    full = np.full(len(rates), 10, dtype=np.int64)
    return PriceTable(
        id="prc_1",
        key=KEY,
        number=7,
        rule_version=3,
        method="small_pool",
        method_version=1,
        fee_basis_points=fee,
        base_micros=base,
        made_at=NOW,
        first_hour_seconds=FIRST,
        rate_micros=vector,
        target_micros=vector,
        other_tier_micros=vector // 2,
        fitting_basis_points=full * 0 - 1,
        sold=full // 2,
        offered=full,
    )


def refreshed(at: dt.datetime = NOW) -> PriceTable:
    """Run the tick and return the table that is then in force; machines have just reported."""
    Node.objects.update(last_report_at=at)
    refresh.refresh_due(at=at)
    return tables(keys=[KEY], at=at)[KEY]


class TestVersions:
    @pytest.mark.django_db
    def test_are_changed_by_nobody(self) -> None:
        make_pool()
        refresh.refresh_due(at=NOW)

        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            PriceVersion.objects.update(base_micros=1)

        assert PriceVersion.objects.get().base_micros == 2_352_942


class TestWindow:
    def test_costs_the_sum_of_its_hours(self) -> None:
        window = Window(NOW + seconds(1800), NOW + hours(2))

        price = a_table(2_000_000, 3_000_000).price(
            window=window, floors=[GpusAtFloor(Decimal(1), 4)], currency="usd"
        )

        assert price.total == Money(1600, "usd")  # 4 × (½ × 2 + 1 × 3)
        assert price.rate == Decimal("2.666667")
        assert price.lots.amount(window=window, currency="usd") == price.total
        assert price.lots.mean_rate == price.rate

    def test_never_costs_less_than_the_floor_after_the_fee(self) -> None:
        price = a_table(2_000_000, fee=1500).price(
            window=window_in(0), floors=[GpusAtFloor(Decimal(2), 1)], currency="usd"
        )

        assert price.rate == Decimal("2.352942")
        assert price.rate * Decimal("0.85") >= 2

    def test_before_and_after_the_table_costs_as_its_ends(self) -> None:
        table = a_table(2_000_000, 3_000_000)

        for starts_in, rate in ((-5, 2), (1, 3), (500, 3)):
            price = table.price(
                window=window_in(starts_in, length=1),
                floors=[GpusAtFloor(Decimal(1), 1)],
                currency="usd",
            )
            assert price.rate == rate

    @given(
        rates=st.lists(st.integers(1, 10**11), min_size=1, max_size=5),
        start=st.integers(-7200, 30_000),
        length=st.integers(1, 20_000),
        floor=st.decimals(min_value="0.000001", max_value="99999", places=6),
        fee=st.integers(0, 9000),
    )
    def test_rates_of_many_starts_are_those_of_each_window(
        self, rates: list[int], start: int, length: int, floor: Decimal, fee: int
    ) -> None:
        table = a_table(*rates, fee=fee)
        begins = FIRST + start
        window = Window(to_instant(begins), to_instant(begins + length))

        found = table.window_rates(
            starts=np.array([begins, begins + 1], dtype=np.int64),
            seconds=length,
            floor_rates=[floor],
        )

        price = table.price(window=window, floors=[GpusAtFloor(floor, 3)], currency="usd")
        assert Decimal(int(found[0, 0])).scaleb(-6) == price.rate == price.lots.mean_rate
        assert price.total == price.lots.amount(window=window, currency="usd")

    def test_of_half_a_year_at_the_highest_rates_does_not_overflow(self) -> None:
        table = a_table(99_999_000_000, fee=9000)

        rates = table.window_rates(
            starts=np.array([FIRST], dtype=np.int64),
            seconds=180 * 86_400,
            floor_rates=[Decimal(99_999)],
        )

        assert rates.tolist() == [[999_990_000_000]]

    @given(rates=st.lists(st.integers(1, 10**9), min_size=1, max_size=6), fee=st.integers(0, 9000))
    def test_is_explained_by_figures_that_add_up(self, rates: list[int], fee: int) -> None:
        price = a_table(*rates, fee=fee).price(
            window=window_in(0, length=5), floors=[GpusAtFloor(Decimal("1.5"), 1)], currency="usd"
        )

        told = {
            name: Decimal(str(text)) for name, text in price.breakdown.items() if "rate" in name
        }
        parts = ("base_rate", "scarcity_rate", "smoothing_rate", "floor_uplift_rate")
        assert sum(told[name] for name in parts) == told["rate"] == price.rate
        assert told["platform_fee_rate"] + told["owner_rate"] == price.rate
        assert told["other_tier_rate"] + told["certainty_premium_rate"] == price.rate

    def test_names_the_hour_that_drives_it_and_the_identifiers_of_its_inputs(self) -> None:
        told = (
            a_table(2_000_000, 3_000_000)
            .price(window=window_in(0), floors=[GpusAtFloor(Decimal(1), 1)], currency="usd")
            .breakdown
        )

        assert told["driving_hour"] == "2026-11-23T13:00:00Z"
        assert told["reason"] == (
            "Mon 23 Nov 13:00 UTC is the dearest hour: 50 % of it is sold, and it costs 1.50 times the "
            "base rate."
        )
        assert (told["price_table"], told["price_table_number"]) == ("prc_1", 7)
        assert told["rule_version"] == 3

    def test_costs_the_owners_floor_where_there_is_no_table_yet(self) -> None:
        price = floors_only(KEY).price(
            window=window_in(0), floors=[GpusAtFloor(Decimal(2), 1)], currency="usd"
        )

        assert price.rate == Decimal("2.352942")
        assert price.price_table_id is None
        assert price.breakdown["scarcity_rate"] == "0.000000"

    def test_is_not_cheaper_in_parts(self) -> None:
        table = a_table(2_345_678, 3_333_333, 2_222_222)
        whole = table.price(
            window=window_in(0), floors=[GpusAtFloor(Decimal(1), 7)], currency="usd"
        )
        parts = [
            table.price(window=window, floors=[GpusAtFloor(Decimal(1), 1)], currency="usd")
            for window in (window_in(0, length=1), window_in(1, length=1))
            for _ in range(7)
        ]

        # Half a minor unit for each part, and half a one for the whole.
        assert sum(p.total.amount_minor for p in parts) >= whole.total.amount_minor - 7.5


class TestPacked:
    @given(
        st.integers(1, 40).flatmap(
            lambda width: st.lists(
                st.lists(st.integers(-(2**62), 2**62), min_size=width, max_size=width),
                min_size=1,
                max_size=4,
            )
        )
    )
    def test_rows_come_back_as_they_were(self, rows: list[list[int]]) -> None:
        vectors = np.array(rows, dtype=np.int64)
        assert np.array_equal(unpack(pack(vectors), hours=vectors.shape[1]), vectors)


@pytest.mark.django_db
class TestRefresh:
    def test_prices_an_idle_pool_at_its_base(self) -> None:
        make_pool()

        table = refreshed()

        assert set(table.rate_micros.tolist()) == {2_352_942}
        assert (table.number, table.base_micros) == (1, 2_352_942)

    def test_raises_sold_hours_by_no_more_than_a_step_an_hour(self) -> None:
        make_pool()
        make_reservation(gpus=4, window=window_in(24))

        seen = [int(refreshed(NOW + hours(n)).rate_micros[24 - n]) for n in range(9)]

        # .93 × 1.5 × the base is 3.282356, seven steps of 5 % from the base.
        assert seen[0] == 2_470_589
        assert seen[-1] == seen[-2] == 3_282_356
        assert all(later <= earlier * 1.05 for earlier, later in itertools.pairwise(seen))

    def test_allows_one_step_a_clock_hour_however_often_it_runs(self) -> None:
        make_pool()
        refreshed()
        found = []
        for minute in (5, 10, 20):
            at = NOW + seconds(60 * minute)
            Node.objects.update(last_report_at=at)
            make_reservation(gpus=2, window=window_in(24), at=at)
            refresh.refresh_after_bookings(at=at)
            found.append(int(tables(keys=[KEY], at=at)[KEY].rate_micros[24]))

        assert found == [2_470_589] * 3
        assert PriceVersion.objects.count() == 2  # what changes nothing is not stored

    def test_runs_twice_an_hour_without_a_trace(self) -> None:
        make_pool()

        assert refreshed(NOW).number == 1
        assert refreshed(NOW + seconds(600)).number == 1
        assert refreshed(NOW + hours(1)).number == 2

    def test_waits_for_the_hour_unless_much_was_booked(self) -> None:
        make_pool(nodes=13)
        refreshed()
        Node.objects.update(last_report_at=NOW + seconds(200))
        make_reservation(gpus=2, window=window_in(24), at=NOW + seconds(60))
        assert refresh.refresh_after_bookings(at=NOW + seconds(120)) == 0

        make_reservation(gpus=40, window=window_in(24), at=NOW + seconds(150))
        assert refresh.refresh_after_bookings(at=NOW + seconds(180)) == 1

        version = PriceVersion.objects.latest("number")
        assert (version.cause, version.number) == (PriceCause.BOOKING, 2)
        assert refresh.refresh_after_bookings(at=NOW + seconds(200)) == 0

    def test_counts_no_missed_hour_twice(self) -> None:
        make_pool()
        make_reservation(gpus=8, window=window_in(24))
        refreshed()

        late = refreshed(NOW + hours(5))

        assert int(late.rate_micros[19]) == 2_594_118  # the second step, not the sixth

    def test_lets_nothing_fall_that_is_near(self) -> None:
        make_pool()
        sold = make_reservation(gpus=8, window=window_in(10, length=6))
        for n in range(4):
            before = refreshed(NOW + hours(n))
        sold.allocations.update(live=False)

        after = refreshed(NOW + hours(4))

        assert int(after.rate_micros[11]) == int(before.rate_micros[12])  # 15 h, 11 ahead: kept
        assert int(after.rate_micros[6]) == int(before.rate_micros[7])

    def test_falls_by_a_hundredth_an_hour_farther_away(self) -> None:
        make_pool()
        sold = make_reservation(gpus=8, window=window_in(100))
        refreshed()
        sold.allocations.update(live=False)

        after = refreshed(NOW + hours(1))

        assert int(after.rate_micros[99]) == 2_470_589 - 24_705

    def test_prices_the_reclaimable_tier_off_the_firm_curve(self) -> None:
        owner = make_pool()
        make_listing(
            owner=owner, tier="reclaimable", reclaim_notice_seconds=60, floor_rate=Decimal(1)
        )
        make_reservation(gpus=4, window=window_in(24))
        refreshed()

        found = tables(
            keys=[KEY, PoolKey(gpu_model_id=MODEL, region=REGION, tier=Tier.RECLAIMABLE)], at=NOW
        )

        firm, reclaimable = sorted(found.values(), key=lambda t: t.key.tier)
        assert set(reclaimable.rate_micros[:24].tolist()) == {1_176_471}  # idle: the floor
        # A discount of 40 % and, a day ahead, half of a twentieth of 30 %:
        # 1.176471 + (.5925 × 2.470589 − 1.176471) × ¼
        assert int(reclaimable.target_micros[24]) == 1_248_309
        assert np.array_equal(reclaimable.other_tier_micros, firm.rate_micros)

    def test_takes_the_floor_that_half_of_the_gpus_do_not_exceed_as_base(self) -> None:
        make_pool(nodes=2)
        for floor in (1, 3):
            owner = make_organization()
            make_node(owner=owner)
            make_listing(owner=owner, floor_rate=Decimal(floor))

        assert refreshed().base_micros == 2_352_942

    def test_stores_what_it_was_made_of(self) -> None:
        make_pool()
        make_reservation(gpus=3, window=window_in(24))
        for n in range(3):
            refreshed(NOW + hours(n))

        for version in PriceVersion.objects.all():
            inputs = refresh.inputs_of(version)
            rates = unpack(bytes(version.rates), hours=version.hours)
            assert np.array_equal(refresh.vectors_of(inputs).rates, rates[0])
            assert int(inputs.sold.sum()) == 6

    def test_makes_no_version_of_a_pool_that_is_not_on_offer(self) -> None:
        make_pool()
        Listing.objects.update(fabric="elsewhere")

        refreshed()

        assert not PriceVersion.objects.exists()

    def test_leaves_its_neighbours_when_one_pool_cannot_be_priced(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_pool()
        owner = make_organization()
        make_node(owner=owner, region="us-east")
        make_listing(owner=owner, region="us-east")
        plain = refresh.vectors_of

        def refuse_one(inputs: refresh.Inputs) -> refresh.Vectors:
            if inputs.key.region == REGION:
                raise ZeroDivisionError
            return plain(inputs)

        monkeypatch.setattr(refresh, "vectors_of", refuse_one)
        refreshed()

        assert PriceVersion.objects.get().region == "us-east"

    def test_is_read_as_of_an_instant(self) -> None:
        make_pool()
        refreshed(NOW)
        refreshed(NOW + hours(1))

        assert tables(keys=[KEY], at=NOW)[KEY].number == 1
        assert tables(keys=[KEY], at=NOW - seconds(1))[KEY].id == ""
        assert PriceVersion.objects.filter(cause=PriceCause.HOUR).count() == 2


@pytest.mark.django_db(transaction=True)
class TestRace:
    def test_of_two_workers_makes_one_version(self) -> None:
        make_pool()
        barrier = threading.Barrier(4)

        def work() -> int:
            barrier.wait()
            try:
                return refresh.refresh_due(at=NOW)
            finally:
                connection.close()

        with ThreadPoolExecutor(4) as pool:
            made = [each.result() for each in [pool.submit(work) for _ in range(4)]]

        assert sum(made) == 1
        assert PriceVersion.objects.get().number == 1
