"""What is owed is asked for, then what has not begun is given back; a payment ends it at any step."""

import datetime as dt
import threading
from collections.abc import Callable

import pytest
from django.db import IntegrityError, connections, transaction

from billing import approvals, books, credit, dunning, parking, receivables, wallet
from billing.models import CreditSale, DunningCase, DunningTransition
from billing.states import AccountKind, ApprovalKind, DunningStatus
from marketplace.core.errors import StateConflict
from marketplace.core.money import Money
from marketplace.models import Event, Organization
from scheduler import reservations
from scheduler.models import Allocation, Reservation
from tests.billing.debtors import a_debtor, buy, owed, pay_by_bank, sale_of
from tests.billing.readings import balance
from tests.scheduler.factories import NOW, make_pool, make_quote, seconds, window_in

pytestmark = pytest.mark.django_db

DAY = 24


def days(count: float) -> dt.timedelta:
    return dt.timedelta(days=count)


def a_sale(*, starts_in_days: float = 60, tenant: Organization | None = None) -> CreditSale:
    """Return what a tenant bought on account today, to be paid in fourteen days."""
    make_pool()
    return bought(tenant or a_debtor(net_days=14), starts_in_days=starts_in_days)


def bought(tenant: Organization, *, starts_in_days: float, method: str = "invoice") -> CreditSale:
    quote = make_quote(tenant=tenant, gpus=2, window=window_in(DAY * starts_in_days))
    return sale_of(buy(quote, payment_method=method))


def status_of(sale: CreditSale) -> str:
    return DunningCase.objects.get(pk=sale.pk).status


def history(sale: CreditSale) -> list[str]:
    return list(DunningTransition.objects.filter(case=sale.pk).values_list("to_status", flat=True))


def told(sale: CreditSale) -> list[str]:
    kinds = ("invoice.overdue", "invoice.reminded", "invoice.warned", "credit.suspended")
    found = Event.objects.filter(object_id=sale.invoice_id, kind__in=kinds)
    return list(found.order_by("at", "id").values_list("kind", flat=True))


def run_until(at: dt.datetime, *, since: dt.datetime = NOW) -> None:
    """Let the tick run every six hours."""
    while since <= at:
        dunning.advance_due(at=since)
        since += dt.timedelta(hours=6)


def is_sound(at: dt.datetime) -> bool:
    return books.check(at=at).ok


STEPS = [
    (-0.01, "waiting", []),
    (0, "overdue", ["invoice.overdue"]),
    (2.99, "overdue", ["invoice.overdue"]),
    (3, "reminded", ["invoice.overdue", "invoice.reminded"]),
    (10, "warned", ["invoice.overdue", "invoice.reminded", "invoice.warned"]),
]


class TestSteps:
    @pytest.mark.parametrize(("days_late", "status", "events"), STEPS)
    def test_are_taken_when_they_are_due(self, days_late, status, events):
        sale = a_sale()
        at = sale.due_at + days(days_late)
        run_until(at)
        dunning.advance_due(at=at)
        assert (status_of(sale), told(sale)) == (status, events)

    def test_end_with_what_has_not_begun_and_is_not_paid(self):
        sale = a_sale()
        at = sale.due_at + days(14)
        run_until(at)
        reservation = Reservation.objects.get()
        assert (status_of(sale), reservation.status) == ("suspended", "cancelled")
        assert not Allocation.objects.filter(live=True).exists()
        event = Event.objects.get(kind="credit.suspended")
        assert event.data["cancelled_reservation_ids"] == [reservation.pk]
        assert history(sale) == ["waiting", "overdue", "reminded", "warned", "suspended"]
        # The ladder's fee is still owed, and asked for.
        fee = reservation.changes.get().fee_minor
        assert owed(sale) == fee
        assert is_sound(at + days(60))

    def test_say_what_is_open_and_when_the_next_one_comes(self):
        sale = a_sale()
        pay_by_bank(sale, 100)
        run_until(sale.due_at + days(10))
        data = Event.objects.get(kind="invoice.warned").data
        assert data["open_minor"] == sale.amount_minor - 100
        assert data["number"] == sale.invoice.number
        assert data["next_step_at"].startswith(f"{sale.due_at + days(14):%Y-%m-%dT%H}")

    def test_leave_the_time_between_them_to_who_was_told_late(self):
        sale = a_sale()
        late = sale.due_at + days(30)
        for _ in range(3):
            dunning.advance_due(at=late)
        assert status_of(sale) == "overdue"
        dunning.advance_due(at=late + days(3))
        dunning.advance_due(at=late + days(9.9))
        assert status_of(sale) == "reminded"
        dunning.advance_due(at=late + days(10))
        dunning.advance_due(at=late + days(13.9))
        assert status_of(sale) == "warned"
        assert Reservation.objects.get().status == "scheduled"

    def test_are_taken_once_however_often_the_tick_runs(self):
        sale = a_sale()
        at = sale.due_at
        assert [dunning.advance_due(at=at) for _ in range(3)] == [1, 0, 0]
        assert history(sale) == ["waiting", "overdue"]

    def test_follow_the_markets_rules(self, settings):
        settings.DUNNING_REMINDER_SECONDS = 3600
        sale = a_sale()
        dunning.advance_due(at=sale.due_at)
        dunning.advance_due(at=sale.due_at + seconds(3600))
        assert status_of(sale) == "reminded"

    def test_wait_while_the_tenants_money_is_parked(self):
        sale = a_sale()
        parking.park(breaches={sale.organization_id: "a breach"}, at=NOW)
        dunning.advance_due(at=sale.due_at)
        assert status_of(sale) == "waiting"
        parking.end(organization=sale.organization, at=sale.due_at, actor="bert")
        dunning.advance_due(at=sale.due_at)
        assert status_of(sale) == "overdue"


class TestSuspension:
    def test_leaves_what_is_paid_and_what_runs(self):
        make_pool(nodes=2)
        tenant = a_debtor(net_days=14)
        wallet.record_deposit(
            organization=tenant,
            amount=Money(1_000_000, "usd"),
            idempotency_key="first",
            at=NOW,
            actor="test",
        )
        running = bought(tenant, starts_in_days=1)
        waiting = bought(tenant, starts_in_days=50)
        settled = bought(tenant, starts_in_days=51)
        pay_by_bank(settled, settled.amount_minor)
        prepaid = buy(
            make_quote(tenant=tenant, window=window_in(DAY * 52)), payment_method="wallet"
        )
        reservations.start_due(at=running.reservation.starts_at)
        run_until(waiting.due_at + days(14))
        states = {row.pk: row.status for row in Reservation.objects.all()}
        assert states == {
            running.reservation_id: "active",
            waiting.reservation_id: "cancelled",
            settled.reservation_id: "scheduled",
            prepaid.pk: "scheduled",
        }
        assert owed(running) == running.amount_minor

    def test_takes_everything_of_the_tenant_that_is_not_paid_and_nothing_of_others(self):
        make_pool(nodes=2)
        tenant, other = a_debtor(net_days=14), a_debtor(net_days=30)
        first = bought(tenant, starts_in_days=50)
        second = bought(tenant, starts_in_days=51)
        theirs = bought(other, starts_in_days=52)
        pay_by_bank(second, second.amount_minor - 1)
        run_until(first.due_at + days(14))
        states = {row.pk: row.status for row in Reservation.objects.all()}
        assert states[first.reservation_id] == states[second.reservation_id] == "cancelled"
        assert states[theirs.reservation_id] == "scheduled"
        # Of what was paid in advance, all but the fee comes back.
        assert owed(second) == 0

    def test_leaves_to_the_tenant_what_it_has_just_cancelled(self, monkeypatch):
        sale = a_sale()
        run_until(sale.due_at + days(13))

        def refuse(**_: object) -> None:
            raise StateConflict("the tenant was faster")

        monkeypatch.setattr("billing.changes.cancel", refuse)
        dunning.advance_due(at=sale.due_at + days(14))
        assert status_of(sale) == "suspended"
        assert Reservation.objects.get().status == "scheduled"


class TestALargeSuspension:
    """There is more to cancel than one step cancels."""

    @pytest.fixture
    def sales(self, monkeypatch) -> list[CreditSale]:
        """Return five sales of one tenant: the oldest is due first, and its step is the next."""
        monkeypatch.setattr(dunning, "CANCELLATIONS_PER_STEP_MAX", 2)
        make_pool()
        tenant = a_debtor(net_days=14)
        sales = [bought(tenant, starts_in_days=50 + number) for number in range(5)]
        # Only the first is ever late: the others would take their own steps otherwise.
        DunningCase.objects.exclude(sale=sales[0]).update(act_due_at=NOW + days(365))
        run_until(sales[0].due_at + days(13.9))
        assert status_of(sales[0]) == "warned"
        return sales

    def test_goes_on_until_nothing_is_left(self, sales):
        at = sales[0].due_at + days(14)
        left = []
        for minute in range(5):
            dunning.advance_due(at=at + dt.timedelta(minutes=minute))
            left.append(Reservation.objects.filter(status="scheduled").count())
        assert left == [3, 1, 0, 0, 0]
        assert history(sales[0]).count("suspended") == 1
        assert DunningCase.objects.get(pk=sales[0].pk).act_due_at is None
        told = Event.objects.filter(kind="credit.suspended").order_by("at")
        parts = [event.data["cancelled_reservation_ids"] for event in told]
        assert [len(part) for part in parts] == [2, 2, 1]
        assert len({found for part in parts for found in part}) == 5
        # What the case is about comes last: it ends with the rest, not before.
        assert parts[-1] == [sales[0].reservation_id]
        assert is_sound(at + days(60))

    def test_goes_on_late_and_twice_at_one_instant(self, sales):
        at = sales[0].due_at + days(20)
        for _ in range(5):
            dunning.advance_due(at=at)
        assert not Reservation.objects.filter(status="scheduled").exists()
        assert Event.objects.filter(kind="credit.suspended").count() == 3

    def test_ends_with_the_payment(self, sales):
        at = sales[0].due_at + days(14)
        dunning.advance_due(at=at)
        pay_by_bank(sales[0], owed(sales[0]))
        for minute in range(1, 4):
            dunning.advance_due(at=at + dt.timedelta(minutes=minute))
        assert status_of(sales[0]) == "closed"
        assert Reservation.objects.filter(status="scheduled").count() == 3

    def test_does_not_take_what_is_paid_between_two_parts(self, sales):
        at = sales[0].due_at + days(14)
        dunning.advance_due(at=at)
        spared = sales[3]
        pay_by_bank(spared, owed(spared))
        for minute in range(1, 4):
            dunning.advance_due(at=at + dt.timedelta(minutes=minute))
        kept = Reservation.objects.filter(status="scheduled")
        assert [row.pk for row in kept] == [spared.reservation_id]

    def test_waits_while_the_tenants_money_is_parked(self, sales):
        at = sales[0].due_at + days(14)
        dunning.advance_due(at=at)
        tenant = sales[0].organization
        parking.park(breaches={tenant.pk: "a breach"}, at=at)
        dunning.advance_due(at=at + days(1))
        assert Reservation.objects.filter(status="scheduled").count() == 3
        parking.end(organization=tenant, at=at, actor="bert")
        dunning.advance_due(at=at + days(1))
        assert Reservation.objects.filter(status="scheduled").count() == 1

    def test_looks_again_after_an_hour_at_what_refuses(self, sales, monkeypatch):
        at = sales[0].due_at + days(14)
        tried: list[str] = []

        def refuse(*, reservation_id: str, **_: object) -> None:
            tried.append(reservation_id)
            raise StateConflict("not now")

        with monkeypatch.context() as refusing:
            refusing.setattr("billing.changes.cancel", refuse)
            for minute in (0, 1, 59):
                dunning.advance_due(at=at + dt.timedelta(minutes=minute))
        assert len(tried) == 2
        assert status_of(sales[0]) == "suspended"
        for minute in range(60, 64):
            dunning.advance_due(at=at + dt.timedelta(minutes=minute))
        assert not Reservation.objects.filter(status="scheduled").exists()


class TestEnd:
    @pytest.mark.parametrize("days_late", [-1, 0, 3, 10, 14])
    def test_comes_with_the_payment_at_any_step(self, days_late):
        sale = a_sale()
        at = sale.due_at + days(days_late)
        run_until(at)
        dunning.advance_due(at=at)
        pay_by_bank(sale, owed(sale))
        assert not credit.overdue(organization=sale.organization, at=at).exists()
        dunning.advance_due(at=at)
        run_until(at + days(30), since=at)
        assert status_of(sale) == "closed"
        last = DunningTransition.objects.filter(case=sale.pk).last()
        assert last is not None
        assert last.reason == "paid"
        assert is_sound(at + days(90))

    def test_is_not_reached_by_a_payment_in_part(self):
        sale = a_sale()
        dunning.advance_due(at=sale.due_at)
        pay_by_bank(sale, sale.amount_minor - 1)
        dunning.advance_due(at=sale.due_at + days(1))
        assert status_of(sale) == "overdue"

    def test_comes_with_a_write_off_by_two_people(self):
        sale = a_sale(starts_in_days=1)
        run_until(sale.due_at + days(14))
        asked = approvals.request(
            kind=ApprovalKind.WRITE_OFF,
            organization=sale.organization,
            subject_id=sale.invoice_id,
            amount=Money(owed(sale), "usd"),
            reason="bankrupt",
            at=NOW,
            actor="anna",
        )
        approvals.approve(approval_id=asked.pk, at=NOW, actor="bert")
        dunning.advance_due(at=sale.due_at + days(15))
        last = DunningTransition.objects.filter(case=sale.pk).last()
        assert last is not None
        assert (last.to_status, last.reason) == ("closed", "written_off")
        assert balance(AccountKind.BAD_DEBT) == sale.amount_minor

    def test_does_not_come_while_something_is_owed(self):
        sale = a_sale()
        with pytest.raises(StateConflict):
            dunning.close(case=sale.dunning, at=NOW)

    def test_is_final(self):
        sale = a_sale()
        pay_by_bank(sale, owed(sale))
        dunning.advance_due(at=NOW)
        with pytest.raises(StateConflict):
            dunning.close(case=sale.dunning, at=NOW)


class TestGuards:
    def test_keep_what_is_watched(self):
        a_sale()
        with pytest.raises(IntegrityError), transaction.atomic():
            DunningCase.objects.all().delete()
        with pytest.raises(IntegrityError), transaction.atomic():
            DunningTransition.objects.update(actor="somebody")

    def test_refuse_a_move_that_no_arrow_allows(self):
        sale = a_sale()
        with pytest.raises(IntegrityError), transaction.atomic():
            DunningTransition.objects.create(
                case=sale.dunning, from_status="waiting", to_status="warned", actor="x", at=NOW
            )

    def test_find_a_debt_that_nobody_watches(self, unguarded):
        sale = a_sale()
        with unguarded():
            DunningCase.objects.update(status=DunningStatus.CLOSED)
        report = books.check(at=NOW)
        assert [c.name for c in report.checks if not c.ok] == ["debts_are_watched"]
        assert books.breaches_of(report).keys() == {sale.organization_id}


@pytest.mark.django_db(transaction=True)
class TestSideBySide:
    def test_ticks_take_each_step_once(self):
        sale = a_sale()
        run_until(sale.due_at + days(13))
        at = sale.due_at + days(14)
        together([lambda: dunning.advance_due(at=at) for _ in range(4)])
        assert history(sale).count("suspended") == 1
        assert len(told(sale)) == 4
        assert Reservation.objects.get().status == "cancelled"
        assert is_sound(at + days(60))

    @pytest.mark.parametrize("seed", range(6))
    def test_a_payment_and_a_suspension_lose_nothing(self, seed):
        sale = a_sale()
        run_until(sale.due_at + days(13))
        at = sale.due_at + days(14)
        acts = [
            lambda: dunning.advance_due(at=at),
            lambda: receivables.pay(
                organization=sale.organization,
                invoice_id=sale.invoice_id,
                payment_id="bank-1",
                amount_minor=sale.amount_minor,
                currency="usd",
                at=at,
                is_by_bank=True,
            ),
        ]
        together(acts[:: 1 if seed % 2 else -1])
        dunning.advance_due(at=at)
        reservation = Reservation.objects.get()
        kept = sum(change.fee_minor for change in reservation.changes.all())
        purse = wallet.balance(organization=sale.organization).amount_minor
        assert owed(sale) == 0
        assert status_of(sale) == "closed"
        assert purse == (sale.amount_minor - kept if reservation.status == "cancelled" else 0)
        assert is_sound(at + days(60))


def together(acts: list[Callable[[], object]]) -> None:
    """Do some things at one instant, each on a connection of its own."""
    ready = threading.Barrier(len(acts))

    def run(act: Callable[[], object]) -> None:
        try:
            ready.wait(timeout=30)
            act()
        finally:
            connections["default"].close()

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
