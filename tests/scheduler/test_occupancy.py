"""The calendar's index: right at every instant, whatever changes and whoever folds it."""

import datetime as dt
import random
import threading

import numpy as np
import pytest
from django.db import connection

from agents.models import SLOTS_PER_NODE, Node
from marketplace.core.windows import Window, to_seconds
from scheduler import calendar, holds, occupancy, quotes, reindexing
from scheduler.calendar import CapacityTaken, Move, Place
from scheduler.models import Allocation, CalendarMark, CalendarWeek, Quote
from scheduler.occupancy import HOUR_SECONDS, WEEK_HOURS
from tests.scheduler.factories import (
    NOW,
    hours,
    make_node,
    make_pool,
    make_quote,
    make_reservation,
    seconds,
    window_in,
)

pytestmark = pytest.mark.django_db

FIRST_HOUR = to_seconds(NOW) // HOUR_SECONDS


def busy(
    node: Node, *, first_hour: int = FIRST_HOUR, count: int = 8, at: dt.datetime = NOW
) -> list[int]:
    """Return the bits of one node, hour by hour."""
    blocks = np.array([node.slot_base // SLOTS_PER_NODE], dtype=np.int32)
    masks = occupancy.read(blocks=blocks, first_hour=first_hour, hours=count, at=at)
    return [int(mask) for mask in masks[0]]


def assert_exact() -> None:
    """The index equals its source, before and after the marks are folded, and built anew."""
    assert reindexing.compare(at=NOW, limit=5) == []
    reindexing.fold()
    assert not CalendarMark.objects.exists()
    assert reindexing.compare(at=NOW, limit=5) == []


class TestRead:
    def test_tells_what_is_taken_at_once_and_after_it_was_folded(self) -> None:
        make_pool()
        make_reservation(gpus=2, window=window_in(1, length=2))
        make_reservation(gpus=8, window=window_in(4, length=1))
        node = Node.objects.get()

        before = busy(node)
        reindexing.fold()

        assert before == busy(node)
        assert [bin(mask).count("1") for mask in before] == [0, 2, 2, 0, 8, 0, 0, 0]
        assert not CalendarMark.objects.exists()

    def test_spans_weeks(self) -> None:
        make_pool()
        until_week = WEEK_HOURS - FIRST_HOUR % WEEK_HOURS
        make_reservation(window=window_in(until_week - 1, length=WEEK_HOURS + 2))
        reindexing.fold()

        taken = busy(Node.objects.get(), count=until_week + WEEK_HOURS + 4)

        assert sum(map(bool, taken)) == WEEK_HOURS + 2
        assert CalendarWeek.objects.count() == 3

    def test_takes_an_hour_as_taken_of_which_a_part_is(self) -> None:
        make_pool()
        make_reservation(window=window_in(1, length=3))
        place = Allocation.objects.get()
        calendar.change_period(
            allocations=[place], window=Window(NOW + seconds(5400), NOW + seconds(9000))
        )

        assert list(map(bool, busy(Node.objects.get(), count=4))) == [False, True, True, False]
        assert_exact()

    def test_counts_an_expired_hold_as_free_before_the_sweep(self) -> None:
        make_pool()
        quote = make_quote(gpus=8, window=window_in(1), hold=True)
        node = Node.objects.get()
        reindexing.fold()

        assert busy(node)[1] == 0xFF
        assert busy(node, at=quote.expires_at)[1] == 0

    def test_keeps_what_shares_an_hour_with_an_expired_hold(self) -> None:
        make_pool(gpus=1)
        make_quote(gpus=1, window=window_in(1, length=1), hold=True)
        held = Allocation.objects.get()
        calendar.change_period(
            allocations=[held], window=Window(NOW + hours(1), NOW + seconds(5400))
        )
        make_reservation(window=window_in(2, length=1))
        sold = Allocation.objects.exclude(pk=held.pk).get()
        calendar.change_period(
            allocations=[sold], window=Window(NOW + seconds(5400), NOW + hours(2))
        )
        reindexing.fold()

        assert busy(Node.objects.get(), at=NOW + seconds(700))[1] == 1

    def test_tells_each_node_its_own(self) -> None:
        owner = make_pool(nodes=3)
        stranger = make_node(owner=owner, region="us-east")
        make_reservation(gpus=20, window=window_in(1, length=1))

        blocks = (
            np.array(sorted(Node.objects.values_list("slot_base", flat=True)), dtype=np.int32)
            // SLOTS_PER_NODE
        )
        masks = occupancy.read(blocks=blocks, first_hour=FIRST_HOUR, hours=3, at=NOW)

        assert np.bitwise_count(masks).sum(axis=0).tolist() == [0, 20, 0]
        assert not masks[blocks.tolist().index(stranger.slot_base // SLOTS_PER_NODE)].any()


class TestEveryChange:
    def test_of_a_hold_leaves_the_index_right(self) -> None:
        make_pool()
        quote = make_quote(gpus=3, hold=True)
        assert_exact()
        calendar.hand_hold_over(quote_id=quote.pk, reservation_id=make_reservation().pk)
        assert_exact()

    def test_of_an_expiry_leaves_the_index_right(self) -> None:
        make_pool()
        quote = make_quote(gpus=3, hold=True)
        reindexing.fold()
        holds.expire(quote_ids=[quote.pk], at=quote.expires_at)
        assert not any(busy(Node.objects.get(), count=48))
        assert_exact()

    def test_of_a_release_leaves_the_index_right(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=5)
        reindexing.fold()
        calendar.free_reservation(reservation_id=reservation.pk)
        assert not any(busy(Node.objects.get(), count=48))
        assert_exact()

    def test_past_the_verbs_leaves_the_index_right(self) -> None:
        make_pool()
        make_reservation(gpus=5)
        reindexing.fold()
        Allocation.objects.all().delete()
        assert not any(busy(Node.objects.get(), count=48))
        assert_exact()

    def test_that_moves_nothing_leaves_no_mark(self) -> None:
        make_pool()
        make_reservation(gpus=5)
        reindexing.fold()
        Allocation.objects.update(created_at=NOW + hours(1))
        assert not CalendarMark.objects.exists()

    def test_in_any_order_with_folds_leaves_the_index_right(self) -> None:
        make_pool(nodes=3)
        dice = random.Random(7)
        for _ in range(60):
            live = list(Allocation.objects.filter(live=True))
            match dice.randrange(4):
                case 0 if live:
                    Allocation.objects.filter(pk=dice.choice(live).pk).update(live=False)
                case 1 if live:
                    begin = dice.randrange(0, 400 * 60)
                    window = Window(
                        NOW + seconds(begin * 60),
                        NOW + seconds((begin + 1 + dice.randrange(600)) * 60),
                    )
                    try:
                        calendar.change_period(allocations=[dice.choice(live)], window=window)
                    except CapacityTaken:
                        continue
                case 2:
                    reindexing.fold()
                case _:
                    window = window_in(dice.randrange(1, 300), length=dice.randrange(1, 200))
                    try:
                        make_reservation(gpus=dice.randrange(1, 9), window=window)
                    except (CapacityTaken, quotes.NotEnoughCapacity):
                        continue
            assert reindexing.compare(at=NOW, limit=1) == []
        assert_exact()


class TestRebuild:
    def test_derives_the_same_as_folding(self) -> None:
        make_pool(nodes=2)
        make_reservation(gpus=11, window=window_in(30, length=300))
        make_reservation(gpus=1, window=window_in(2, length=1))
        reindexing.fold()
        folded = {(w.week, w.block): bytes(w.busy) for w in CalendarWeek.objects.all()}

        rows = reindexing.rebuild(at=NOW)

        rebuilt = {(w.week, w.block): bytes(w.busy) for w in CalendarWeek.objects.all()}
        assert rebuilt == folded
        assert rows == len(rebuilt) > 2

    def test_repairs_what_somebody_broke(self) -> None:
        make_pool()
        make_reservation(gpus=4)
        reindexing.fold()
        CalendarWeek.objects.all().delete()
        (first, *_) = reindexing.compare(at=NOW, limit=100)
        assert (first.indexed, bin(first.allocated).count("1")) == (0, 4)

        reindexing.rebuild(at=NOW)

        assert reindexing.compare(at=NOW, limit=5) == []

    def test_forgets_the_past(self) -> None:
        make_pool()
        make_reservation(gpus=4)
        reindexing.fold()
        assert reindexing.prune(at=NOW) == 0
        assert reindexing.prune(at=NOW + dt.timedelta(days=30)) == 1

    def test_of_an_empty_market_is_empty(self) -> None:
        assert reindexing.rebuild(at=NOW) == 0
        assert reindexing.compare(at=NOW, limit=1) == []


class TestChangePeriod:
    def test_extends_and_shortens_in_place(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=12 - 4, window=window_in(1, length=2))
        places = list(reservation.allocations.all())

        calendar.change_period(allocations=places, window=window_in(1, length=4))
        assert list(map(bool, busy(Node.objects.get(), count=6))) == [False] + [True] * 4 + [False]
        calendar.change_period(allocations=places, window=window_in(2, length=1))
        assert list(map(bool, busy(Node.objects.get(), count=4))) == [False, False, True, False]
        assert places[0].period.lower == NOW + hours(2)

    def test_refuses_what_somebody_has_and_changes_nothing(self) -> None:
        make_pool(nodes=2)
        first = make_reservation(gpus=16, window=window_in(1, length=2))
        make_reservation(gpus=1, window=window_in(4, length=1))
        places = list(first.allocations.all())

        with pytest.raises(CapacityTaken):
            calendar.change_period(allocations=places, window=window_in(1, length=4))

        assert {a.period.upper for a in first.allocations.all()} == {NOW + hours(3)}
        assert_exact()

    def test_refuses_what_is_over(self) -> None:
        make_pool()
        reservation = make_reservation()
        places = list(reservation.allocations.all())
        calendar.free_reservation(reservation_id=reservation.pk)

        with pytest.raises(CapacityTaken):
            calendar.change_period(allocations=places, window=window_in(1, length=4))


class TestReplacePlaces:
    def place(self, old: Allocation, *, on: Allocation | None = None) -> Place:
        slots = (on or old).slots
        return Place(
            node_id=(on or old).node_id,
            listing_id=old.listing_id,
            slot_lower=slots.lower,
            slot_upper=slots.upper,
        )

    def test_lets_promises_exchange_their_places(self) -> None:
        make_pool(nodes=2)
        one, two = make_reservation(gpus=8), make_reservation(gpus=8)
        a, b = one.allocations.get(), two.allocations.get()
        assert a.node_id != b.node_id

        ((new_a,), (new_b,)) = calendar.replace_places(
            moves=[
                Move(allocation_ids=(a.pk,), places=(self.place(a, on=b),), window=one.window),
                Move(allocation_ids=(b.pk,), places=(self.place(b, on=a),), window=two.window),
            ],
            at=NOW,
        )

        assert (new_a.node_id, new_a.reservation_id) == (b.node_id, one.pk)
        assert (new_b.node_id, new_b.reservation_id) == (a.node_id, two.pk)
        assert Allocation.objects.filter(live=True).count() == 2
        assert_exact()

    def test_makes_all_moves_or_none(self) -> None:
        make_pool(nodes=3)
        one, two, three = (make_reservation(gpus=8) for _ in range(3))
        a, b, c = (r.allocations.get() for r in (one, two, three))

        with pytest.raises(CapacityTaken):
            calendar.replace_places(
                moves=[
                    Move(allocation_ids=(a.pk,), places=(self.place(a, on=b),), window=one.window),
                    Move(allocation_ids=(b.pk,), places=(self.place(b, on=c),), window=two.window),
                ],
                at=NOW,
            )

        assert set(Allocation.objects.filter(live=True).values_list("pk", flat=True)) == {
            a.pk,
            b.pk,
            c.pk,
        }

    def test_refuses_places_that_are_over(self) -> None:
        make_pool(nodes=2)
        reservation = make_reservation(gpus=8)
        place = reservation.allocations.get()
        calendar.free_reservation(reservation_id=reservation.pk)

        with pytest.raises(CapacityTaken):
            calendar.replace_places(
                moves=[
                    Move(
                        allocation_ids=(place.pk,),
                        places=(self.place(place),),
                        window=reservation.window,
                    )
                ],
                at=NOW,
            )


@pytest.mark.django_db(transaction=True)
class TestFold:
    def test_leaves_at_once_while_another_folds(self) -> None:
        make_pool()
        make_reservation()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [reindexing._FOLD_LOCK])
        try:
            counts: list[int] = []

            def fold() -> None:
                counts.append(reindexing.fold())
                connection.close()

            thread = threading.Thread(target=fold)
            thread.start()
            thread.join(timeout=30)
            assert counts == [0]
        finally:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [reindexing._FOLD_LOCK])
        assert reindexing.fold() == Quote.objects.count() == 1
