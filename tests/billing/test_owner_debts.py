"""What owners owe: netted first, then taken back of what they were sent by its age, or given up by two."""

import datetime as dt
from typing import Any

import pytest

from billing import (
    accounts,
    approvals,
    books,
    ledger,
    owner_debts,
    owner_statements,
    reserves,
    transfers,
)
from billing import provider as doors
from billing.approvals import FourEyesNeeded
from billing.models import Approval, Entry, Reversal, Transfer
from billing.owner_debts import NothingOwed
from billing.owner_statements import LineKind
from billing.provider_states import TransferStatus
from billing.states import AccountKind, ApprovalKind, EntryKind
from marketplace.core.money import Money
from marketplace.models import Event, Organization
from tests.billing import factories
from tests.billing.owner_market import OwnerWorld

pytestmark = pytest.mark.django_db

AT = factories.START
DAY = dt.timedelta(days=1)


def owes(amount: int, *, at: dt.datetime, owner: Organization | None = None) -> Entry:
    """Let an owner owe what a correction that came late took of it, after it was paid."""
    whose = owner or factories.owner()
    number = Entry.objects.count()
    return ledger.post(
        idempotency_key=f"correction:late:{number}",
        kind=EntryKind.CORRECTION,
        subject_id=whose.pk,
        effective_at=at,
        legs=ledger.transfer(
            debited=debt(whose),
            credited=ledger.AccountRef(AccountKind.SLA_CREDITS, "usd"),
            amount=amount,
        ),
    )


def nets(amount: int, *, at: dt.datetime) -> None:
    """Let something that the owner earned meanwhile pay a part of it."""
    ledger.post(
        idempotency_key=f"netted:{Entry.objects.count()}",
        kind=EntryKind.RELEASE,
        subject_id=f"set_{Entry.objects.count()}",
        effective_at=at,
        legs=ledger.transfer(
            debited=ledger.AccountRef(AccountKind.SLA_CREDITS, "usd"),
            credited=debt(factories.owner()),
            amount=amount,
        ),
    )


def debt(owner: Organization) -> ledger.AccountRef:
    return accounts.of_owner(kind=AccountKind.OWNER_CLAWBACK, owner=owner, currency="usd")


def overdue(at: dt.datetime) -> int:
    return owner_debts.overdue_minor(owner=factories.owner(), currency="usd", at=at)


class TestAge:
    def test_is_that_of_what_was_not_netted(self) -> None:
        owes(300, at=AT)
        owes(50, at=AT + 10 * DAY)
        assert [overdue(AT + days * DAY) for days in (13, 14, 23, 24)] == [0, 300, 300, 350]

    def test_lets_netting_pay_the_oldest_first(self) -> None:
        owes(300, at=AT)
        owes(50, at=AT + 10 * DAY)
        nets(200, at=AT + 12 * DAY)
        assert overdue(AT + 14 * DAY) == 100
        nets(120, at=AT + 15 * DAY)
        assert overdue(AT + 16 * DAY) == 0
        assert overdue(AT + 24 * DAY) == 30

    def test_is_waited_for_as_long_as_the_operator_says(self, settings: Any) -> None:
        settings.OWNER_DEBT_PATIENCE_SECONDS = 86_400
        owes(300, at=AT)
        assert [overdue(AT + hours * DAY / 24) for hours in (23, 24)] == [0, 300]


class TestTakingBack:
    @pytest.fixture
    def world(self, provider: Any, clock: Any) -> Any:
        """Return an owner that was sent 400."""
        clock(days=60)
        made = OwnerWorld(provider, clock)
        made.onboard()
        made.earn()
        made.turn()
        return made

    def collect(self, world: Any, **passed: int) -> int:
        count = owner_debts.collect_due(at=world.clock(**passed))
        doors.drive_due(at=world.clock())
        return count

    def test_is_of_debts_that_no_dispute_made_once_netting_had_its_time(self, world: Any) -> None:
        owes(150, at=world.clock())
        assert self.collect(world, days=13) == 0
        assert self.collect(world, days=1) == 1
        (reversal,) = Reversal.objects.all()
        assert (reversal.status, reversal.amount_minor) == ("done", 150)
        assert ledger.balance(account=debt(factories.owner())) == 0
        assert self.collect(world, days=8) == 0

    def test_is_of_what_is_old_enough_alone(self, world: Any) -> None:
        owes(150, at=world.clock())
        owes(70, at=world.clock(days=10))
        self.collect(world, days=4)
        assert list(Reversal.objects.values_list("amount_minor", flat=True)) == [150]
        self.collect(world, days=10)
        assert sorted(Reversal.objects.values_list("amount_minor", flat=True)) == [70, 150]

    def test_stops_where_transfers_leave_no_room(self, world: Any) -> None:
        owes(1000, at=world.clock())
        assert self.collect(world, days=14) == 1
        assert Reversal.objects.get().amount_minor == 400
        assert self.collect(world, days=8) == 0
        assert ledger.balance(account=debt(factories.owner())) == 600

    def test_is_asked_for_once_while_it_is_under_way(self, world: Any) -> None:
        owes(150, at=world.clock())
        assert owner_debts.collect_due(at=world.clock(days=14)) == 1
        assert owner_debts.collect_due(at=world.clock(days=30)) == 0
        assert Reversal.objects.count() == 1

    def test_of_one_owner_that_fails_keeps_no_other_waiting(
        self, world: Any, monkeypatch: Any
    ) -> None:
        real, failed = transfers.take_back, []

        def breaks(*, owner: Organization, **told: Any) -> Any:
            if owner == factories.owner():
                failed.append(owner)
                raise AssertionError(owner)
            return real(owner=owner, **told)

        monkeypatch.setattr(transfers, "take_back", breaks)
        other = factories.owner(name="Somebody else")
        sent = Transfer.objects.create(
            owner=other,
            account=Transfer.objects.get().account,
            payout=world.earn(),
            status=TransferStatus.PAID,
            amount_minor=400,
            currency="usd",
            provider_id="tr_other",
            created_at=AT,
        )
        owes(150, at=world.clock())
        owes(20, at=world.clock(), owner=other)
        assert owner_debts.collect_due(at=world.clock(days=14)) == 1
        assert failed
        assert Reversal.objects.get().transfer == sent


class TestGivingUp:
    def ask(self, amount: int, **changes: Any) -> Approval:
        owner = factories.owner()
        return approvals.request(
            **{
                "kind": ApprovalKind.WRITE_OFF,
                "organization": owner,
                "subject_id": owner.pk,
                "amount": Money(amount, "usd"),
                "reason": "It has sold its machines.",
                "at": AT + 30 * DAY,
                "actor": "anna",
                **changes,
            }
        )

    def give_up(self, amount: int, **changes: Any) -> Approval:
        asked = self.ask(amount, **changes)
        return approvals.approve(approval_id=asked.pk, at=AT + 30 * DAY, actor="ben")

    def test_takes_two_people(self) -> None:
        owes(300, at=AT)
        asked = self.ask(300)
        with pytest.raises(FourEyesNeeded):
            approvals.approve(approval_id=asked.pk, at=AT, actor="anna")
        assert ledger.balance(account=debt(factories.owner())) == 300

    def test_is_a_bad_debt_of_the_markets_and_told(self) -> None:
        owes(300, at=AT)
        made = self.give_up(200)
        assert ledger.balance(account=debt(factories.owner())) == 100
        assert ledger.balance(account=ledger.AccountRef(AccountKind.BAD_DEBT, "usd")) == 200
        assert overdue(AT + 30 * DAY) == 100
        told = Event.objects.get(kind="owner_debt.written_off")
        assert (told.organization, told.object_id) == (factories.owner(), made.pk)
        assert told.data == {"amount_minor": 200, "currency": "usd"}
        report = books.check(at=AT + 31 * DAY)
        failed = {check.name for check in report.checks if not check.ok}
        assert failed.isdisjoint(
            {"recovered_is_at_most_what_was_written_off", "two_people_gave_it_up"}
        )

    def test_is_on_the_owners_statement(self) -> None:
        at = AT + 30 * DAY
        owes(300, at=AT)
        self.give_up(300)
        told = owner_statements.statement(owner=factories.owner(), month=f"{at:%Y-%m}", at=at)
        (line,) = (line for line in told.lines if line.kind == LineKind.WRITE_OFF)
        assert line.amount == 300
        assert told.totals[LineKind.WRITE_OFF] == 300
        assert told.closing.owed_by_owner == 0

    @pytest.mark.parametrize("amount", [0, 301])
    def test_is_of_what_is_owed(self, amount: int) -> None:
        owes(300, at=AT)
        with pytest.raises(NothingOwed):
            self.give_up(amount)
        assert ledger.balance(account=debt(factories.owner())) == 300

    def test_is_not_of_what_is_under_way_to_come_back(self, provider: Any, clock: Any) -> None:
        clock(days=60)
        world = OwnerWorld(provider, clock)
        world.onboard()
        world.earn()
        world.turn()
        owes(300, at=clock())
        owner_debts.collect_due(at=clock(days=14))
        with pytest.raises(NothingOwed):
            self.give_up(1)
        doors.drive_due(at=clock())
        assert reserves.owed(owner=factories.owner(), currency="usd") == 0

    def test_leaves_what_the_owner_earns_later_to_it(self) -> None:
        owes(300, at=AT)
        self.give_up(300)
        assert reserves.parts_of(earned=500, owner=factories.owner(), currency="usd").netted == 0

    def test_that_no_two_people_decided_is_found(self) -> None:
        owes(300, at=AT)
        asked = self.ask(300)
        ledger.post(
            idempotency_key=f"writeoff:{asked.pk}",
            kind=EntryKind.OWNER_WRITE_OFF,
            subject_id=factories.owner().pk,
            effective_at=AT,
            legs=ledger.transfer(
                debited=ledger.AccountRef(AccountKind.BAD_DEBT, "usd"),
                credited=debt(factories.owner()),
                amount=300,
            ),
        )
        report = books.check(at=AT)
        assert "two_people_gave_it_up" in {check.name for check in report.checks if not check.ok}
