"""Whatever is bought, extended, moved, begun, returned and cancelled: capacity and money agree."""

import datetime as dt

import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from agents.models import Node
from billing import books, changes, checkout, ledger, settlements, wallet
from billing.states import GPU_SECONDS, AccountKind
from marketplace.core.errors import DomainError
from marketplace.core.money import Money
from scheduler import cancellations, extensions, leases, rebookings, replacements, reservations
from scheduler.details import ReservationDetails
from scheduler.lots import Lots
from scheduler.models import Allocation, Change, Lease, Reservation
from scheduler.rebookings import WindowWish
from scheduler.states import RESERVATION_ARROWS, ReservationStatus
from tests.scheduler.factories import (
    NOW,
    hours,
    make_organization,
    make_pool,
    make_quote,
    say_handed_over,
    say_returned,
)
from tests.scheduler.factories import window_in as window_at

NODES, GPUS_PER_NODE = 2, 4
FUNDS_MINOR = 100_000
EXPECTED = {
    "capacity_taken",
    "extension_refused",
    "extension_too_late",
    "invalid_value",
    "move_too_late",
    "not_enough_capacity",
    "payment_required",
    "state_conflict",
    "window_in_past",
    "window_upside_down",
}


class Market(RuleBasedStateMachine):
    """Drive all changes in any order, with a clock that only goes forward."""

    def __init__(self) -> None:
        super().__init__()
        self.sandbox = transaction.atomic()  # one per example: each begins with an empty market
        self.sandbox.__enter__()
        make_pool(nodes=NODES, gpus=GPUS_PER_NODE)
        self.tenant = make_organization()
        wallet.record_deposit(
            organization=self.tenant,
            amount=Money(FUNDS_MINOR, "usd"),
            idempotency_key="first",
            at=NOW,
            actor="test",
        )
        self.now = NOW

    def known(self, choice: int) -> Reservation | None:
        rows = list(Reservation.objects.order_by("pk"))
        return rows[choice % len(rows)] if rows else None

    @rule(
        gpus=st.integers(min_value=1, max_value=NODES * GPUS_PER_NODE),
        start=st.integers(min_value=1, max_value=40),
        length=st.integers(min_value=1, max_value=6),
    )
    def buy(self, gpus: int, start: int, length: int) -> None:
        window = window_at((self.now - NOW) // hours(1) + start, length=length)
        try:
            with transaction.atomic():
                quote = make_quote(tenant=self.tenant, at=self.now, gpus=gpus, window=window)
                checkout.purchase(
                    organization=self.tenant,
                    quote_id=quote.pk,
                    payment_method="wallet",
                    details=ReservationDetails(),
                    at=self.now,
                    actor="test",
                )
        except DomainError as refusal:
            outcome = refusal.code
        else:
            outcome = ""
        assert outcome in EXPECTED | {""}

    @rule(choice=st.integers(min_value=0))
    def leave(self, choice: int) -> None:
        def act(reservation: Reservation) -> None:
            quote = cancellations.quote(
                organization=self.tenant, reservation_id=reservation.pk, at=self.now
            )
            changes.cancel(
                organization=self.tenant,
                reservation_id=reservation.pk,
                quote_id=quote.pk,
                at=self.now,
                actor="test",
            )

        self.change(choice, act)

    @rule(choice=st.integers(min_value=0), by=st.integers(min_value=1, max_value=6))
    def extend(self, choice: int, by: int) -> None:
        def act(reservation: Reservation) -> None:
            quote = extensions.quote(
                organization=self.tenant,
                reservation_id=reservation.pk,
                ends_at=reservation.ends_at + hours(by),
                max_rate=None,
                at=self.now,
            )
            changes.extend(
                organization=self.tenant,
                reservation_id=reservation.pk,
                quote_id=quote.pk,
                payment_method="wallet",
                at=self.now,
                actor="test",
            )

        self.change(choice, act)

    @rule(
        choice=st.integers(min_value=0),
        start=st.integers(min_value=-6, max_value=30),
        end=st.integers(min_value=-6, max_value=30),
    )
    def rebook(self, choice: int, start: int, end: int) -> None:
        def act(reservation: Reservation) -> None:
            quote = rebookings.quote(
                organization=self.tenant,
                reservation_id=reservation.pk,
                wish=WindowWish(
                    starts_at=reservation.starts_at + hours(start),
                    ends_at=reservation.ends_at + hours(end),
                ),
                at=self.now,
            )
            changes.rebook(
                organization=self.tenant,
                reservation_id=reservation.pk,
                quote_id=quote.pk,
                payment_method="wallet",
                at=self.now,
                actor="test",
            )

        self.change(choice, act)

    def change(self, choice: int, act) -> None:
        """Try a change of one of the reservations; a refusal leaves it exactly as it was."""
        reservation = self.known(choice)
        if reservation is None:
            return
        before = self.told(reservation)
        try:
            with transaction.atomic():
                act(reservation)
        except DomainError as refusal:
            outcome = refusal.code
        else:
            outcome = ""
        assert outcome in EXPECTED | {""}
        assert (self.told(reservation) == before) == bool(outcome)

    def told(self, reservation: Reservation) -> object:
        places = Allocation.objects.filter(reservation=reservation, live=True).order_by("pk")
        return (
            Reservation.objects.filter(pk=reservation.pk).values().get(),
            list(places.values("pk", "period", "slots")),
            wallet.balance(organization=self.tenant),
            Change.objects.count(),
        )

    @rule(minutes=st.integers(min_value=1, max_value=300))
    def wait(self, minutes: int) -> None:
        self.now += dt.timedelta(minutes=minutes)
        Node.objects.update(last_report_at=self.now)
        self.tick()

    def tick(self) -> None:
        for lease in Lease.objects.filter(status__in=["returning", "active"]):
            if lease.status == "returning" or lease.ends_at <= self.now:
                leases.end_due(at=self.now)
                if not lease.node.receipts.filter(lease_id=lease.pk, kind="return").exists():
                    say_returned(lease, at=min(self.now, lease.ends_at))
        leases.advance(at=self.now)
        reservations.start_due(at=self.now)
        for lease in Lease.objects.filter(status="provisioning"):
            say_handed_over(lease, at=self.now)
        leases.advance(at=self.now)
        replacements.advance(at=self.now)
        reservations.finish_due(at=self.now)
        settlements.settle_ended(at=self.now)

    def teardown(self) -> None:
        later = self.now + dt.timedelta(days=60)
        settlements.settle_ended(at=later)
        assert [c for c in books.check(at=later).checks if not c.ok] == []
        for reservation in Reservation.objects.all():
            if RESERVATION_ARROWS.is_final(ReservationStatus(reservation.status)):
                for kind, currency in (
                    (AccountKind.DEFERRED, "usd"),
                    (AccountKind.U_OPEN, GPU_SECONDS),
                ):
                    account = ledger.AccountRef(kind, currency, reservation.pk)
                    assert ledger.balance(account=account) == 0, (reservation.pk, kind)
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
    def what_is_bought_stands_in_the_calendar_and_in_the_price(self) -> None:
        for reservation in Reservation.objects.prefetch_related("allocations"):
            places = [place for place in reservation.allocations.all() if place.live]
            slots = sum(place.slots.upper - place.slots.lower for place in places)
            status = ReservationStatus(reservation.status)
            if RESERVATION_ARROWS.is_final(status):
                assert slots == 0
                continue
            lots = Lots.from_json(reservation.lots)
            assert lots.window == reservation.window
            total = lots.amount(window=reservation.window, currency="usd")
            assert reservation.total_minor == total.amount_minor
            if status is ReservationStatus.SCHEDULED:
                assert slots == reservation.gpus
                assert {(p.period.lower, p.period.upper) for p in places} == {
                    (reservation.starts_at, reservation.ends_at)
                }

    @invariant()
    def the_books_are_sound(self) -> None:
        assert [check for check in books.check(at=self.now).checks if not check.ok] == []


@pytest.mark.timeout(300)  # the books are checked after every step
class TestChanges(TestCase):
    def test_keep_capacity_and_money_consistent(self) -> None:
        run_state_machine_as_test(
            Market,
            settings=settings(
                max_examples=6,
                stateful_step_count=20,
                phases=[Phase.explicit, Phase.generate],  # shrinking would outlast the limit
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
