"""Promises are made, paid, expire, start and move at one instant: one legal outcome, nothing held by nobody.

Each test runs under several seeds, which decide who is sent off first. The twins take one guard out and show
that the race is real.
"""

from collections import Counter
from collections.abc import Callable

import pytest
from django.db import connection, transaction

from agents.models import Gpu, Node
from scheduler import quotes, repacking, reservations
from scheduler.models import Allocation, Lease, Quote, Repacking, Reservation
from scheduler.repacking import moving
from scheduler.states import QuoteStatus, ReservationStatus
from tests.races.test_last_gpus import at_once, buying, sold_slots
from tests.races.test_life import outcome, shuffled
from tests.scheduler.factories import (
    NOW,
    hours,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    resize,
    seconds,
    window_in,
)
from tests.scheduler.test_repacking import places, scattered

SEEDS = range(5)
# Sellable until then: tests go some hours ahead.
HEARD_UNTIL = NOW + hours(24)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]
seeded = pytest.mark.parametrize("seed", SEEDS)


def assert_nothing_is_held_by_nobody() -> None:
    """Every live place serves a promise that stands, and every standing promise has all of its GPUs."""
    held: Counter[str] = Counter()
    for place in Allocation.objects.filter(live=True).select_related("quote", "reservation"):
        count = place.slots.upper - place.slots.lower
        if place.quote is not None:
            assert place.quote.status == QuoteStatus.OPEN
            held[place.quote.pk] += count
        else:
            assert place.reservation is not None
            assert place.reservation.status in {"payment_pending", "scheduled", "active"}
            held[place.reservation.pk] += count
    promises = [
        *Quote.objects.filter(hold=True, status=QuoteStatus.OPEN),
        *Reservation.objects.filter(status__in=["payment_pending", "scheduled", "active"]),
    ]
    assert held == {promise.pk: promise.gpus for promise in promises}
    assert set(sold_slots().values()) <= {1}


def assert_leases_stand_where_the_calendar_says() -> None:
    for lease in Lease.objects.all():
        slots = {
            slot
            for place in lease.allocations.filter(live=True)
            for slot in range(place.slots.lower, place.slots.upper)
        }
        handed_over = Gpu.objects.filter(uuid__in=lease.gpu_uuids).values_list("slot", flat=True)
        assert set(handed_over) == slots


def keep_reporting() -> None:
    Node.objects.update(last_report_at=HEARD_UNTIL)


class TestAHoldThatExpires:
    @seeded
    def test_is_bought_or_goes_back_on_sale(self, seed: int) -> None:
        make_pool()
        held = make_quote(gpus=8, hold=True)
        late = held.expires_at

        ended = at_once(
            shuffled(
                [
                    outcome(lambda: buying_at(held, at=late - seconds(1))),
                    lambda: f"expired {quotes.expire_due(at=late)}",
                    outcome(lambda: make_quote(gpus=8, hold=True, at=late).status),
                ],
                seed=seed,
            )
        )

        held.refresh_from_db()
        if held.status == QuoteStatus.USED:
            assert ended["sold"] == 1
            assert ended["open"] == 0
        else:
            assert held.status == QuoteStatus.EXPIRED
            assert ended["quote_expired"] == 1
        quotes.expire_due(at=late)
        assert_nothing_is_held_by_nobody()

    @seeded
    def test_is_paid_or_expires_unpaid(self, seed: int) -> None:
        make_pool()
        unpaid = reserve(make_quote(gpus=8))
        due = unpaid.payment_due_at

        ended = at_once(
            shuffled(
                [
                    outcome(
                        lambda: (
                            reservations.confirm(
                                reservation_id=unpaid.pk, at=due - seconds(1), actor="test"
                            ).status
                        )
                    ),
                    lambda: f"expired {reservations.expire_unpaid(at=due)}",
                ],
                seed=seed,
            )
        )

        unpaid.refresh_from_db()
        if unpaid.status == ReservationStatus.SCHEDULED:
            assert ended == {"scheduled": 1, "expired 0": 1}
        else:
            assert unpaid.status == ReservationStatus.EXPIRED
            assert ended == {"state_conflict": 1, "expired 1": 1}
        assert_nothing_is_held_by_nobody()


def buying_at(quote: Quote, *, at) -> str:
    with transaction.atomic():
        reservation = reserve(quote, at=at)
        reservations.confirm(reservation_id=reservation.pk, at=at, actor="test")
    return "sold"


class TestHoldsOfOneTenant:
    def test_never_exceed_their_number_however_many_ask_at_once(self, monkeypatch) -> None:
        make_pool(nodes=2)
        tenant = make_organization()
        monkeypatch.setattr(quotes, "OPEN_HOLDS_MAX", 3)

        def hold() -> str:
            return make_quote(tenant=tenant, hold=True).status

        assert at_once([outcome(hold)] * 12) == {"open": 3, "limit_exceeded": 9}

    def test_never_exceed_their_gpu_hours_however_many_ask_at_once(self, monkeypatch) -> None:
        make_pool(nodes=2)
        tenant = make_organization()
        monkeypatch.setattr(quotes, "HELD_GPU_HOURS_MAX", 8)

        def hold() -> str:
            return make_quote(tenant=tenant, hold=True, window=window_in(24, length=2)).status

        assert at_once([outcome(hold)] * 12) == {"open": 4, "limit_exceeded": 8}

    def test_do_not_stand_in_the_way_of_others(self, monkeypatch) -> None:
        make_pool(nodes=2)
        monkeypatch.setattr(quotes, "OPEN_HOLDS_MAX", 1)

        assert at_once([outcome(lambda: make_quote(hold=True).status)] * 12) == {"open": 12}


class TestABlock:
    @seeded
    def test_and_buyers_of_single_gpus_never_share(self, seed: int) -> None:
        make_pool(nodes=2)
        tenant = make_organization()
        block = make_quote(tenant=tenant, gpus=16)
        singles = [make_quote(tenant=tenant) for _ in range(6)]

        ended = at_once(shuffled([buying(quote) for quote in [block, *singles]], seed=seed))

        block.refresh_from_db()
        if block.status == QuoteStatus.USED:
            assert ended == {"sold": 1, "taken": 6}
        else:
            assert ended == {"sold": 6, "taken": 1}
        assert_nothing_is_held_by_nobody()


class TestAMove:
    @seeded
    def test_and_a_start_leave_every_lease_where_the_calendar_says(self, seed: int) -> None:
        one, other = scattered()
        keep_reporting()
        block = make_quote_that_needs_room()
        starts_at = one.starts_at

        ended = at_once(
            shuffled(
                [
                    buying(block),
                    lambda: f"started {reservations.start_due(at=starts_at)}",
                ],
                seed=seed,
            )
        )
        reservations.start_due(at=starts_at)

        assert ended["sold"] + ended["taken"] == 1
        assert ended["sold"] == Repacking.objects.count()
        assert_nothing_is_held_by_nobody()
        assert_leases_stand_where_the_calendar_says()
        for promise in (one, other):
            promise.refresh_from_db()
            assert promise.status == ReservationStatus.ACTIVE

    @seeded
    def test_and_buyers_of_the_hold_that_moves_lose_no_gpu(self, seed: int) -> None:
        one, _other = scattered()
        keep_reporting()
        hold = make_quote(gpus=2, hold=True)
        block = make_quote_that_needs_room()

        ended = at_once(shuffled([buying(block), buying(hold)], seed=seed))

        assert ended["sold"] >= 1
        hold.refresh_from_db()
        assert hold.status == QuoteStatus.USED
        assert_nothing_is_held_by_nobody()
        assert sum(upper - lower for lower, upper in places(one)) == 4

    @seeded
    def test_of_the_night_and_buyers_lose_no_gpu(self, seed: int) -> None:
        scattered()
        tenant = make_organization()
        buyers = [buying(make_quote(tenant=tenant, gpus=2)) for _ in range(6)]

        ended = at_once(shuffled([*buyers, lambda: f"healed {repacking.heal(at=NOW)}"], seed=seed))

        assert ended["sold"] == 4
        assert ended["taken"] == 2
        assert_nothing_is_held_by_nobody()

    def test_that_comes_after_a_start_is_refused(self, monkeypatch) -> None:
        one, other = scattered()
        keep_reporting()
        block = make_quote_that_needs_room()
        meanwhile(monkeypatch, lambda: reservations.start_due(at=one.starts_at))

        assert buying(block)() == "taken"
        assert_nothing_is_held_by_nobody()
        assert_leases_stand_where_the_calendar_says()
        assert {places(one)[0][0] // 16, places(other)[0][0] // 16} == {
            lease.node.slot_base // 16 for lease in Lease.objects.all()
        }

    def test_without_its_locks_would_take_the_gpus_of_a_lease(self, monkeypatch) -> None:
        one, _other = scattered()
        keep_reporting()
        block = make_quote_that_needs_room()
        monkeypatch.setattr(moving, "_lock_promises", lambda *_args, **_named: None)
        meanwhile(monkeypatch, lambda: reservations.start_due(at=one.starts_at))

        assert buying(block)() == "sold"
        with pytest.raises(AssertionError):
            assert_leases_stand_where_the_calendar_says()


def make_quote_that_needs_room() -> Quote:
    """Return a quote of a whole node, priced while one was free."""
    quote = make_quote(gpus=4, window=window_in(24))
    resize(quote, gpus=8)
    Quote.objects.filter(pk=quote.pk).update(spread="single_node")
    return Quote.objects.get(pk=quote.pk)


def meanwhile(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Let a rival act between the thought and the deed of a move."""
    carry_out = moving.carry_out

    def interrupted(**named) -> None:
        at_once([lambda: str(action())])
        connection.ensure_connection()
        carry_out(**named)

    monkeypatch.setattr(moving, "carry_out", interrupted)


def test_the_tests_above_see_a_hold_of_nobody() -> None:
    make_pool()
    held = make_quote(gpus=4, hold=True)
    make_reservation(gpus=2)
    Quote.objects.filter(pk=held.pk).update(status=QuoteStatus.EXPIRED)

    with pytest.raises(AssertionError):
        assert_nothing_is_held_by_nobody()
