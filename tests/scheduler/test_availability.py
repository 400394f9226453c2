"""Search, curve and summary: every start counts, the cheapest first, and a reason when there is nothing."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from django.test import override_settings

from marketplace.core.errors import DomainError
from marketplace.core.windows import Window
from marketplace.models import Listing
from scheduler import availability
from scheduler.availability import OfferingQuery, SearchResult
from scheduler.prices import refresh
from tests.scheduler.factories import (
    MODEL,
    NOW,
    hours,
    make_listing,
    make_node,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    seconds,
    window_in,
)

pytestmark = pytest.mark.django_db
AT = NOW - seconds(60)  # the last minute before a grid point


def search(**changes: Any) -> SearchResult:
    values: dict[str, Any] = {
        "gpu_model": MODEL,
        "gpus": 8,
        "duration": hours(2),
        "earliest_start": NOW,
        "latest_end": NOW + hours(24),
        **changes,
    }
    return availability.search(query=OfferingQuery(**values), at=AT)


class TestSearch:
    def test_offers_up_to_the_limit_the_cheapest_and_earliest_first(self) -> None:
        make_pool()

        offers = search(limit=3).offers

        assert [offer.window.starts_at for offer in offers] == [NOW, NOW + hours(1), NOW + hours(2)]
        assert offers[0].rate == Decimal("2.352942")
        assert (offers[0].nodes, offers[0].fabric, offers[0].simulated) == (1, "ib-1", True)

    def test_finds_the_only_gap(self) -> None:
        make_pool()
        make_reservation(window=window_in(1, length=6))
        make_reservation(window=window_in(9, length=20))

        offers = search().offers

        assert [offer.window for offer in offers] == [window_in(7)]

    def test_prefers_the_window_with_less_booked(self) -> None:
        make_pool()
        make_reservation(gpus=4, window=window_in(1, length=10))
        refresh.refresh_due(at=AT)

        offers = search(gpus=2, latest_end=NOW + hours(14)).offers

        assert offers[0].window.starts_at == NOW + hours(11)
        assert offers[0].rate < offers[-1].rate

    def test_offers_what_can_then_be_quoted_at_that_rate(self) -> None:
        make_pool(nodes=2)
        make_reservation(gpus=5, window=window_in(3, length=4))
        refresh.refresh_due(at=AT)

        for offer in search(gpus=3).offers:
            quote = make_quote(gpus=3, window=offer.window, at=AT)
            assert (quote.rate, quote.total_minor) == (offer.rate, offer.total.amount_minor)
            assert quote.price_breakdown == offer.price_breakdown

    def test_looks_at_all_regions_unless_told(self) -> None:
        make_pool()
        owner = make_organization()
        make_node(owner=owner, region="us-east", fabric="")
        make_listing(owner=owner, floor_rate=Decimal(3))

        regions = [o.region for o in search(latest_end=NOW + hours(2)).offers]

        assert regions == ["eu-north", "us-east"]
        assert {o.region for o in search(region="us-east").offers} == {"us-east"}
        assert search(region="us-east").offers[0].fabric is None

    def test_counts_nodes_of_a_block(self) -> None:
        make_pool(nodes=3)

        assert search(gpus=20).offers[0].nodes == 3

    def test_leaves_out_what_starts_too_soon(self) -> None:
        make_pool()

        offers = availability.search(
            query=OfferingQuery(
                gpu_model=MODEL,
                gpus=1,
                duration=hours(1),
                earliest_start=NOW - hours(5),
                latest_end=NOW + hours(5),
            ),
            at=NOW - seconds(2),
        ).offers

        assert offers[0].window.starts_at == NOW + hours(1)

    def test_names_the_notice_of_the_reclaimable_tier(self) -> None:
        owner = make_organization()
        make_node(owner=owner)
        make_listing(owner=owner, tier="reclaimable", reclaim_notice_seconds=7200)

        assert not search().offers
        assert search(tier="reclaimable").offers[0].reclaim_notice_seconds == 7200

    @pytest.mark.parametrize(
        ("listing", "changes", "reason"),
        [
            ({}, {"gpus": 9}, "not_enough_capacity"),
            ({}, {"region": "mars"}, "not_enough_capacity"),
            ({}, {"max_rate": Decimal("2.35")}, "price_above_max"),
            ({"duration_seconds_min": 10_800}, {}, "window_too_short"),
            ({"duration_seconds_max": 3600}, {}, "window_too_long"),
            ({"gpus_min": 16}, {}, "too_few_gpus"),
            ({}, {"duration": hours(25)}, "range_too_short"),
            (
                {},
                {"earliest_start": NOW + hours(4319), "latest_end": NOW + hours(4400)},
                "beyond_horizon",
            ),
        ],
    )
    def test_says_why_there_is_nothing(
        self, listing: dict[str, Any], changes: dict[str, Any], reason: str
    ) -> None:
        make_pool()
        Listing.objects.update(**listing)

        result = search(**changes)

        assert (result.offers, result.no_offer_reason) == ([], reason)

    def test_names_the_dearer_offer_as_nearest(self) -> None:
        make_pool()

        nearest = search(max_rate=Decimal(1)).nearest

        assert nearest is not None
        assert nearest.rate == Decimal("2.352942")
        assert search(max_rate=Decimal(1)).nearest_change == "higher_price"

    def test_names_a_later_start_as_nearest(self) -> None:
        make_pool()
        make_reservation(window=window_in(1, length=30))

        nearest = search().nearest

        assert nearest is not None
        assert nearest.window == window_in(31)
        assert search().nearest_change == "later_start"

    def test_names_another_region_before_a_start_weeks_later(self) -> None:
        make_pool()
        make_reservation(gpus=8, window=window_in(0, length=24 * 10))
        owner = make_organization()
        make_node(owner=owner, region="us-east")
        make_listing(owner=owner)

        result = search(region="eu-north")

        assert result.nearest is not None
        assert (result.nearest.region, result.nearest_change) == ("us-east", "other_region")

    def test_names_another_tier_before_fewer_gpus(self) -> None:
        make_pool()
        owner = make_organization()
        make_node(owner=owner, gpus=16)
        make_listing(owner=owner, tier="reclaimable", reclaim_notice_seconds=60)

        result = search(gpus=12)

        assert result.nearest is not None
        assert (result.nearest.tier, result.nearest_change) == ("reclaimable", "other_tier")

    def test_names_a_start_weeks_later_when_nothing_else_would_do(self) -> None:
        make_pool()
        make_reservation(gpus=8, window=window_in(0, length=24 * 30))

        result = search()

        assert result.nearest is not None
        assert result.nearest.window.starts_at == NOW + hours(24 * 30)
        assert result.nearest_change == "later_start"

    def test_names_nothing_dearer_than_the_maximum(self) -> None:
        make_pool()
        make_reservation(gpus=8, window=window_in(0, length=30))
        owner = make_organization()
        make_node(owner=owner, region="us-east")
        make_listing(owner=owner, floor_rate=Decimal(9))

        result = search(region="eu-north", max_rate=Decimal(3), latest_end=NOW + hours(4))

        assert result.nearest is not None
        assert result.nearest_change == "later_start"
        assert result.nearest.rate <= Decimal(3)

    def test_names_fewer_gpus_as_nearest(self) -> None:
        make_pool()

        nearest = search(gpus=12).nearest

        assert nearest is not None
        assert (nearest.gpus, nearest.window.starts_at) == (8, NOW)
        assert search(gpus=12).nearest_change == "fewer_gpus"

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"gpu_model": "h900"}, "no_such_model"),
            ({"gpus": 0}, "invalid_value"),
            ({"limit": 21}, "invalid_value"),
            ({"limit": 0}, "invalid_value"),
            ({"duration": seconds(90)}, "off_grid"),
            ({"duration": seconds(0)}, "off_grid"),
            ({"latest_end": NOW}, "window_upside_down"),
            ({"region": "a\x00"}, "invalid_value"),
        ],
    )
    def test_refuses_what_makes_no_sense(self, changes: dict[str, Any], code: str) -> None:
        make_pool()

        with pytest.raises(DomainError) as refusal:
            search(**changes)

        assert refusal.value.code == code


class TestPriceCurve:
    def test_tells_rate_floor_and_room_per_step(self) -> None:
        make_pool()
        make_reservation(gpus=4, window=window_in(1, length=1))
        make_reservation(gpus=8, window=window_in(2, length=1))
        refresh.refresh_due(at=AT)

        points = availability.price_curve(
            gpu_model=MODEL, region=None, tier="firm", window=window_in(0, length=4), at=AT
        )

        assert [(p.gpus_listed, p.gpus_free) for p in points] == [(8, 8), (8, 4), (8, 0), (8, 8)]
        assert [p.rate for p in points] == [
            Decimal("2.352942"),
            Decimal("2.470589"),  # a step of 5 %
            None,
            Decimal("2.352942"),
        ]
        assert {p.floor for p in points} == {Decimal(2)}

    def test_tells_unknown_where_nothing_is_listed(self) -> None:
        make_pool()
        Listing.objects.update(starts_at=NOW + hours(1))

        first, second = availability.price_curve(
            gpu_model=MODEL, region=None, tier="firm", window=window_in(0), at=AT
        )

        assert (first.rate, first.floor, first.multiplier, first.gpus_listed) == (None,) * 3 + (0,)
        assert second.gpus_listed == 8

    @pytest.mark.parametrize(
        ("window", "code"),
        [
            (Window(NOW, NOW + seconds(90)), "off_grid"),
            (Window(NOW, NOW + hours(4321)), "invalid_value"),
        ],
    )
    def test_refuses_what_it_cannot_draw(self, window: Window, code: str) -> None:
        make_pool()

        with pytest.raises(DomainError) as refusal:
            availability.price_curve(
                gpu_model=MODEL, region=None, tier="firm", window=window, at=AT
            )

        assert refusal.value.code == code

    def test_follows_a_finer_grid(self) -> None:
        make_pool()

        with override_settings(GRID_SECONDS=60):
            points = availability.price_curve(
                gpu_model=MODEL, region=None, tier="firm", window=window_in(0, length=1), at=AT
            )

        assert len(points) == 60
        assert points[0].window.duration == dt.timedelta(minutes=1)


class TestMarketSummary:
    def test_counts_each_gpu_once_over_tiers(self) -> None:
        owner = make_pool()
        make_listing(owner=owner, tier="reclaimable", reclaim_notice_seconds=60, floor_rate=1)

        summary = {s.gpu_model.pk: s for s in availability.market_summary(at=NOW)}

        h100 = summary[MODEL]
        assert (h100.gpus_listed, h100.gpus_free_now, h100.regions) == (8, 8, ["eu-north"])
        assert (h100.rate_from, h100.rate_to) == (Decimal("1.176471"), Decimal("2.352942"))
        assert h100.simulated
        nothing = summary["l40s-48gb"]
        assert (nothing.gpus_listed, nothing.rate_from, nothing.simulated) == (0, None, False)
