"""Whatever is quoted, held, reserved, paid, expired and started: no GPU is promised twice, none is lost."""

import datetime as dt
import itertools
from collections import defaultdict

from django.db import connection, transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from agents.models import Node
from marketplace.core.errors import DomainError
from marketplace.models import Listing
from scheduler import leases, quotes, reindexing, reservations
from scheduler.models import Allocation, Lease, Quote, Reservation
from scheduler.states import RESERVATION_ARROWS, LeaseStatus, QuoteStatus, ReservationStatus
from tests.scheduler.factories import (
    NOW,
    hours,
    make_organization,
    make_pool,
    make_quote,
    reserve,
    say_handed_over,
    say_returned,
)
from tests.scheduler.factories import window_in as window_at

NODES, GPUS_PER_NODE = 2, 4
TURNAROUND_SECONDS = 5_400  # no whole hours: the index rounds up, the database does not


class Market(RuleBasedStateMachine):
    """Drive the verbs in any order, with a clock that only goes forward."""

    def __init__(self) -> None:
        super().__init__()
        self.sandbox = transaction.atomic()  # one per example: each begins with an empty market
        self.sandbox.__enter__()
        make_pool(nodes=NODES, gpus=GPUS_PER_NODE)
        Listing.objects.update(turnaround_seconds=TURNAROUND_SECONDS)
        self.tenant = make_organization()
        self.now = NOW

    @rule(
        gpus=st.integers(min_value=1, max_value=NODES * GPUS_PER_NODE),
        start=st.integers(min_value=0, max_value=12),
        length=st.integers(min_value=1, max_value=6),
        hold=st.booleans(),
    )
    def quote(self, gpus: int, start: int, length: int, hold: bool) -> None:  # noqa: FBT001 - Hypothesis calls by name
        window = window_at((self.now - NOW) // hours(1) + 1 + start, length=length)
        try:
            made = make_quote(tenant=self.tenant, at=self.now, gpus=gpus, window=window, hold=hold)
        except quotes.NotEnoughCapacity:
            return
        held = sum(a.slots.upper - a.slots.lower for a in made.allocations.all())
        assert held == (gpus if hold else 0)

    @rule(choice=st.integers(min_value=0), pays=st.booleans())
    def reserve(self, choice: int, pays: bool) -> None:  # noqa: FBT001 - Hypothesis calls by name
        known = list(Quote.objects.order_by("pk"))
        if not known:
            return
        quote = known[choice % len(known)]
        is_open = quote.status == QuoteStatus.OPEN and quote.expires_at > self.now
        try:
            reservation = reserve(quote, at=self.now)
        except DomainError as refusal:
            outcome = refusal.code
        else:
            outcome = "reserved"
            if pays:
                reservations.confirm(reservation_id=reservation.pk, at=self.now, actor="test")
        if not is_open:
            assert outcome in ("quote_used", "quote_expired")
        elif quote.hold:
            assert outcome == "reserved"
        else:
            assert outcome in ("reserved", "capacity_taken")

    @rule(minutes=st.integers(min_value=1, max_value=180))
    def wait(self, minutes: int) -> None:
        self.now += dt.timedelta(minutes=minutes)
        Node.objects.update(last_report_at=self.now)

    @rule()
    def sweep(self) -> None:
        quotes.expire_due(at=self.now)
        reservations.expire_unpaid(at=self.now)

    @rule()
    def tick(self) -> None:
        leases.advance(at=self.now)
        reservations.start_due(at=self.now)
        reservations.finish_due(at=self.now)

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.sandbox.__exit__(None, None, None)

    @invariant()
    def no_gpu_is_promised_twice(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM scheduler_allocation a JOIN scheduler_allocation b ON a.id < b.id"
                " WHERE a.live AND b.live AND a.slots && b.slots AND a.period && b.period"
            )
            assert cursor.fetchone() == (0,)

    @invariant()
    def between_two_tenants_who_came_there_is_time_to_turn_round(self) -> None:
        """By the leases, which are what happened, and by what is promised behind them."""
        used: dict[int, list[tuple[dt.datetime, dt.datetime, str]]] = defaultdict(list)
        for place in Allocation.objects.select_related("lease", "reservation"):
            if place.lease is None and not place.live:
                continue
            ends_at = place.period.upper
            if place.lease is not None and place.lease.closed_at is not None:
                ends_at = min(ends_at, place.lease.closed_at)
            who = place.reservation_id or place.quote_id or ""
            for slot in range(place.slots.lower, place.slots.upper):
                used[slot].append((place.period.lower, ends_at, who))
        for stays in used.values():
            stays.sort()
            for (_, left_at, one), (came_at, _, other) in itertools.pairwise(stays):
                if one != other:
                    assert came_at - left_at >= dt.timedelta(seconds=TURNAROUND_SECONDS)

    @rule(choice=st.integers(min_value=0), clean=st.booleans())
    def hand_over_or_return(self, choice: int, clean: bool) -> None:  # noqa: FBT001 - Hypothesis calls by name
        """Let a node say what comes next: that a lease was handed over, or that it has its GPUs back."""
        known = list(Lease.objects.filter(closed_at=None).order_by("pk"))
        if not known:
            return
        lease = known[choice % len(known)]
        if lease.status == LeaseStatus.PROVISIONING:
            say_handed_over(lease, at=self.now)
        elif lease.status == LeaseStatus.RETURNING:
            say_returned(lease, at=self.now, clean=clean)

    @invariant()
    def every_live_promise_has_all_its_gpus_and_no_dead_one_has_any(self) -> None:
        for reservation in Reservation.objects.prefetch_related("allocations"):
            slots = sum(
                place.slots.upper - place.slots.lower
                for place in reservation.allocations.all()
                if place.live
            )
            status = ReservationStatus(reservation.status)
            if status in (ReservationStatus.PAYMENT_PENDING, ReservationStatus.SCHEDULED):
                assert slots == reservation.gpus
            if RESERVATION_ARROWS.is_final(status):
                assert slots == 0

    @invariant()
    def the_index_equals_its_source(self) -> None:
        assert reindexing.compare(at=NOW, limit=1) == []

    @rule()
    def fold(self) -> None:
        reindexing.fold()

    @invariant()
    def only_open_quotes_hold(self) -> None:
        held = Allocation.objects.filter(live=True, quote__isnull=False)
        assert {place.quote.status for place in held.select_related("quote") if place.quote} <= {
            QuoteStatus.OPEN
        }


class TestCalendar(TestCase):
    def test_keeps_every_promise(self) -> None:
        run_state_machine_as_test(
            Market,
            settings=settings(
                max_examples=15,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
