"""Two who lock the same rows wait for each other, and neither is broken off.

Each meeting is arranged at the instant at which one of them, in the order of before, held what the other
wanted and wanted what the other held. The twin brings that order back, and PostgreSQL ends one of the two.
The order itself is told in billing's README, and each test of billing listens whether it is kept.
"""

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from django.db import OperationalError, connection

from agents.models import Node
from billing import (
    added_hours,
    approvals,
    books,
    budgets,
    changes,
    credit,
    deposits,
    payments,
    promotions,
    purchase_requests,
    receivables,
    refunds,
    releases,
    settlements,
    steps,
    tax,
    wallet_holds,
)
from billing import provider as doors
from billing.budgets import BudgetWish, keeping
from billing.deposits import collecting
from billing.models import Deposit, Payment, Refund, Reserve, WalletHold
from billing.payments import learning
from billing.purchase_requests import ApprovalRequired
from billing.states import BudgetMode, BudgetPeriod
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler import cancellations, extensions, rebookings, reservations
from scheduler.models import Reservation
from scheduler.rebookings import WindowWish
from scheduler.states import LeaseStatus
from tests.billing import debtors, test_clawbacks
from tests.billing import factories as books_factories
from tests.billing.bookings import a_tenant, purchase
from tests.billing.card_market import CARD, World
from tests.billing.deposits.market import InTwoParts
from tests.billing.wallet_holds import market
from tests.races.interleaving import Rival, before, heard
from tests.races.test_changes import buy, extending, leaving
from tests.scheduler.factories import NOW, hours, make_pool, make_quote, window_in

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]

Patch = pytest.MonkeyPatch


class Meeting(NamedTuple):
    """What one does, what another does meanwhile and from when on, and what both are to hear."""

    act: Callable[[], object]
    place: object
    name: str
    rival: Callable[[], str]
    heard: tuple[object, str]

    def arranged(self, monkeypatch: Patch) -> Rival:
        return before(monkeypatch, self.place, self.name, self.rival)


def by_card(reservation: Reservation) -> Reservation:
    """Let a reservation count as one that a card has paid."""
    Reservation.objects.filter(pk=reservation.pk).update(payment_method="card")
    reservation.refresh_from_db()
    return reservation


def moving(reservation: Reservation, wish: WindowWish) -> Callable[[], str]:
    """Return a move to a window that costs no more."""
    quote = rebookings.quote(
        organization=reservation.organization, reservation_id=reservation.pk, wish=wish, at=NOW
    )
    assert quote.refund_minor

    def move() -> str:
        changes.rebook(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            payment_method="wallet",
            at=NOW,
            actor="test",
        )
        return "moved"

    return move


def a_reserve_and_its_dispute(settings: Any) -> Meeting:
    settings.OWNER_RESERVE_BASIS_POINTS = 1000
    row = test_clawbacks.settled()
    releases.release_due(at=row.release_due_at)
    test_clawbacks.lost(row)
    asked = test_clawbacks.asked(row, amount=30)
    kept = Reserve.objects.get()
    return Meeting(
        lambda: releases.release_reserve(reserve_id=kept.pk, at=kept.release_due_at),
        releases,
        "is_frozen",
        heard(lambda: approvals.approve(approval_id=asked.pk, at=test_clawbacks.AT, actor="ben")),
        (True, "done"),
    )


def owner_last(monkeypatch: Patch) -> None:
    lock, net = releases._lock, releases._net

    def locking(**arguments: Any) -> Any:
        lock(arguments["owner"])
        return net(**arguments)

    monkeypatch.setattr(releases, "_lock", lambda _owner: None)
    monkeypatch.setattr(releases, "_net", locking)


def a_refund_that_fails_and_an_extension(settings: Any) -> Meeting:
    make_pool(gpus=4)
    tenant = a_tenant()
    row = by_card(buy(tenant, window=Window(NOW + hours(24), NOW + hours(28))))
    moving(row, WindowWish(starts_at=row.starts_at, ends_at=row.ends_at - hours(2)))()
    refunds.open_due(at=NOW)
    refund = Refund.objects.get()
    refunds.send(refund_id=refund.pk, at=NOW, actor="test")
    row.refresh_from_db()
    return Meeting(
        lambda: refunds.fail(refund_id=refund.pk, at=NOW, actor="test").status,
        steps,
        "reached",
        extending(row, by=2),
        ("failed", "extended"),
    )


def reservation_after_the_wallet(monkeypatch: Patch) -> None:
    lock, take_back = refunds.lock, promotions.take_back

    def late(**arguments: Any) -> int:
        lock(Refund.objects.get())
        return take_back(**arguments)

    monkeypatch.setattr(
        refunds, "lock", lambda refund: Reservation.objects.get(pk=refund.reservation_id)
    )
    monkeypatch.setattr(promotions, "take_back", late)


def a_credit_and_an_extension(settings: Any) -> Meeting:
    make_pool(gpus=4)
    row = by_card(buy(a_tenant(), gpus=2, window=window_in(24)))
    lease = books_factories.lease(
        of=row, gpus=1, status=LeaseStatus.FAILED, handed_over_after_seconds=None
    )
    return Meeting(
        lambda: settlements.settle(lease_id=lease.pk, at=NOW + hours(80)) is not None,
        steps,
        "reached",
        extending(row, by=2),
        (True, "extended"),
    )


def wallet_with_the_credit(monkeypatch: Patch) -> None:
    monkeypatch.setattr(
        receivables,
        "lock_for_credit",
        lambda *, reservation: receivables._is_owed(reservation),
    )


def a_promotion_that_comes_back_and_is_spent(settings: Any) -> Meeting:
    make_pool(gpus=4)
    tenant = a_tenant()
    books_factories.promotion(buyer=tenant, minor=100_000, at=NOW - dt.timedelta(days=1))
    row = buy(tenant, window=window_in(24))
    leave, other = leaving(row), make_quote(tenant=tenant, window=window_in(30))
    return Meeting(leave, promotions, "take_back", heard(lambda: purchase(other)), ("left", "done"))


def promotions_last(monkeypatch: Patch) -> None:
    monkeypatch.setattr(
        receivables,
        "lock_refund",
        lambda *, reservation: receivables.lock(reservation.organization),
    )


def budgets_and_an_order_on_account(settings: Any) -> Meeting:
    make_pool(gpus=4)
    tenant = debtors.a_debtor()
    put_budget(tenant, 10_000_000)
    quote = make_quote(tenant=tenant, window=window_in(24))
    return Meeting(
        lambda: debtors.buy(quote).status,
        credit,
        "require",
        heard(lambda: put_budget(tenant, 9_000_000)),
        ("scheduled", "done"),
    )


def put_budget(tenant: Organization, minor: int) -> None:
    wish = BudgetWish(
        project="", period=BudgetPeriod.MONTH, mode=BudgetMode.HARD, amount_minor=minor
    )
    budgets.put(organization=tenant, wishes=[wish], only_if=None, at=NOW, actor="test")


def organization_before_budgets(monkeypatch: Patch) -> None:
    monkeypatch.setattr(keeping, "_one_at_a_time", receivables.lock)


def what_goes_back_on_account_and_a_settlement(settings: Any) -> Meeting:
    make_pool(gpus=4)
    row = debtors.buy(make_quote(tenant=debtors.a_debtor(), gpus=2, window=window_in(24)))
    lease = books_factories.lease(
        of=row, gpus=1, status=LeaseStatus.FAILED, handed_over_after_seconds=None
    )
    settle = heard(lambda: settlements.settle(lease_id=lease.pk, at=NOW + hours(80)))
    shorter = WindowWish(starts_at=row.starts_at, ends_at=row.ends_at - hours(1))
    return Meeting(moving(row, shorter), receivables, "offset", settle, ("moved", "done"))


def nothing_before_the_change(monkeypatch: Patch) -> None:
    lock, calls = receivables.lock_refund, iter([True])

    def from_the_second_on(*, reservation: Reservation) -> None:
        if not next(calls, False):
            lock(reservation=reservation)

    monkeypatch.setattr(receivables, "lock_refund", from_the_second_on)


def a_hold_that_goes_back_and_an_order(settings: Any) -> Meeting:
    make_pool(gpus=1)
    tenant = debtors.a_debtor()
    market.fund(tenant, 100_000)
    market.limited(tenant)
    quote = make_quote(tenant=tenant)
    market.decide(purchase_requests.approve, market.ask(quote))
    market.limited(tenant, None)
    market.decide_limit(tenant)
    other = make_quote(tenant=tenant)
    return Meeting(
        lambda: market.order(quote, method="invoice").status,
        tax,
        "freeze",
        heard(lambda: purchase(other)),
        ("scheduled", "capacity_taken"),
    )


def hold_after_the_gpus(monkeypatch: Patch) -> None:
    void, bought = wallet_holds.void, credit.buy

    def voiding(**arguments: Any) -> Any:
        void(WalletHold.objects.select_related("purchase_request__organization").get(), at=NOW)
        return bought(**arguments)

    monkeypatch.setattr(wallet_holds, "void", lambda _held, *, at: None)
    monkeypatch.setattr(credit, "buy", voiding)


def a_hold_of_hours_by_card_and_an_order(settings: Any) -> Meeting:
    settings.STRIPE_SECRET_KEY = "sk_test_nobody_is_called"
    make_pool(gpus=1)
    tenant = a_tenant()
    row = buy(tenant, window=window_in(24))
    market.limited(tenant)
    quote = extensions.quote(
        organization=tenant,
        reservation_id=row.pk,
        ends_at=row.ends_at + hours(2),
        max_rate=None,
        at=NOW,
    )
    with pytest.raises(ApprovalRequired):
        purchase_requests.ask_for_change(
            organization=tenant,
            reservation_id=row.pk,
            quote_id=quote.pk,
            payment_method="wallet",
            at=NOW,
            actor=market.ASKER,
        )
    asked = WalletHold.objects.get().purchase_request
    market.decide(purchase_requests.approve, asked)
    market.limited(tenant, None)
    market.decide_limit(tenant)
    other = make_quote(tenant=tenant, window=window_in(27))

    def extend() -> str:
        kept = added_hours.extend(
            organization=tenant,
            reservation_id=row.pk,
            quote_id=quote.pk,
            with_saved_card=False,
            saves_card=False,
            at=NOW,
            actor="test",
        )
        return type(kept).__name__

    return Meeting(
        extend,
        payments,
        "open_for_added_hours",
        heard(lambda: purchase(other)),
        ("ExtensionHold", "capacity_taken"),
    )


def hold_after_the_hours(monkeypatch: Patch) -> None:
    opened = payments.open_for_added_hours

    def voiding(**arguments: Any) -> Any:
        held = wallet_holds.open_of(quote_id=arguments["held"].quote_id)
        assert held is not None
        wallet_holds.void(held, at=NOW)
        return opened(**arguments)

    monkeypatch.setattr(added_hours, "_held_of_wallet", lambda *_, **__: None)
    monkeypatch.setattr(payments, "open_for_added_hours", voiding)


def a_cheaper_window_and_an_order(settings: Any) -> Meeting:
    make_pool(gpus=1)
    tenant = a_tenant()
    row = buy(tenant, window=Window(NOW + hours(48), NOW + hours(52)))
    window = Window(NOW + hours(60), NOW + hours(62))
    wish = WindowWish(starts_at=window.starts_at, ends_at=window.ends_at)
    other = make_quote(tenant=tenant, window=window)
    return Meeting(
        moving(row, wish),
        changes,
        "_post_paid",
        heard(lambda: purchase(other)),
        ("moved", "capacity_taken"),
    )


MEETINGS: dict[str, tuple[Callable[[Any], Meeting], Callable[[Patch], None]]] = {
    "reserve and dispute": (a_reserve_and_its_dispute, owner_last),
    "failed refund and extension": (
        a_refund_that_fails_and_an_extension,
        reservation_after_the_wallet,
    ),
    "credit and extension": (a_credit_and_an_extension, wallet_with_the_credit),
    "promotion back and spent": (a_promotion_that_comes_back_and_is_spent, promotions_last),
    "budgets and order": (budgets_and_an_order_on_account, organization_before_budgets),
    "offset and settlement": (
        what_goes_back_on_account_and_a_settlement,
        nothing_before_the_change,
    ),
    "hold of an order": (a_hold_that_goes_back_and_an_order, hold_after_the_gpus),
    "hold of hours": (a_hold_of_hours_by_card_and_an_order, hold_after_the_hours),
    "cheaper window": (a_cheaper_window_and_an_order, nothing_before_the_change),
}


@contextmanager
def it_is_we_who_are_broken_off() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("SET deadlock_timeout = '10ms'")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET deadlock_timeout")


@pytest.mark.parametrize("name", MEETINGS)
def test_two_who_meet_wait_for_each_other(name: str, monkeypatch: Patch, settings: Any) -> None:
    meeting = MEETINGS[name][0](settings)
    rival = meeting.arranged(monkeypatch)

    with it_is_we_who_are_broken_off():
        act = meeting.act()

    assert (act, rival.outcome()) == meeting.heard
    assert books.check(at=NOW + dt.timedelta(days=60)).ok


@pytest.mark.parametrize("name", MEETINGS)
def test_in_the_order_of_before_one_is_broken_off(
    name: str, monkeypatch: Patch, settings: Any
) -> None:
    arrange, as_before = MEETINGS[name]
    meeting = arrange(settings)
    as_before(monkeypatch)
    rival = meeting.arranged(monkeypatch)

    with it_is_we_who_are_broken_off(), pytest.raises(OperationalError, match="deadlock"):
        meeting.act()

    rival.outcome()


class TestABalance:
    """Its payment locks the reservation before the wallet, as whoever leaves it does."""

    def meeting(self, provider: Any, clock: Any, settings: Any) -> Meeting:
        settings.DEPOSIT_PRICE_MINOR_MIN = 10_000
        world = InTwoParts(provider, clock)
        world.booked()
        asked = a_paid_balance(world)
        quote = cancellations.quote(
            organization=world.tenant, reservation_id=world.reservation.pk, at=clock()
        )
        leave = heard(
            lambda: changes.cancel(
                organization=world.tenant,
                reservation_id=world.reservation.pk,
                quote_id=quote.pk,
                at=clock(),
                actor="test",
            )
        )
        return Meeting(
            lambda: doors.read_payment(
                payment_id=asked.pk, object_id=asked.provider_id, at=clock()
            ),
            deposits,
            "settle",
            leave,
            (True, "state_conflict"),
        )

    def test_is_bought_before_who_leaves_meanwhile(
        self, provider: Any, clock: Any, settings: Any, monkeypatch: Patch
    ) -> None:
        meeting = self.meeting(provider, clock, settings)
        rival = meeting.arranged(monkeypatch)

        with it_is_we_who_are_broken_off():
            meeting.act()

        assert rival.outcome() == "state_conflict"
        assert Deposit.objects.get().status == "paid"

    def test_with_the_reservation_locked_last_is_broken_off(
        self, provider: Any, clock: Any, settings: Any, monkeypatch: Patch
    ) -> None:
        meeting = self.meeting(provider, clock, settings)
        monkeypatch.setattr(learning, "_lock_what_is_paid", lambda _payment: None)
        rival = meeting.arranged(monkeypatch)

        with it_is_we_who_are_broken_off(), pytest.raises(OperationalError, match="deadlock"):
            meeting.act()

        assert rival.outcome() == "done"


def a_paid_balance(world: InTwoParts) -> Payment:
    """Let the balance be paid at the provider, and nobody here have heard of it."""
    collecting.pay_early(
        organization=world.tenant,
        reservation_id=world.reservation.pk,
        wishes=CARD,
        at=world.clock(),
    )
    doors.drive_payment(payment_id=world.second.pk, at=world.clock())
    world.pays(world.second)
    paid: Payment = world.second
    return paid


class TestALatePayment:
    """Money that comes for what has lapsed a moment ago asks the budgets, whoever was faster."""

    def arranged(
        self, provider: Any, clock: Any, monkeypatch: Patch
    ) -> tuple[Reservation, Callable[[], object]]:
        """Return what lapses, and its budget with it, before the lock of who takes its payment over."""
        world = World(provider, clock)
        row, payment = world.reserve(CARD)
        put_budget(world.tenant, row.total_minor)
        world.pays(payment)
        Node.objects.update(last_report_at=clock(minutes=16))
        lock = learning._lock_what_is_paid

        def lapsing(payment: Payment) -> None:
            assert reservations.expire_unpaid(at=clock()) == 1
            put_budget(world.tenant, 0)
            lock(payment)

        monkeypatch.setattr(learning, "_lock_what_is_paid", lapsing)
        return row, lambda: doors.read_payment(
            payment_id=payment.pk, object_id=payment.provider_id, at=clock()
        )

    def test_is_sent_back_where_the_budget_does_not_cover_it_any_more(
        self, provider: Any, clock: Any, monkeypatch: Patch
    ) -> None:
        row, hear = self.arranged(provider, clock, monkeypatch)

        hear()

        row.refresh_from_db()
        assert (row.status, row.provider_payments.get().refunded_minor) == (
            "expired",
            row.total_minor,
        )

    def test_is_taken_where_that_is_decided_before_the_lock(
        self, provider: Any, clock: Any, monkeypatch: Patch
    ) -> None:
        row, hear = self.arranged(provider, clock, monkeypatch)
        lock, decide = learning._lock_what_is_paid, learning._refused_by_budget

        def deciding_first(payment: Payment) -> None:
            refusal = decide(payment, at=clock())
            monkeypatch.setattr(learning, "_refused_by_budget", lambda *_, **__: refusal)
            lock(payment)

        monkeypatch.setattr(learning, "_lock_what_is_paid", deciding_first)
        hear()

        row.refresh_from_db()
        assert row.status == "scheduled"
