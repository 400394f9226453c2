"""Turn-round: after a tenant's window nobody else has the GPUs for as long as the owner asks."""

import datetime as dt

import pytest
from django.db import IntegrityError, transaction
from django.test import override_settings

from agents.models import Node
from marketplace import listings
from marketplace.core.windows import Window
from marketplace.models import Listing
from scheduler import (
    availability,
    board,
    calendar,
    extensions,
    offerings,
    pools,
    quotes,
    reindexing,
)
from scheduler.availability import OfferingQuery
from scheduler.calendar import CapacityTaken
from scheduler.models import Allocation
from scheduler.states import Spread
from tests.scheduler.factories import (
    MODEL,
    NOW,
    hours,
    make_listing,
    make_node,
    make_organization,
    make_quote,
    make_reservation,
    seconds,
    window_in,
)
from tests.scheduler.turn_round.world import (
    HOUR,
    a_pool,
    assert_sound,
    is_free,
    occupied_until,
)

pytestmark = pytest.mark.django_db


class TestBlazarCleaningTime:
    """Blazar, test_physical_host_plugin, `test_create_reservation_…_with_cleaning_time`.

    Cleaning 5 minutes and a request from 20:00 to 21:00: a host serves only if free from 19:55 to 21:05.
    """

    @pytest.mark.parametrize(
        ("starts", "ends", "is_eligible"),
        [
            (dt.time(19), dt.time(19, 55), True),
            (dt.time(19), dt.time(19, 56), False),
            (dt.time(19), dt.time(20), False),
            (dt.time(21, 5), dt.time(22), True),
            (dt.time(21, 4), dt.time(22), False),
            (dt.time(21), dt.time(22), False),
        ],
    )
    def test_serves_only_if_the_host_is_free_from_cleaning_before_to_cleaning_after(
        self,
        starts: dt.time,
        ends: dt.time,
        is_eligible: bool,  # noqa: FBT001 - pytest calls by name
    ) -> None:
        day = NOW.date()
        with override_settings(GRID_SECONDS=60):
            a_pool(turnaround_seconds=300)
            make_reservation(
                gpus=8,
                window=Window(
                    dt.datetime.combine(day, starts, dt.UTC), dt.datetime.combine(day, ends, dt.UTC)
                ),
            )
            found = availability.search(
                query=OfferingQuery(
                    gpu_model=MODEL,
                    gpus=8,
                    duration=hours(1),
                    earliest_start=NOW + hours(8),
                    latest_end=NOW + hours(9),
                ),
                at=NOW,
            )
            assert bool(found.offers) == is_eligible
            assert is_free(start=8, length=1) == is_eligible
        assert_sound()

    def test_needs_none_between_parts_of_one_window_that_grew(self) -> None:
        a_pool(turnaround_seconds=300)
        reservation = make_reservation(gpus=8, window=window_in(8, length=1))
        quote = extensions.quote(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            ends_at=NOW + hours(10),
            max_rate=None,
            at=NOW,
        )
        extensions.extend(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            at=NOW,
            actor="test",
        )
        assert occupied_until() == NOW + hours(10) + seconds(300)
        assert_sound()


class TestNeighbours:
    @pytest.mark.parametrize("fold", [False, True])
    def test_stand_apart_by_the_turn_round_whoever_came_first(self, fold: bool) -> None:  # noqa: FBT001 - pytest calls by name
        a_pool(turnaround_seconds=HOUR)
        make_reservation(gpus=8, window=window_in(10, length=2))
        if fold:
            reindexing.fold()

        assert not is_free(start=12, length=2)
        assert is_free(start=13, length=2)
        assert not is_free(start=8, length=2)
        assert is_free(start=7, length=2)

    def test_cost_a_whole_hour_where_windows_are_whole_hours(self) -> None:
        a_pool(turnaround_seconds=60)
        make_reservation(gpus=8, window=window_in(10, length=2))

        assert not is_free(start=12, length=1)
        assert is_free(start=13, length=1)
        assert not is_free(start=9, length=1)
        assert is_free(start=8, length=1)

    def test_of_a_hold_stand_apart_too_and_not_once_it_has_lapsed(self) -> None:
        a_pool(turnaround_seconds=HOUR)
        quote = make_quote(gpus=8, window=window_in(10, length=2), hold=True)
        assert not is_free(start=12, length=1)
        assert not is_free(start=9, length=1)

        assert is_free(start=12, length=1, at=quote.expires_at)
        assert is_free(start=9, length=1, at=quote.expires_at)
        assert_sound()

    def test_a_lapsed_hold_in_the_turn_round_of_a_request_is_ended_for_it(self) -> None:
        a_pool(turnaround_seconds=HOUR)
        lapsed = make_quote(gpus=8, window=window_in(10, length=2), hold=True)

        Node.objects.update(last_report_at=lapsed.expires_at)
        make_reservation(gpus=8, window=window_in(8, length=2), at=lapsed.expires_at)

        lapsed.refresh_from_db()
        assert lapsed.status == "expired"

    def test_of_other_gpus_do_not_mind(self) -> None:
        a_pool(turnaround_seconds=HOUR)
        make_reservation(gpus=5, window=window_in(10, length=2))

        assert is_free(gpus=3, start=12, length=2)
        assert not is_free(gpus=4, start=12, length=2)

    def test_each_listing_has_its_own(self) -> None:
        """Two owners' machines, one of which turns round in no time."""
        for turnaround_seconds, floor in ((HOUR, 2), (0, 3)):
            owner = make_organization()
            make_node(owner=owner, fabric=f"ib-{floor}")
            make_listing(owner=owner, turnaround_seconds=turnaround_seconds, floor_rate=floor)
        make_reservation(gpus=8, window=window_in(10, length=2))
        make_reservation(gpus=8, window=window_in(10, length=2))
        quick = Listing.objects.get(turnaround_seconds=0)

        assert is_free(start=12, length=2)
        behind = make_reservation(gpus=8, window=window_in(12, length=2))
        before = make_reservation(gpus=8, window=window_in(8, length=2))
        assert behind.allocations.get().listing == before.allocations.get().listing == quick
        assert not is_free(start=14, length=1, gpus=9)
        assert_sound()

    def test_keep_the_turn_round_that_they_were_sold_with(self) -> None:
        a_pool(turnaround_seconds=HOUR)
        make_reservation(gpus=8, window=window_in(10, length=2))
        listing = Listing.objects.get()
        listings.update(listing=listing, changes={"turnaround": hours(3)}, at=NOW, actor="owner")

        assert occupied_until() == NOW + hours(13)
        assert is_free(start=13, length=2)
        assert not is_free(start=7, length=1)
        assert is_free(start=6, length=1)

    def test_may_lie_past_the_end_of_the_listing_and_in_a_blackout(self) -> None:
        a_pool(turnaround_seconds=HOUR)
        Listing.objects.update(
            ends_at=NOW + hours(20),
            blackouts=[["2026-11-23T22:00:00Z", "2026-11-23T23:00:00Z"]],
        )
        assert is_free(start=9, length=1)
        assert not is_free(start=10, length=1)
        assert is_free(start=19, length=1)

    def test_are_kept_apart_by_the_database(self) -> None:
        a_pool(turnaround_seconds=60)
        place = make_reservation(gpus=8, window=window_in(10, length=2)).allocations.get()
        other = make_reservation(gpus=8, window=window_in(20, length=2)).allocations.get()
        for starts, ends in ((12, 13), (9, 10)):
            with pytest.raises(IntegrityError, match="allocation_no_overlap"), transaction.atomic():
                Allocation.objects.filter(pk=other.pk).update(
                    period=(NOW + hours(starts), NOW + hours(ends))
                )
        Allocation.objects.filter(pk=other.pk).update(
            period=(NOW + hours(12) + seconds(60), NOW + hours(14))
        )
        with pytest.raises(CapacityTaken):
            calendar.change_period(allocations=[place], window=window_in(10, length=2.01))


class TestSearch:
    def test_says_when_the_next_start_is_that_leaves_time_to_turn_round(self) -> None:
        a_pool(turnaround_seconds=2 * HOUR)
        make_reservation(gpus=8, window=window_in(10, length=2))
        query = OfferingQuery(
            gpu_model=MODEL,
            gpus=8,
            duration=hours(2),
            earliest_start=NOW + hours(8),
            latest_end=NOW + hours(15),
        )
        found = availability.search(query=query, at=NOW)
        assert (found.offers, found.no_offer_reason) == ([], "not_enough_capacity")
        assert found.nearest is not None
        assert found.nearest.window == window_in(14, length=2)

    def test_counts_as_free_in_each_hour_what_can_be_had_for_it(self) -> None:
        a_pool(turnaround_seconds=HOUR)
        make_reservation(gpus=5, window=window_in(3, length=2))
        curve = availability.price_curve(
            gpu_model=MODEL, region=None, tier="firm", window=window_in(0, length=8), at=NOW
        )
        # Hour 2 is the turn-round that whoever has it would need, hour 5 that of the one who left.
        assert [point.gpus_free for point in curve] == [8, 8, 3, 3, 3, 3, 8, 8]
        assert [point.gpus_sold for point in curve] == [0, 0, 5, 5, 5, 5, 0, 0]

    def test_looks_at_windows_off_the_grid_to_the_second(self) -> None:
        a_pool(turnaround_seconds=60)
        make_reservation(gpus=8, window=window_in(10, length=2))
        (pool,) = pools.read(gpu_model_id=MODEL, region=None, tier=None, at=NOW)
        for ends, free in ((10 * HOUR - 60, 8), (10 * HOUR - 59, 0)):
            one = board.of_window(
                pool=pool,
                prices=offerings.tables([pool], at=NOW)[pool],
                window=Window(NOW + hours(8), NOW + seconds(ends)),
                at=NOW,
            )
            assert one.rooms(listings=pool.listings, spread=Spread.ANY).tolist() == [free]


def test_a_refused_quote_names_the_capacity_and_not_a_rule() -> None:
    a_pool(turnaround_seconds=HOUR)
    make_reservation(gpus=8, window=window_in(10, length=2))
    with pytest.raises(quotes.NotEnoughCapacity):
        make_quote(gpus=8, window=window_in(12, length=1))
