"""Demand: what counts of what tenants say, and that nobody talks a price up."""

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from django.db.models import F

from marketplace import catalog
from marketplace.models import Organization
from marketplace.states import Tier
from scheduler import demand
from scheduler.models import DemandSample, PriceVersion
from scheduler.pool_keys import PoolKey
from scheduler.prices import refresh
from scheduler.prices.counts import HOURS, PoolCounts
from scheduler.prices.tables import tables
from scheduler.states import DemandKind, PriceCause
from tests.scheduler.factories import (
    MODEL,
    NOW,
    REGION,
    hours,
    make_organization,
    make_pool,
    make_quote,
    reserve,
    window_in,
)

pytestmark = pytest.mark.django_db
KEY = PoolKey(gpu_model_id=MODEL, region=REGION, tier=Tier.FIRM)
GPUS = 512


def say(tenant: Organization, *, at: dt.datetime = NOW, **changes: Any) -> None:
    values: dict[str, Any] = {
        "kind": DemandKind.QUOTE,
        "gpu_model_id": MODEL,
        "region": REGION,
        "tier": Tier.FIRM,
        "window": window_in(30),
        "gpus": 8,
        **changes,
    }
    demand.record(organization=tenant, at=at, **values)


def counted(**filters: Any) -> int:
    demand.count_due(at=NOW + hours(100))
    return DemandSample.objects.filter(counted_gpus__gt=0, **filters).count()


def a_large_pool() -> PoolCounts:
    """Return a pool of which half is sold throughout, at one floor."""
    full = np.full(HOURS, GPUS, dtype=np.int64)
    return PoolCounts(
        key=KEY,
        first_hour=int(NOW.timestamp()) // 3600,
        floors=(Decimal(2),),
        middle_floor=Decimal(2),
        offered=full[None],
        sold=full // 2,
        gpus=GPUS,
    )


def four_weeks_of_demand(tenants: int = 40) -> None:
    """Let many tenants ask for as much as about half of the pool holds, for four weeks."""
    catalog.seed_gpu_models()
    buyers = [make_organization() for _ in range(tenants)]
    rows = []
    first = int(NOW.timestamp()) // 3600 - 4 * 168
    for hour in range(first, first + 4 * 168):
        for n in range(2):
            start = hour + 1 + (7 * hour + n) % 60
            rows.append(
                DemandSample(
                    organization=buyers[(hour + 13 * n) % tenants],
                    gpu_model_id=MODEL,
                    region=REGION,
                    tier=Tier.FIRM,
                    kind=DemandKind.QUOTE,
                    asked_at=dt.datetime.fromtimestamp(hour * 3600, tz=dt.UTC),
                    asked_hour=hour,
                    start_hour=start,
                    end_hour=start + 24,
                    gpus=8,
                    counted_gpus=8,
                )
            )
    DemandSample.objects.bulk_create(rows)


def targets() -> Any:
    """Refresh the large pool and return where its prices would stand without limits."""
    refresh.refresh(at=NOW, cause=PriceCause.HOUR, found=[a_large_pool()])
    table = tables(keys=[KEY], at=NOW)[KEY]
    assert table.method == "forward_clearing_price"
    return table.target_micros


class TestRecord:
    def test_hears_one_tenant_once_an_hour_for_one_window(self) -> None:
        make_pool()
        tenant = make_organization()

        for _ in range(3):
            say(tenant)
        say(tenant, at=NOW + hours(1))
        say(tenant, window=window_in(31))

        assert DemandSample.objects.count() == 3

    def test_stores_no_more_than_a_tenant_may_say_in_an_hour(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_pool()
        monkeypatch.setattr(demand, "SAMPLES_PER_TENANT_HOUR_MAX", 5)
        tenant = make_organization()

        for n in range(20):
            say(tenant, window=window_in(30 + n))
        say(make_organization())

        assert DemandSample.objects.filter(organization=tenant).count() == 5
        assert DemandSample.objects.count() == 6

    def test_samples_a_quote_and_its_reservation(self) -> None:
        make_pool()

        reserve(make_quote(gpus=4))

        kinds = sorted(DemandSample.objects.values_list("kind", flat=True))
        assert kinds == [DemandKind.QUOTE, DemandKind.RESERVATION]


class TestCount:
    def test_follows_no_search_and_no_wish_twice(self) -> None:
        make_pool()
        tenant = make_organization()
        for kind in DemandKind:
            say(tenant, kind=kind)

        assert counted() == 1
        assert counted() == 1

    def test_hears_a_tenant_who_is_alone(self) -> None:
        make_pool()
        tenant = make_organization()
        for n in range(10):
            say(tenant, window=window_in(30 + n))

        assert counted() == demand.TENANT_DAY_MIN

    def test_lets_one_tenant_be_a_tenth_of_the_others(self) -> None:
        four_weeks_of_demand()
        rival = make_organization()
        for n in range(100):
            say(rival, window=window_in(30 + n), at=NOW - hours(2))

        assert counted(organization=rival) == 4  # a tenth of the 48 that others say in a day

    def test_trims_a_wish_that_is_larger_than_all_others(self) -> None:
        four_weeks_of_demand()
        rival = make_organization()
        say(rival, window=window_in(30, length=100), gpus=1_000, at=NOW - hours(2))

        counted()

        # A tenth of 48 × 8 GPUs × 24 h would be 921 GPU-hours; of the seventh day only half is over.
        assert DemandSample.objects.get(organization=rival).counted_gpus == 8

    def test_forgets_after_five_weeks(self) -> None:
        make_pool()
        say(make_organization())

        assert demand.prune(at=NOW + dt.timedelta(days=35)) == 0
        assert demand.prune(at=NOW + dt.timedelta(days=36)) == 1


class TestPump:
    """Ten thousand calls of one tenant, at the verb that every call of the API ends in."""

    def test_of_ten_thousand_searches_moves_no_price(self) -> None:
        four_weeks_of_demand()
        rival = make_organization()
        for n in range(10_000):
            say(
                rival,
                kind=DemandKind.SEARCH,
                window=window_in(1 + n % 1_000),
                at=NOW - hours(1 + n // 2_000),
            )
        demand.count_due(at=NOW)

        assert not DemandSample.objects.filter(counted_gpus__gt=0, organization=rival).exists()
        assert DemandSample.objects.filter(organization=rival).count() <= 1_000

    def test_of_ten_thousand_quotes_moves_no_hour_by_more_than_three_hundredths(self) -> None:
        four_weeks_of_demand()
        before = targets()
        PriceVersion.objects.all().delete()
        rival = make_organization()
        for n in range(10_000):
            say(
                rival,
                window=window_in(1 + n % 400, length=72),
                gpus=64,
                at=NOW - hours(1 + n // 200),
            )
        demand.count_due(at=NOW)

        after = targets()

        assert before.max() > before.min()  # the forecast is what makes these prices
        assert counted(organization=rival) <= 4 * 3  # it asked on three days
        assert (after <= before * 1.03).all()

    def test_of_several_rivals_moves_no_hour_by_more_than_each_may_add(self) -> None:
        four_weeks_of_demand()
        before = targets()
        PriceVersion.objects.all().delete()
        rivals = [make_organization() for _ in range(5)]
        for rival in rivals:
            for n in range(1_000):
                for kind in (DemandKind.SEARCH, DemandKind.QUOTE):
                    say(
                        rival,
                        kind=kind,
                        window=window_in(1 + n % 400, length=72),
                        gpus=64,
                        at=NOW - hours(1 + n // 20),
                    )
        demand.count_due(at=NOW)

        after = targets()

        # Each is counted with what one may say on each of three days, whatever the others say; searches
        # are not. So no hour rises by more than three hundredths for each of them.
        for rival in rivals:
            assert counted(organization=rival, kind=DemandKind.SEARCH) == 0
            assert counted(organization=rival) <= 4 * 3
        assert (after <= before * 1.03 ** len(rivals)).all()
        # And at once no further than an hour of the clock allows.
        table = tables(keys=[KEY], at=NOW)[KEY]
        assert (table.rate_micros * 100 <= table.base_micros * 105).all()

    def test_would_succeed_if_all_were_counted(self) -> None:
        four_weeks_of_demand()
        before = targets()
        PriceVersion.objects.all().delete()
        rival = make_organization()
        for n in range(10_000):
            say(
                rival,
                window=window_in(1 + n % 400, length=72),
                gpus=64,
                at=NOW - hours(1 + n // 200),
            )
        DemandSample.objects.update(counted_gpus=F("gpus"))

        assert (targets() > before * 1.2).any()
