"""Turn-round at the end of a lease, when a reservation is changed, and when the market repacks."""

import datetime as dt
from typing import Any

import pytest

from agents.models import Gpu, Node
from marketplace.models import Listing
from scheduler import (
    calendar,
    cancellations,
    extension_reach,
    extensions,
    leases,
    onoffer,
    rebookings,
    reindexing,
    relocations,
    reservations,
)
from scheduler.calendar import CapacityTaken
from scheduler.models import Allocation, Repacking, Reservation
from scheduler.quotes import NotEnoughCapacity
from scheduler.rebookings import WindowWish
from scheduler.states import RelocationReason
from tests.scheduler.factories import (
    NOW,
    hours,
    make_lease,
    make_quote,
    make_reservation,
    say_failed,
    say_returned,
    seconds,
    window_in,
)
from tests.scheduler.turn_round.world import (
    HOUR,
    a_pool,
    a_running_lease,
    assert_sound,
    is_free,
    occupied_until,
    on_offer,
)

pytestmark = pytest.mark.django_db


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
