"""Buyers race for the last GPUs through the verbs, in real transactions.

The twin takes the guards out and shows that the race is real: without them a GPU is sold twice.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection, transaction

from marketplace.core.errors import DomainError
from scheduler import leases, placement, quotes, reservations
from scheduler.calendar import CapacityTaken
from scheduler.models import Allocation, LeaseTransition, Quote, Reservation
from scheduler.placement import assignment
from scheduler.states import QuoteStatus
from tests.scheduler.factories import (
    NOW,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    say_handed_over,
    say_returned,
    seconds,
)

BUYERS = 100  # a connection each
GPUS = 8
POLLS_MAX = 20_000  # some ten seconds of asking PostgreSQL

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


def at_once(actions: Sequence[Callable[[], str]]) -> Counter[str]:
    """Run actions in threads that start at the same instant; count what they return."""
    barrier = threading.Barrier(len(actions), timeout=60)

    def run(action: Callable[[], str]) -> str:
        try:
            connection.ensure_connection()
            barrier.wait()
            return action()
        finally:
            connection.close()

    with ThreadPoolExecutor(max_workers=len(actions)) as threads:
        return Counter(threads.map(run, actions))


def buying(quote: Quote) -> Callable[[], str]:
    """Reserve and pay in one transaction, as the checkout does."""

    def buy() -> str:
        try:
            with transaction.atomic():
                reservation = reserve(quote)
                reservations.confirm(reservation_id=reservation.pk, at=NOW, actor="test")
        except CapacityTaken:
            return "taken"
        return "sold"

    return buy


def sold_slots() -> Counter[int]:
    return Counter(
        slot
        for place in Allocation.objects.filter(live=True)
        for slot in range(place.slots.lower, place.slots.upper)
    )


def wait_for_a_rival() -> None:
    """Return once another connection waits for a lock that this transaction has."""
    for _ in range(POLLS_MAX):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
            )
            (waiting,) = cursor.fetchone()
        if waiting:
            return
    raise AssertionError("no rival came to wait")


class TestLastGpus:
    def test_are_all_sold_and_each_once(self) -> None:
        make_pool(gpus=GPUS)
        tenant = make_organization()
        buyers = [buying(make_quote(tenant=tenant)) for _ in range(BUYERS)]

        outcomes = at_once(buyers)

        assert outcomes == {"sold": GPUS, "taken": BUYERS - GPUS}
        assert sorted(sold_slots().values()) == [1] * GPUS
        assert Quote.objects.filter(status=QuoteStatus.USED).count() == GPUS

    def test_go_to_one_buyer_as_a_whole_block(self) -> None:
        make_pool(gpus=GPUS)
        tenant = make_organization()
        buyers = [buying(make_quote(tenant=tenant, gpus=GPUS)) for _ in range(40)]

        outcomes = at_once(buyers)

        assert outcomes == {"sold": 1, "taken": 39}
        assert sorted(sold_slots().values()) == [1] * GPUS

    def test_go_to_those_who_do_not_give_up(self) -> None:
        """A rival that rolls back must not leave its GPU unsold."""
        make_pool(gpus=1)
        loser, winner = make_quote(), make_quote()
        locked = threading.Event()

        def give_up() -> str:
            with transaction.atomic():
                reserve(loser)
                locked.set()
                wait_for_a_rival()
                transaction.set_rollback(True)
            return "gave up"

        def buy_later() -> str:
            assert locked.wait(timeout=30)
            return buying(winner)()

        assert at_once([give_up, buy_later]) == {"gave up": 1, "sold": 1}

    def test_of_a_lapsed_hold_are_sold_once(self) -> None:
        make_pool(gpus=GPUS)
        tenant = make_organization()
        held = make_quote(gpus=GPUS, hold=True)
        Quote.objects.filter(pk=held.pk).update(expires_at=NOW - seconds(1))
        buyers = [buying(make_quote(tenant=tenant)) for _ in range(20)]

        outcomes = at_once([*buyers, lambda: f"expired {quotes.expire_due(at=NOW)}"])

        assert outcomes["sold"] == GPUS
        assert sorted(sold_slots().values()) == [1] * GPUS
        held.refresh_from_db()
        assert held.status == QuoteStatus.EXPIRED

    def test_of_one_quote_are_sold_once(self) -> None:
        make_pool(gpus=GPUS)
        quote = make_quote()

        def buy() -> str:
            try:
                return buying(Quote.objects.get(pk=quote.pk))()
            except DomainError as refusal:
                return refusal.code

        assert at_once([buy] * 10) == {"sold": 1, "quote_used": 9}


@pytest.fixture
def no_guards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Drop the constraint and the locks; both come back."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'allocation_no_overlap'"
        )
        (definition,) = cursor.fetchone()
        cursor.execute("ALTER TABLE scheduler_allocation DROP CONSTRAINT allocation_no_overlap")
    together = threading.Barrier(2, timeout=30)

    def lock_nothing(shares: Sequence[placement.NodeShare]) -> set[int]:
        together.wait()  # both have seen the same calendar and chosen
        return {slot for share in shares for slot in share.slots[: share.count]}

    monkeypatch.setattr(assignment, "_lock", lock_nothing)
    try:
        yield
    finally:
        Allocation.objects.all().delete()
        with connection.cursor() as cursor:
            cursor.execute(
                f"ALTER TABLE scheduler_allocation ADD CONSTRAINT allocation_no_overlap {definition}"
            )


class TestTwin:
    @pytest.mark.usefixtures("no_guards")
    def test_sells_a_gpu_twice_without_the_guards(self) -> None:
        make_pool(gpus=1)
        buyers = [buying(make_quote()) for _ in range(2)]

        assert at_once(buyers) == {"sold": 2}
        assert list(sold_slots().values()) == [2]


class TestTicksSideBySide:
    def test_move_each_row_once(self) -> None:
        make_pool(nodes=2)
        tenant = make_organization()
        for _ in range(12):
            make_reservation(tenant=tenant)
        starts_at = Reservation.objects.earliest("starts_at").starts_at

        started = at_once([lambda: str(reservations.start_due(at=starts_at))] * 4)

        assert sum(int(count) * times for count, times in started.items()) == 12
        assert LeaseTransition.objects.count() == 12
        for reservation in Reservation.objects.all():
            lease = reservation.leases.get()
            say_handed_over(lease)
            say_returned(lease)

        def advance() -> str:
            moves = sum(leases.advance(at=lease.ends_at) for _ in range(3))
            return str(moves + reservations.finish_due(at=lease.ends_at))

        advanced = at_once([advance] * 4)
        advanced.update([advance()])  # what the others skipped while it was locked

        assert sum(int(count) * times for count, times in advanced.items()) == 12 * 4
        moves = LeaseTransition.objects.values_list("lease_id", "to_status")
        assert len(moves) == len(set(moves)) == 12 * 4
