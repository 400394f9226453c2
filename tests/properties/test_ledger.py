"""Any order of events keeps the books: deposits, purchases, deliveries, settlements, releases, reversals."""

import datetime as dt

import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from billing import books, ledger, payouts, settlements, wallet
from billing.ledger import InsufficientFunds
from billing.models import Account, Entry, Posting
from billing.states import EntryKind
from marketplace.core.money import Money
from scheduler.models import Reservation
from scheduler.states import LeaseStatus, ReservationStatus
from tests.billing import factories

pytestmark = pytest.mark.django_db

FAR = factories.START + dt.timedelta(days=365)


class Market(RuleBasedStateMachine):
    """One tenant, whose reservations run through every fate that a lease can have."""

    def __init__(self) -> None:
        super().__init__()
        self.savepoint = transaction.savepoint()
        self.tenant = factories.tenant()
        self.funds = 0
        self.deposits = 0
        self.running: list[Reservation] = []
        self.finished: list[Reservation] = []

    def teardown(self) -> None:
        transaction.savepoint_rollback(self.savepoint)

    @rule(amount=st.integers(1, 5000))
    def deposit(self, amount: int) -> None:
        self.deposits += 1
        self.funds += amount
        for _ in range(2):
            wallet.record_deposit(
                organization=self.tenant,
                amount=Money(amount, "usd"),
                idempotency_key=str(self.deposits),
                at=factories.START,
                actor="test",
            )

    @rule(price=st.integers(0, 3000), gpus=st.integers(1, 8), fee=st.integers(0, 9000))
    def buy(self, price: int, gpus: int, fee: int) -> None:
        held = wallet.balance(organization=self.tenant).amount_minor
        inner = transaction.savepoint()
        try:
            self.running.append(
                factories.reservation(
                    buyer=self.tenant, gpus=gpus, total_minor=price, fee_basis_points=fee
                )
            )
        except InsufficientFunds as refusal:
            missing = refusal.extra["missing"]
            transaction.savepoint_rollback(inner)
        else:
            missing = None
        short_by = max(price - held, 0)
        assert missing == ({"amount_minor": short_by, "currency": "usd"} if short_by else None)

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        nodes=st.integers(0, 3),
        handover=st.none() | st.integers(0, 3599),
        length=st.integers(0, 3600),
        busy=st.integers(0, 3600),
    )
    def finish(
        self, data: st.DataObject, nodes: int, handover: int | None, length: int, busy: int
    ) -> None:
        reservation = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        left = reservation.gpus
        for _ in range(nodes):
            if not left:
                break
            gpus = data.draw(st.integers(1, left))
            left -= gpus
            lease = factories.lease(
                of=reservation,
                gpus=gpus,
                status=LeaseStatus.FAILED if handover is None else LeaseStatus.ENDED,
                handed_over_after_seconds=handover,
                returned_after_seconds=None if handover is None else min(3600, handover + length),
            )
            factories.meter(of=lease, busy=busy)
        status = ReservationStatus.FAILED if handover is None else ReservationStatus.COMPLETED
        Reservation.objects.filter(pk=reservation.pk).update(status=status)
        self.finished.append(reservation)

    @rule()
    def settle(self) -> None:
        settlements.settle_ended(at=FAR)

    @rule()
    def release(self) -> None:
        payouts.release_due(at=FAR)

    @precondition(lambda self: self.deposits)
    @rule(data=st.data())
    def take_a_deposit_back(self, data: st.DataObject) -> None:
        entries = list(Entry.objects.filter(kind=EntryKind.DEPOSIT, reversed_by__isnull=True))
        if not entries:
            return
        entry = data.draw(st.sampled_from(sorted(entries, key=lambda e: e.idempotency_key)))
        amount = entry.postings.all()[0].amount
        try:
            with transaction.atomic():
                ledger.reverse(entry=entry, idempotency_key=f"undo:{entry.id}", at=FAR)
        except InsufficientFunds:
            assert amount > wallet.balance(organization=self.tenant).amount_minor
        else:
            self.funds -= amount

    @rule()
    def close_the_day(self) -> None:
        """After everything finished is settled, nothing of it is left open anywhere."""
        settlements.settle_ended(at=FAR)
        settlements.settle_ended(at=FAR)
        payouts.release_due(at=FAR)
        ids = [reservation.id for reservation in self.finished]
        assert not Account.objects.filter(subject_id__in=ids, guarded=True, balance__gt=0).exists()
        report = books.check(at=FAR + dt.timedelta(days=1))
        assert report.ok, [check for check in report.checks if not check.ok]

    @invariant()
    def money_is_neither_made_nor_lost(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
        places = Posting.objects.filter(account__currency="usd").exclude(account__kind="bank")
        held = sum(p.amount if p.side == "credit" else -p.amount for p in places)
        assert held == self.funds


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("examples", "steps"),
    [(8, 12), pytest.param(200, 40, marks=pytest.mark.slow, id="two hundred long runs")],
)
def test_any_order_of_events_keeps_the_books(db, examples, steps):
    run_state_machine_as_test(
        Market,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_replay_of_the_journal_gives_the_same_balances():
    buyer = factories.tenant(funds_minor=5000)
    for gpus in (1, 2, 3):
        factories.lease(of=factories.reservation(buyer=buyer, gpus=gpus))
    settlements.settle_ended(at=FAR)
    payouts.release_due(at=FAR)
    replayed: dict[tuple[str, str], int] = {}
    for posting in Posting.objects.select_related("account").order_by("id"):
        account = posting.account
        sign = 1 if posting.side == account.normal_side else -1
        place = (account.code, account.currency)
        replayed[place] = replayed.get(place, 0) + sign * posting.amount
        assert replayed[place] >= 0, place
    kept = Account.objects.filter(guarded=True).values_list("code", "currency", "balance")
    assert {(code, currency): replayed[code, currency] for code, currency, _ in kept} == {
        (code, currency): balance for code, currency, balance in kept
    }
