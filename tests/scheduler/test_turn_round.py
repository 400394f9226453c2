"""Turn-round: after a tenant's window nobody else has the GPUs for as long as the owner asks."""

import datetime as dt
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.test import override_settings

from agents.models import Gpu, Node
from marketplace import listings
from marketplace.core.windows import Window
from marketplace.models import Listing
from scheduler import (
    availability,
    board,
    calendar,
    cancellations,
    checks,
    extension_reach,
    extensions,
    leases,
    offerings,
    onoffer,
    pools,
    quotes,
    rebookings,
    reindexing,
    relocations,
    reservations,
)
from scheduler.availability import OfferingQuery
from scheduler.calendar import CapacityTaken
from scheduler.models import Allocation, Lease, Repacking, Reservation
from scheduler.quotes import NotEnoughCapacity
from scheduler.rebookings import WindowWish
from scheduler.states import RelocationReason, Spread
from tests.scheduler.factories import (
    MODEL,
    NOW,
    hours,
    make_lease,
    make_listing,
    make_node,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    say_failed,
    say_handed_over,
    say_returned,
    seconds,
    window_in,
)

pytestmark = pytest.mark.django_db
HOUR = 3600


def a_pool(*, turnaround_seconds: int = HOUR, nodes: int = 1, gpus: int = 8) -> None:
    make_pool(nodes=nodes, gpus=gpus)
    Listing.objects.update(turnaround_seconds=turnaround_seconds)


def is_free(*, gpus: int = 8, at: dt.datetime = NOW, **window: float) -> bool:
    """Say whether a window is quoted and sold, and that whoever holds finds the same; nothing stays."""
    Node.objects.update(last_report_at=at)
    found = []
    for hold in (False, True):
        with transaction.atomic():
            try:
                reserve(
                    make_quote(
                        gpus=gpus,
                        window=window_in(window["start"], length=window["length"]),
                        hold=hold,
                        at=at,
                    ),
                    at=at,
                )
                found.append(True)
            except NotEnoughCapacity:
                found.append(False)
            transaction.set_rollback(True)
    assert found[0] == found[1]
    return found[0]


def a_running_lease(**window: float) -> Lease:
    lease = make_lease(gpus=8, window=window_in(window["start"], length=window["length"]))
    say_handed_over(lease)
    leases.advance(at=lease.starts_at + seconds(5))
    lease.refresh_from_db()
    return lease


def occupied_until() -> dt.datetime | None:
    occupied = Allocation.objects.get().occupied
    return occupied.upper if occupied else None


def on_offer(*, at: dt.datetime) -> int:
    return sum(vars(gpu)["on_offer"] for gpu in onoffer.annotated(gpus=Gpu.objects.all(), at=at))


def assert_sound() -> None:
    report = checks.check(at=NOW)
    assert report.ok, report.checks
    reindexing.fold()
    assert reindexing.compare(at=NOW, limit=5) == []


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


class TestEnd:
    def test_of_a_lease_keeps_the_gpus_until_they_are_ready(self) -> None:
        a_pool(turnaround_seconds=HOUR)
        lease = a_running_lease(start=10, length=2)
        leases.advance(at=lease.ends_at)
        say_returned(lease, at=lease.ends_at + seconds(20))
        leases.advance(at=lease.ends_at + seconds(30))

        assert not Allocation.objects.filter(live=True).exists()
        assert occupied_until() == lease.ends_at + hours(1)
        after = lease.ends_at + seconds(60)
        assert not is_free(start=12, length=1, at=NOW + hours(11.99))
        assert is_free(start=13, length=1, at=after)
        assert_sound()

    def test_before_its_time_frees_them_a_turn_round_after_the_return(self) -> None:
        a_pool(turnaround_seconds=HOUR)
        lease = a_running_lease(start=10, length=10)
        back_at = lease.starts_at + hours(2) + seconds(30)
        quote = cancellations.quote(
            organization=lease.reservation.organization,
            reservation_id=lease.reservation_id,
            at=back_at - seconds(10),
        )
        cancellations.cancel(
            organization=lease.reservation.organization,
            reservation_id=lease.reservation_id,
            quote_id=quote.pk,
            at=back_at - seconds(10),
            actor="test",
        )
        say_returned(lease, at=back_at)
        leases.advance(at=back_at)

        assert occupied_until() == back_at + hours(1)
        assert not is_free(start=13, length=1, at=back_at)
        assert is_free(start=14, length=1, at=back_at)
        assert_sound()

    def test_late_moves_nobody_who_is_booked_behind_it(self) -> None:
        a_pool(turnaround_seconds=HOUR)
        lease = a_running_lease(start=10, length=2)
        leases.advance(at=lease.ends_at)
        Node.objects.update(last_report_at=lease.ends_at)
        make_reservation(gpus=8, window=window_in(13), at=lease.ends_at)
        late = lease.ends_at + seconds(500)
        say_returned(lease, at=late)
        leases.advance(at=late)

        free_at = Allocation.objects.get(lease=lease).free_at
        assert free_at == lease.ends_at + hours(1)
        assert_sound()

    def test_of_a_handover_that_failed_leaves_time_to_clean_up(self) -> None:
        a_pool(turnaround_seconds=HOUR, nodes=1)
        lease = make_lease(gpus=8, window=window_in(10, length=2))
        say_failed(lease)
        at = lease.starts_at + seconds(30)
        leases.advance(at=at)

        assert occupied_until() == at + hours(1)

    def test_of_what_never_began_leaves_nothing(self) -> None:
        a_pool(turnaround_seconds=HOUR)
        reservation = make_reservation(gpus=8, window=window_in(10, length=2))
        reservations.cancel(reservation=reservation, at=NOW, actor="test")

        assert occupied_until() is None
        assert is_free(start=12, length=1)

    def test_is_forgotten_once_it_is_over(self) -> None:
        a_pool(turnaround_seconds=HOUR)
        lease = a_running_lease(start=10, length=2)
        leases.advance(at=lease.ends_at)
        say_returned(lease)
        leases.advance(at=lease.ends_at)
        reindexing.fold()

        assert calendar.forget_turnrounds(at=lease.ends_at + hours(1) - seconds(1)) == 0
        assert calendar.forget_turnrounds(at=lease.ends_at + hours(1)) == 1

        assert occupied_until() is None
        assert_sound()

    def test_is_why_a_gpu_is_not_on_offer_meanwhile(self) -> None:
        a_pool(turnaround_seconds=HOUR)
        lease = a_running_lease(start=10, length=2)
        leases.advance(at=lease.ends_at)
        say_returned(lease)
        leases.advance(at=lease.ends_at)
        at = lease.ends_at + seconds(60)
        Node.objects.update(last_report_at=at)
        gpus = Gpu.objects.select_related("node")

        reasons = {
            r.code for offer in onoffer.read(gpus=gpus, at=at).values() for r in offer.reasons
        }
        assert reasons == {onoffer.Code.TURNING_ROUND}
        assert on_offer(at=at) == 0
        ready = lease.ends_at + hours(1)
        Node.objects.update(last_report_at=ready)
        assert on_offer(at=ready) == 8


class TestChanges:
    def longest(self, reservation: Reservation) -> dt.datetime | None:
        return extensions.quote(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            ends_at=reservation.ends_at + hours(1),
            max_rate=None,
            at=NOW,
        ).longest_ends_at

    def test_an_extension_ends_a_turn_round_before_the_next_booking(self) -> None:
        a_pool(turnaround_seconds=2 * HOUR)
        reservation = make_reservation(gpus=8, window=window_in(10, length=2))
        make_reservation(gpus=8, window=window_in(20, length=2))

        assert self.longest(reservation) == NOW + hours(18)

    def test_an_extension_is_refused_where_the_next_follows_its_turn_round(self) -> None:
        a_pool(turnaround_seconds=2 * HOUR)
        reservation = make_reservation(gpus=8, window=window_in(10, length=2))
        make_reservation(gpus=8, window=window_in(14, length=2))

        with pytest.raises(extension_reach.ExtensionRefused) as refusal:
            self.longest(reservation)
        assert refusal.value.extra["reason"] == "next_booking"

    def test_an_extension_ends_holds_that_lapsed_in_its_turn_round(self) -> None:
        a_pool(turnaround_seconds=2 * HOUR)
        reservation = make_reservation(gpus=8, window=window_in(10, length=2))
        lapsed = make_quote(gpus=8, window=window_in(15, length=1), hold=True, at=NOW)
        at = lapsed.expires_at
        Node.objects.update(last_report_at=at)
        quote = extensions.quote(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            ends_at=NOW + hours(14),
            max_rate=None,
            at=at,
        )
        extensions.extend(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            at=at,
            actor="test",
        )
        assert Allocation.objects.get(live=True).occupied.upper == NOW + hours(16)

    @pytest.mark.parametrize(("start", "length"), [(40, 3), (40, 1), (41, 2)])
    def test_a_window_that_moves_takes_its_turn_round_along(self, start: int, length: int) -> None:
        a_pool(turnaround_seconds=HOUR)
        reservation = make_reservation(gpus=8, window=window_in(40, length=2))
        wanted = window_in(start, length=length)
        quote = rebookings.quote(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            wish=WindowWish(starts_at=wanted.starts_at, ends_at=wanted.ends_at),
            at=NOW,
        )
        rebookings.rebook(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            at=NOW,
            actor="test",
        )
        place = Allocation.objects.get(live=True)
        assert (place.period.lower, place.occupied.upper) == (
            wanted.starts_at,
            wanted.ends_at + hours(1),
        )
        assert_sound()

    def test_a_relocation_asks_the_turn_round_of_the_new_place(self) -> None:
        a_pool(turnaround_seconds=HOUR, nodes=2)
        reservation = make_reservation(gpus=8, window=window_in(10, length=2))
        node_id = reservation.allocations.get().node_id
        Listing.objects.update(turnaround_seconds=2 * HOUR)

        assert relocations.move(
            reservation_id=reservation.pk,
            node_id=node_id,
            reason=RelocationReason.NODE_DRAINED,
            at=NOW,
            actor="test",
        )
        place = Allocation.objects.get(live=True)
        assert (place.node_id != node_id, place.turnaround_seconds) == (True, 2 * HOUR)


class TestRepacking:
    """Two nodes of 4: one promise on each, early and late, keeps a block out that the hours have room for."""

    def a_split_market(self, *, gap_hours: int) -> None:
        a_pool(turnaround_seconds=HOUR, nodes=2, gpus=4)
        early = make_reservation(gpus=4, window=window_in(10, length=2))
        late = make_reservation(gpus=4, window=window_in(12 + gap_hours, length=2))
        stays = early.allocations.get().node_id
        if late.allocations.get().node_id == stays:
            relocations.move(
                reservation_id=late.pk,
                node_id=stays,
                reason=RelocationReason.NODE_DRAINED,
                at=NOW,
                actor="test",
            )
        assert Allocation.objects.filter(live=True).values("node").distinct().count() == 2

    def ask(self, **changes: Any) -> None:
        make_reservation(gpus=4, window=window_in(9, length=9), **changes)

    def test_makes_room_where_the_turn_rounds_fit(self) -> None:
        self.a_split_market(gap_hours=1)
        self.ask()
        assert Repacking.objects.count() == 1
        assert_sound()

    def test_makes_none_where_they_do_not(self) -> None:
        self.a_split_market(gap_hours=0)
        with pytest.raises((NotEnoughCapacity, CapacityTaken)):
            self.ask()
        assert not Repacking.objects.exists()

    def test_leaves_alone_what_was_sold_with_another_turn_round(self) -> None:
        self.a_split_market(gap_hours=1)
        Listing.objects.update(turnaround_seconds=2 * HOUR)
        with pytest.raises((NotEnoughCapacity, CapacityTaken)):
            self.ask()
        assert not Repacking.objects.exists()


def test_a_refused_quote_names_the_capacity_and_not_a_rule() -> None:
    a_pool(turnaround_seconds=HOUR)
    make_reservation(gpus=8, window=window_in(10, length=2))
    with pytest.raises(quotes.NotEnoughCapacity):
        make_quote(gpus=8, window=window_in(12, length=1))
