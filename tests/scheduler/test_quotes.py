"""Quotes: what is promised, for how long, and what is refused."""

import datetime as dt
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from django.test import override_settings

from agents.models import Gpu, Node
from agents.states import NodeStatus
from marketplace.core.errors import DomainError, NotFound
from marketplace.core.limits import GPUS_PER_REQUEST_MAX, HORIZON_DAYS
from marketplace.models import Listing
from marketplace.states import ListingMode, ListingStatus
from scheduler import quotas, quotes
from scheduler.calendar import CapacityTaken
from scheduler.models import Allocation, Quote
from scheduler.prices import refresh
from scheduler.states import QuoteStatus
from tests.scheduler.factories import (
    NOW,
    floors_of,
    hours,
    lots_of,
    make_listing,
    make_node,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    seconds,
    window_in,
)

pytestmark = pytest.mark.django_db


class TestCreate:
    def test_locks_the_price_for_ten_minutes(self) -> None:
        make_pool()

        quote = make_quote(gpus=4)

        assert quote.status == QuoteStatus.OPEN
        assert quote.rate == Decimal("2.352942")
        assert quote.total_minor == 1882  # 8 GPU-hours
        assert quote.expires_at == NOW + seconds(600)
        assert quote.simulated
        assert not Allocation.objects.exists()

    def test_costs_more_where_more_is_booked(self) -> None:
        make_pool()
        before = make_quote()
        make_reservation(gpus=4)
        refresh.refresh_due(at=NOW)

        after = make_quote()

        assert after.rate == Decimal("2.470589")  # a step of 5 % towards .93 × 1.5 × the base
        ((was,),) = (lot.tariff.segments for lot in lots_of(before))
        ((now,),) = (lot.tariff.segments for lot in lots_of(after))
        assert now == replace(was, rate_micros=2_470_589)
        before.refresh_from_db()
        assert before.rate == Decimal("2.352942")

    def test_does_not_make_the_next_one_dearer(self) -> None:
        make_pool()
        refresh.refresh_due(at=NOW)

        first, second = make_quote(gpus=4, hold=True), make_quote(gpus=4)

        assert (first.rate, first.price_breakdown) == (second.rate, second.price_breakdown)

    def test_is_not_cheaper_in_parts(self) -> None:
        make_pool()
        make_reservation(gpus=1, window=window_in(25, length=1))
        refresh.refresh_due(at=NOW)
        whole = make_quote(gpus=6, window=window_in(24, length=3))

        parts = [make_quote(gpus=2, window=window_in(24 + n, length=1)) for n in range(3)] * 3

        assert abs(sum(part.total_minor for part in parts) - whole.total_minor) <= 5  # rounding

    def test_keeps_its_rate_when_the_market_moves(self) -> None:
        make_pool()
        quote = make_quote()
        make_reservation(gpus=4)

        assert reserve(quote).rate == quote.rate

    def test_holds_the_gpus_when_asked_to(self) -> None:
        make_pool()

        quote = make_quote(gpus=8, hold=True)

        assert sum(a.slots.upper - a.slots.lower for a in quote.allocations.all()) == 8
        with pytest.raises(quotes.NotEnoughCapacity):
            make_quote()

    def test_holds_for_one_window_only(self) -> None:
        make_pool()
        make_quote(gpus=8, hold=True)

        assert make_quote(gpus=8, window=window_in(26)).gpus == 8

    def test_takes_the_cheapest_region(self) -> None:
        make_pool()
        owner = make_organization()
        make_node(owner=owner, region="us-east")
        make_listing(owner=owner, floor_rate=Decimal("1.5"), region="us-east")

        assert make_quote().region == "us-east"
        assert make_quote(region="eu-north").region == "eu-north"

    def test_counts_a_gpu_of_two_listings_once_at_the_cheaper(self) -> None:
        owner = make_pool()
        make_listing(owner=owner, floor_rate=Decimal("1.000000"))

        assert lots_of(make_quote(gpus=8))[0].floor_rate == 1
        with pytest.raises(quotes.NotEnoughCapacity):
            make_quote(gpus=9)

    def test_pays_each_owner_by_its_own_floor(self) -> None:
        make_pool()
        dearer = make_organization()
        make_node(owner=dearer)
        make_listing(owner=dearer, floor_rate=Decimal(3))

        assert floors_of(make_quote(gpus=8)) == [(8, Decimal(2))]
        both = make_quote(gpus=16, spread="any")
        assert floors_of(both) == [(8, Decimal(2)), (8, Decimal(3))]

    def test_starts_now_on_the_next_second(self) -> None:
        make_pool()
        at = NOW + dt.timedelta(milliseconds=300)

        quote = quotes.create(
            organization=make_organization(),
            request=quotes.QuoteRequest(
                gpu_model="h100-sxm-80gb", gpus=1, starts_at=None, ends_at=NOW + hours(1)
            ),
            at=at,
        )

        assert quote.starts_at == NOW + seconds(1)
        assert quote.expires_at == at + seconds(120)

    def test_ends_when_its_window_begins(self) -> None:
        make_pool()

        quote = make_quote(at=NOW - seconds(300), window=window_in(0))

        assert quote.expires_at == NOW

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"gpu_model": "h900"}, "no_such_model"),
            ({"gpu_model": "a\x00b"}, "no_such_model"),
            ({"gpus": 0}, "invalid_value"),
            ({"gpus": -1}, "invalid_value"),
            ({"gpus": GPUS_PER_REQUEST_MAX + 1}, "invalid_value"),
            ({"gpus": 10_000}, "not_enough_capacity"),
            ({"gpus": 9, "spread": "single_node"}, "not_enough_capacity"),
            ({"starts_at": NOW + hours(24) + seconds(1)}, "off_grid"),
            ({"ends_at": NOW + hours(26) + dt.timedelta(microseconds=1)}, "off_grid"),
            ({"starts_at": NOW - hours(1)}, "window_in_past"),
            ({"starts_at": NOW + hours(26)}, "window_upside_down"),
            ({"starts_at": NOW + hours(27)}, "window_upside_down"),
            ({"ends_at": NOW + hours(24 * HORIZON_DAYS + 1)}, "beyond_horizon"),
            ({"tier": "gold"}, "invalid_value"),
            ({"tier": "reclaimable"}, "not_enough_capacity"),
            ({"spread": "wide"}, "invalid_value"),
            ({"region": "mars"}, "not_enough_capacity"),
            ({"region": "a\x00b"}, "invalid_value"),
            ({"max_rate": Decimal("2.352941")}, "price_above_max"),
        ],
    )
    def test_refuses_what_makes_no_sense_and_stores_nothing(
        self, changes: dict[str, Any], code: str
    ) -> None:
        make_pool()

        with pytest.raises(DomainError) as refusal:
            make_quote(**changes)

        assert refusal.value.code == code
        assert not Quote.objects.exists()

    def test_accepts_a_maximum_that_is_just_met(self) -> None:
        make_pool()

        assert make_quote(max_rate=Decimal("2.352942"))

    @pytest.mark.parametrize(
        ("listing", "code"),
        [
            ({"duration_seconds_min": 3 * 3600}, "window_too_short"),
            ({"duration_seconds_max": 3600}, "window_too_long"),
            ({"gpus_min": 2}, "too_few_gpus"),
            ({"status": ListingStatus.PAUSED}, "not_enough_capacity"),
            ({"ends_at": NOW + hours(25)}, "not_enough_capacity"),
            ({"starts_at": NOW + hours(25)}, "not_enough_capacity"),
            ({"fabric": "ib-2"}, "not_enough_capacity"),
            ({"region": "us-east"}, "not_enough_capacity"),
            ({"labels": {"rack": "b2"}}, "not_enough_capacity"),
            ({"labels": {"rack": "a1", "row": "1"}}, "not_enough_capacity"),
            ({"currency": "eur"}, "not_enough_capacity"),
            (
                {"blackouts": [["2026-11-24T13:00:00Z", "2026-11-24T14:00:00Z"]]},
                "not_enough_capacity",
            ),
            (
                {
                    "mode": ListingMode.WHEN_IDLE,
                    "rolling_seconds": 86_399,
                    "idle_for_seconds": 60,
                },
                "not_enough_capacity",
            ),
            (
                {
                    "mode": ListingMode.WHEN_IDLE,
                    "rolling_seconds": 90_000,
                    "idle_for_seconds": 3601,
                },
                "not_enough_capacity",
            ),
        ],
    )
    def test_keeps_to_the_owners_wishes(self, listing: dict[str, Any], code: str) -> None:
        make_pool()
        Listing.objects.update(**listing)

        with pytest.raises(DomainError) as refusal:
            make_quote()

        assert refusal.value.code == code

    @pytest.mark.parametrize(
        "listing",
        [
            {"labels": {"rack": "a1"}, "fabric": "ib-1", "region": "eu-north"},
            {"duration_seconds_min": 7200, "duration_seconds_max": 7200},
            {"starts_at": NOW + hours(24), "ends_at": NOW + hours(26)},
            {"blackouts": [["2026-11-24T11:00:00Z", "2026-11-24T12:00:00Z"]]},
            {"mode": ListingMode.WHEN_IDLE, "rolling_seconds": 86_400, "idle_for_seconds": 3600},
        ],
    )
    def test_sells_up_to_the_edge_of_the_owners_wishes(self, listing: dict[str, Any]) -> None:
        make_pool()
        Listing.objects.update(**listing)

        assert make_quote().gpus == 1

    @pytest.mark.parametrize(
        "gpu",
        [
            {"health": "suspect"},
            {"present": False},
            {"quarantined_by_market": "not clean"},
            {"gpu_model": None},
            {"mig_enabled": True},
        ],
    )
    def test_never_promises_a_gpu_that_may_not_be_sold(self, gpu: dict[str, Any]) -> None:
        make_pool()
        Gpu.objects.update(**gpu)

        with pytest.raises(quotes.NotEnoughCapacity):
            make_quote()

    def test_never_promises_a_silent_or_draining_node(self) -> None:
        make_pool()
        Node.objects.update(last_report_at=NOW - hours(1))
        with pytest.raises(quotes.NotEnoughCapacity):
            make_quote()

        Node.objects.update(last_report_at=NOW, status=NodeStatus.DRAINING)
        with pytest.raises(quotes.NotEnoughCapacity):
            make_quote()

    def test_never_promises_simulated_hardware_where_that_is_forbidden(self) -> None:
        make_pool()

        with override_settings(ALLOW_SIMULATED_HARDWARE=False), pytest.raises(DomainError):
            make_quote()

    def test_limits_what_one_tenant_holds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make_pool()
        tenant = make_organization()
        monkeypatch.setattr(quotes, "OPEN_HOLDS_MAX", 1)
        make_quote(tenant=tenant, hold=True)

        with pytest.raises(quotas.LimitExceeded):
            make_quote(tenant=tenant, hold=True)

        assert make_quote(tenant=make_organization(), hold=True)
        assert make_quote(tenant=tenant)

    def test_limits_held_gpu_hours_and_open_quotes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make_pool()
        tenant = make_organization()
        monkeypatch.setattr(quotes, "HELD_GPU_HOURS_MAX", 8)
        assert make_quote(tenant=tenant, gpus=4, hold=True)
        with pytest.raises(quotas.LimitExceeded):
            make_quote(tenant=tenant, hold=True)

        monkeypatch.setattr(quotes, "OPEN_QUOTES_MAX", 1)
        with pytest.raises(quotas.LimitExceeded):
            make_quote(tenant=tenant)


class TestGet:
    def test_hides_other_tenants_quotes(self) -> None:
        make_pool()
        quote = make_quote()

        assert quotes.get(organization=quote.organization, quote_id=quote.pk) == quote
        for stranger, quote_id in (
            (make_organization(), quote.pk),
            (quote.organization, "qte_nothing"),
            (quote.organization, "\x00"),
        ):
            with pytest.raises(NotFound):
                quotes.get(organization=stranger, quote_id=quote_id)


class TestExpire:
    def test_puts_held_gpus_back_on_sale(self) -> None:
        make_pool()
        quote = make_quote(gpus=8, hold=True)

        assert quotes.expire_due(at=quote.expires_at - seconds(1)) == 0
        assert quotes.expire_due(at=quote.expires_at) == 1
        assert quotes.expire_due(at=quote.expires_at) == 0

        quote.refresh_from_db()
        assert quote.status == QuoteStatus.EXPIRED
        assert make_quote(gpus=8).gpus == 8

    def test_works_off_more_than_one_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make_pool()
        tenant = make_organization()
        for _ in range(5):
            make_quote(tenant=tenant)
        monkeypatch.setattr(quotes, "EXPIRY_BATCH", 2)

        assert quotes.expire_due(at=NOW + hours(1)) == 5

    def test_is_not_awaited_by_those_who_want_the_gpus(self) -> None:
        make_pool()
        lapsed = make_quote(gpus=8, hold=True)
        later = lapsed.expires_at
        Node.objects.update(last_report_at=later)

        taken = reserve(make_quote(gpus=8, at=later), at=later)

        assert taken.gpus == 8
        lapsed.refresh_from_db()
        assert lapsed.status == QuoteStatus.EXPIRED
        assert not lapsed.allocations.filter(live=True).exists()

    def test_leaves_the_holder_with_nothing(self) -> None:
        make_pool()
        quote = make_quote(gpus=8, hold=True)

        with pytest.raises(DomainError) as refusal:
            reserve(quote, at=quote.expires_at)

        assert refusal.value.code == "quote_expired"

    def test_does_not_lapse_early_for_rivals(self) -> None:
        make_pool()
        rival = make_quote(gpus=8)
        make_quote(gpus=8, hold=True)

        with pytest.raises(CapacityTaken):
            reserve(rival, at=NOW + seconds(599))
