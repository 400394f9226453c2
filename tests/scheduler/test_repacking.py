"""Promises that have not started make room for others, and come together at night."""

from decimal import Decimal

import pytest
from django.db import transaction

from agents.models import Node
from marketplace.models import Listing
from scheduler import quotes, repacking, reservations
from scheduler.calendar import CapacityTaken
from scheduler.models import Allocation, Lease, Quote, Repacking, Reservation
from scheduler.states import QuoteStatus, RepackingReason
from tests.scheduler.factories import (
    NOW,
    hours,
    make_listing,
    make_node,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    resize,
    window_in,
)

pytestmark = pytest.mark.django_db


def places(promise: Reservation | Quote) -> list[tuple[int, int]]:
    live = promise.allocations.filter(live=True)
    return sorted((place.slots.lower, place.slots.upper) for place in live)


def put(promise: Reservation | Quote, slot_lower: int) -> None:
    """Put a promise of one run of slots somewhere else, as if it had been placed there."""
    place = promise.allocations.get(live=True)
    node = place.node.__class__.objects.filter(slot_base__lte=slot_lower).latest("slot_base")
    count = place.slots.upper - place.slots.lower
    Allocation.objects.filter(pk=place.pk).update(node=node, slots=(slot_lower, slot_lower + count))


def two_nodes() -> tuple[int, int]:
    """Make two nodes of eight GPUs in one fabric; return their first slots."""
    owner = make_organization()
    bases = [make_node(owner=owner).slot_base for _ in range(2)]
    make_listing(owner=owner)
    return bases[0], bases[1]


def scattered(**changes) -> tuple[Reservation, Reservation]:
    """Leave four GPUs on each of two nodes to reservations that would fit on one."""
    first, second = two_nodes()
    one, other = (make_reservation(gpus=4, **changes) for _ in range(2))
    put(one, first)
    put(other, second)
    return one, other


class TestMakingRoom:
    def test_lets_a_block_in_that_fits_after_a_move(self) -> None:
        one, other = scattered()

        block = make_reservation(gpus=8, spread="single_node")

        assert [upper - lower for lower, upper in places(block)] == [8]
        ((a, _),), ((b, _),) = places(one), places(other)
        assert a // 16 == b // 16 != places(block)[0][0] // 16

    def test_writes_down_who_moved_from_where_to_where(self) -> None:
        one, other = scattered()
        before = {promise.pk: places(promise) for promise in (one, other)}

        make_reservation(gpus=8, spread="single_node")

        move = Repacking.objects.get()
        moved = Reservation.objects.get(pk=move.reservation_id)
        assert move.reason == RepackingReason.MADE_ROOM
        assert [(p["slot_lower"], p["slot_upper"]) for p in move.from_places] == before[moved.pk]
        assert [(p["slot_lower"], p["slot_upper"]) for p in move.to_places] == places(moved)
        assert move.to_places[0]["node_id"] == moved.allocations.get(live=True).node_id

    def test_moves_a_hold_and_what_is_not_paid_yet_too(self) -> None:
        first, second = two_nodes()
        hold = make_quote(gpus=4, hold=True)
        put(hold, first)
        unpaid = reserve(make_quote(gpus=4))
        put(unpaid, second)

        make_reservation(gpus=8, spread="single_node")

        assert Repacking.objects.count() == 1
        kept = reserve(hold)  # the hold still buys what it promised
        assert sum(upper - lower for lower, upper in places(kept)) == 4

    def test_never_moves_what_starts_within_half_an_hour(self) -> None:
        scattered(window=window_in(1), at=NOW)
        Node.objects.update(last_report_at=NOW + hours(0.5))

        with pytest.raises(quotes.NotEnoughCapacity):
            make_quote(gpus=8, spread="single_node", window=window_in(1), at=NOW + hours(0.5))
        assert not Repacking.objects.exists()

    def test_never_moves_a_lease(self) -> None:
        one, _other = scattered(window=window_in(1, length=4))
        Node.objects.update(last_report_at=one.starts_at)
        reservations.start_due(at=one.starts_at)
        assert Lease.objects.count() == 2

        with pytest.raises(quotes.NotEnoughCapacity):
            make_quote(gpus=8, spread="single_node", window=window_in(2), at=one.starts_at)
        assert not Repacking.objects.exists()

    def test_never_moves_to_a_dearer_listing_than_was_priced(self) -> None:
        owner, dear_owner = make_organization(), make_organization()
        cheap_base, dear_base = (
            make_node(owner=it, fabric="ib-1").slot_base for it in (owner, dear_owner)
        )
        make_listing(owner=owner)
        cheap = make_reservation(gpus=4)
        dear_listing = make_listing(owner=dear_owner, floor_rate=Decimal("9.000000"))
        dear = make_reservation(gpus=8)
        assert places(dear) == [(dear_base, dear_base + 8)]
        Allocation.objects.filter(reservation=dear).update(slots=(dear_base, dear_base + 4))
        for promise in (dear, dear.quote):
            resize(promise, gpus=4)

        block = make_reservation(gpus=8, spread="single_node")

        assert places(cheap) == [(cheap_base, cheap_base + 4)]
        assert places(dear) == [(cheap_base + 4, cheap_base + 8)]
        assert block.allocations.get().listing == dear_listing

    def test_never_moves_what_the_listing_would_not_sell_now(self) -> None:
        scattered()
        Listing.objects.update(gpus_min=5)

        with pytest.raises(quotes.NotEnoughCapacity):
            make_quote(gpus=8, spread="single_node")
        assert not Repacking.objects.exists()

    def test_never_moves_out_of_the_period_of_a_listing(self) -> None:
        first, second = two_nodes()
        long = make_reservation(gpus=4, window=window_in(24, length=40))
        short = make_reservation(gpus=4, window=window_in(24, length=2))
        put(long, first)
        put(short, second)
        Listing.objects.update(ends_at=NOW + hours(30))  # pulled in after the sale

        block = make_reservation(gpus=8, spread="single_node", window=window_in(24, length=2))

        assert places(long) == [(first, first + 4)]
        assert places(block) == [(second, second + 8)]
        assert places(short) == [(first + 4, first + 8)]

    def test_gives_up_without_a_trace_when_the_gpus_do_not_suffice(self) -> None:
        one, other = scattered()
        before = places(one), places(other)
        make_reservation(gpus=1)

        with pytest.raises(quotes.NotEnoughCapacity):
            make_quote(gpus=8, spread="single_node")
        assert (places(one), places(other)) == before
        assert not Repacking.objects.exists()

    def test_serves_a_quote_whose_room_a_rival_broke(self) -> None:
        first, second = two_nodes()
        quote = make_quote(gpus=8, spread="single_node")
        one, other = (make_reservation(gpus=4) for _ in range(2))
        put(one, first)
        put(other, second)

        assert [upper - lower for lower, upper in places(reserve(quote))] == [8]

    def test_ends_an_expired_hold_that_lies_where_somebody_moves(self) -> None:
        first, second = two_nodes()
        one, other = (make_reservation(gpus=4) for _ in range(2))
        put(one, first)
        put(other, second)
        hold = make_quote(gpus=4, hold=True)
        put(hold, first + 4)
        second_hold = make_quote(gpus=4, hold=True)
        put(second_hold, second + 4)
        Quote.objects.update(expires_at=NOW)

        make_reservation(gpus=8, spread="single_node")

        statuses = set(Quote.objects.filter(hold=True).values_list("status", flat=True))
        assert statuses == {QuoteStatus.EXPIRED}

    def test_leaves_the_caller_its_refusal_when_a_promise_is_being_changed(
        self, monkeypatch
    ) -> None:
        scattered()
        quote = make_quote(gpus=4)
        resize(quote, gpus=8)
        Quote.objects.filter(pk=quote.pk).update(spread="single_node")

        def somebody_changes_it(*_args, **_named):
            raise CapacityTaken("a promise that was to make room is being changed")

        monkeypatch.setattr(repacking.moving, "carry_out", somebody_changes_it)
        with pytest.raises(CapacityTaken):
            reserve(Quote.objects.get(pk=quote.pk))
        assert not Repacking.objects.exists()


class TestHealing:
    def test_brings_shares_together_so_that_a_node_is_free(self) -> None:
        one, other = scattered()

        assert repacking.heal(at=NOW) == 1

        ((a, _),), ((b, _),) = places(one), places(other)
        assert a // 16 == b // 16
        assert Repacking.objects.get().reason == RepackingReason.HEALED
        assert repacking.heal(at=NOW) == 0

    def test_leaves_alone_what_starts_soon(self) -> None:
        one, _other = scattered(window=window_in(1))
        Node.objects.update(last_report_at=one.starts_at)

        assert repacking.heal(at=one.starts_at - hours(0.5)) == 0
        assert repacking.heal(at=one.starts_at - hours(0.75)) == 1

    def test_keeps_to_each_island(self) -> None:
        owner = make_organization()
        bases = [make_node(owner=owner, fabric=f"ib-{i}").slot_base for i in range(2)]
        make_listing(owner=owner)
        one, other = (make_reservation(gpus=4) for _ in range(2))
        put(one, bases[0])
        put(other, bases[1])

        assert repacking.heal(at=NOW) == 0

    def test_goes_on_when_a_rival_is_in_the_way_of_one_move(self, monkeypatch) -> None:
        scattered()
        make_pool()

        def refuse(*_args, **_named):
            raise CapacityTaken("a rival is about to take one of the GPUs")

        monkeypatch.setattr(repacking.moving, "carry_out", refuse)
        assert repacking.heal(at=NOW) == 0
        assert not Repacking.objects.exists()

    def test_can_be_undone_as_a_whole(self) -> None:
        one, other = scattered()
        before = places(one), places(other)

        with transaction.atomic():
            repacking.heal(at=NOW)
            transaction.set_rollback(True)

        assert (places(one), places(other)) == before
