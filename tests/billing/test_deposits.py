"""A price in two parts, from deposit to end: paid, declined, asked for, paid early, given up, late."""

import datetime as dt

import pytest
from django.db import IntegrityError, transaction

from agents.models import Node
from billing import (
    bills,
    changes,
    checkout,
    deposits,
    intents,
    ledger,
    parking,
    payments,
    payouts,
    provider,
    purchases,
    refunds,
    reservation_refunds,
    settlements,
    tax,
)
from billing.deposits import PaymentPlanUnavailable, collecting
from billing.models import (
    CardRefund,
    Deposit,
    Entry,
    FeeShare,
    Intent,
    Payer,
    Payment,
    ProviderTransition,
    Refund,
)
from billing.payments import Wishes
from billing.provider_states import IntentKind, PaymentMeans
from billing.states import GPU_SECONDS, AccountKind
from marketplace.core.errors import NotFound, StateConflict
from marketplace.models import Event
from scheduler import cancellations, change_rules, checks, extensions, rebookings, reservations
from scheduler.changes import BalanceOpen
from scheduler.details import ReservationDetails
from scheduler.models import Allocation, Lease, Reservation
from tests.billing import factories as books_factories
from tests.billing.card_market import CARD, SAVED, World
from tests.fakes.stripe import currencies
from tests.scheduler import factories

pytestmark = pytest.mark.django_db

DAY = 24
AHEAD_DAYS = 40


class InTwoParts(World):
    """A tenant that has bought eight GPUs for a day, forty days ahead, and pays a deposit for them."""

    def __init__(self, stand_in, clock):
        super().__init__(stand_in, clock)
        self.owner = factories.make_pool()

    def buy(self, *, length=DAY, ahead_days=AHEAD_DAYS, gpus=8, method="card", tenant=None):
        quote = factories.make_quote(
            tenant=tenant or self.tenant,
            gpus=gpus,
            window=factories.window_in(ahead_days * DAY, length=length),
            at=self.clock(),
        )
        self.reservation = checkout.purchase(
            organization=quote.organization,
            quote_id=quote.pk,
            payment_method=method,
            details=ReservationDetails(),
            at=self.clock(),
            actor="test",
            in_two_parts=True,
        )
        self.first = Payment.objects.get(reservation=self.reservation)
        provider.drive_payment(payment_id=self.first.pk, at=self.clock())
        self.first.refresh_from_db()
        return self.reservation

    def booked(self, **wish):
        self.buy(**wish)
        self.pays(self.first)
        self.turn()
        self.see()
        return self.reservation

    def see(self):
        self.reservation = Reservation.objects.select_related("organization", "quote").get(
            pk=self.reservation.pk
        )
        self.plan = Deposit.objects.get(pk=self.reservation.pk)

    def tick(self, **passed):
        """Let time pass, and do what the beat does."""
        at = self.clock(**passed)
        Node.objects.update(last_report_at=at)
        collecting.advance_due(at=at)
        self.turn()
        refunds.open_due(at=at)
        reservation_refunds.ask_due(at=at)
        self.turn()
        self.see()

    def until_due(self):
        """Let time pass to the announcement and then to the instant at which the balance is due."""
        due_at = self.plan.balance_due_at
        self.tick(days=(due_at - self.clock()).days - 3)
        self.tick(seconds=(due_at - self.clock()).total_seconds())

    def behave(self, how):
        card = self.stand_in.world.get(Payer.objects.get().saved_card_id, "payment_method")
        card["_behaves"] = how

    @property
    def second(self):
        return Payment.objects.filter(purpose="balance").order_by("id").last()

    def deferred(self):
        return self.account(AccountKind.DEFERRED)

    def account(self, kind, currency="usd"):
        return ledger.balance(account=ledger.AccountRef(kind, currency, self.reservation.pk))

    def kinds(self):
        told = Event.objects.filter(organization=self.tenant, kind__startswith="balance.")
        return list(told.order_by("at", "id").values_list("kind", flat=True))

    def sound(self):
        super().sound()
        report = checks.check(at=self.clock())
        assert report.ok, [c for c in report.checks if not c.ok]

    def ends_empty(self):
        """Nothing is left in the reservation's books but what it was bought for."""
        assert self.deferred() == 0
        assert self.account(AccountKind.U_OPEN, GPU_SECONDS) == 0
        assert self.account(AccountKind.REFUND_PAYABLE) == 0
        assert self.balance() == 0
        self.sound()


@pytest.fixture
def world(provider, clock, settings):
    settings.DEPOSIT_PRICE_MINOR_MIN = 10_000
    return InTwoParts(provider, clock)


class TestDeposit:
    def test_confirms_the_reservation_and_saves_the_card(self, world):
        world.booked()
        total = world.reservation.total_minor
        assert world.reservation.status == "scheduled"
        assert (world.plan.status, world.plan.net_minor) == ("open", total // 4)
        assert (world.first.purpose, world.first.amount_minor) == ("deposit", total // 4)
        assert world.reservation.unpaid_minor == total - total // 4
        assert world.deferred() == total // 4
        assert world.account(AccountKind.U_BOUGHT, GPU_SECONDS) == 8 * DAY * 3600
        assert world.plan.balance_due_at == world.reservation.starts_at - dt.timedelta(days=14)
        assert Payer.objects.get().saved_card_id
        world.sound()

    def test_is_bought_by_nobody_who_does_not_pay_it(self, world):
        world.buy()
        world.turn(minutes=16)
        world.see()
        assert (world.reservation.status, world.plan.status) == ("expired", "awaited")
        assert not Entry.objects.filter(subject_id=world.reservation.pk).exists()
        world.sound()

    def test_that_comes_late_books_again(self, world):
        world.buy()
        reservations.expire_unpaid(at=world.clock(minutes=16))
        world.pays(world.first)
        world.turn()
        world.see()
        assert (world.reservation.status, world.plan.status) == ("scheduled", "open")
        world.sound()

    @pytest.mark.parametrize(
        ("wish", "why"),
        [
            ({"ahead_days": 30}, "30 days"),
            ({"length": 1, "gpus": 1}, "10000 minor units"),
            ({"method": "wallet"}, "by card"),
        ],
    )
    def test_is_refused_where_it_is_not_possible(self, world, wish, why):
        with pytest.raises(PaymentPlanUnavailable, match=why):
            world.buy(**wish)
        assert not Allocation.objects.exists()

    def test_is_refused_where_the_market_takes_none(self, world, settings):
        settings.DEPOSIT_BASIS_POINTS = 0
        with pytest.raises(PaymentPlanUnavailable, match="takes no deposits"):
            world.buy()

    def test_is_stored_as_it_was_told_and_stays_so(self, world):
        world.booked()
        with (
            pytest.raises(IntegrityError, match="only"),
            transaction.atomic(),
        ):
            Deposit.objects.update(balance_net_minor=1)


class TestBalance:
    def test_is_announced_charged_and_lets_the_reservation_begin_run_and_settle(self, world):
        world.booked()
        world.until_due()
        assert world.kinds() == ["balance.announced", "balance.asked", "balance.paid"]
        assert (world.second.status, world.second.is_off_session) == ("succeeded", True)
        assert world.plan.status == "paid"
        assert world.reservation.unpaid_minor == 0
        total = world.reservation.total_minor
        assert world.first.amount_minor + world.second.amount_minor == total
        assert world.deferred() == total
        charged = {i["amount"] for i in world.stand_in.world.all("charge")}
        assert charged == {world.first.amount_minor, world.second.amount_minor}
        groups = {i["transfer_group"] for i in world.stand_in.world.all("payment_intent")}
        assert groups == {world.reservation.pk}
        world.sound()

        start = world.reservation.starts_at
        world.turn(seconds=(start - world.clock()).total_seconds())
        reservations.start_due(at=world.clock())
        lease = Lease.objects.get()
        factories.say_handed_over(lease)
        factories.say_metered(lease, until=lease.ends_at)
        end = world.clock(hours=DAY)
        Lease.objects.update(
            status="ended", handed_over_at=start, returned_at=lease.ends_at, closed_at=end
        )
        reservations.finish_due(at=end)
        Node.objects.update(last_report_at=end)
        settlements.settle_ended(at=world.clock(hours=1))
        Allocation.objects.update(live=False)
        world.see()
        assert world.reservation.status == "completed"
        bill = bills.reservation_bill(reservation=world.reservation, at=world.clock())
        assert (bill.bought.amount_minor, bill.final) == (total, True)
        assert world.deferred() == world.account(AccountKind.U_OPEN, GPU_SECONDS) == 0
        payouts.release_due(at=world.clock(days=20))
        World.sound(world)

    def test_is_charged_once_by_a_task_that_runs_twice_and_late(self, world):
        world.booked()
        late = world.plan.balance_due_at + dt.timedelta(days=1)
        world.turn(seconds=(late - world.clock()).total_seconds())
        for _ in range(3):
            collecting.advance_due(at=world.clock())
            world.turn()
        world.see()
        assert world.kinds() == ["balance.asked", "balance.paid"]
        assert Payment.objects.filter(purpose="balance").count() == 1
        assert world.plan.status == "paid"
        world.sound()

    def test_that_is_declined_waits_72_hours_and_then_the_deposit_is_the_fee(self, world):
        world.booked()
        world.behave("insufficient_funds")
        world.until_due()
        assert world.plan.status == "asked"
        assert world.plan.return_by == world.clock() + dt.timedelta(hours=72)
        assert (world.second.status, world.second.failure_code) == ("open", "insufficient_funds")
        told = Event.objects.get(kind="payment.declined")
        assert told.data["purpose"] == "balance"
        assert told.data["client_secret"] == world.second.client_secret
        assert told.data["due_at"] == Event.objects.get(kind="balance.asked").data["return_by"]
        world.tick(hours=71)
        assert world.reservation.status == "scheduled"
        world.sound()
        world.tick(hours=1)
        assert (world.reservation.status, world.plan.status) == ("cancelled", "ended")
        assert not Allocation.objects.filter(live=True).exists()
        change = world.reservation.changes.get()
        assert (change.refunded_minor, change.fee_minor) == (0, world.plan.net_minor)
        share = FeeShare.objects.get()
        assert share.owner == world.owner
        assert share.amount_minor == world.plan.net_minor - world.plan.net_minor * 15 // 100
        assert world.kinds()[-1] == "balance.not_paid"
        told = Event.objects.get(kind="balance.not_paid")
        assert told.data["kept_minor"] == world.plan.net_minor
        world.tick()
        assert (world.second.status, world.first.refunded_minor) == ("failed", 0)
        assert world.account(AccountKind.U_RELEASED, GPU_SECONDS) == 8 * DAY * 3600
        assert not Refund.objects.exists()
        world.ends_empty()

    def test_that_was_declined_can_be_paid_by_another_card(self, world):
        world.booked()
        world.behave("insufficient_funds")
        world.until_due()
        world.tick(hours=48)
        world.pays(world.second)
        world.tick()
        assert (world.plan.status, world.reservation.unpaid_minor) == ("paid", 0)
        world.tick(hours=48)
        assert world.reservation.status == "scheduled"
        world.sound()

    def test_for_which_the_bank_asks_a_question_waits_for_the_tenant(self, world):
        world.booked()
        world.behave("asks")
        world.until_due()
        assert (world.plan.status, world.second.status) == ("asked", "open")
        told = Event.objects.get(kind="payment.action_required")
        assert told.data["client_secret"] == world.second.client_secret
        world.pays(world.second, "pm_card_threeDSecure2Required")
        world.tick(hours=1)
        assert world.plan.status == "asked"
        world.stand_in.control("/_control/authenticate", {"id": world.second.provider_id})
        world.tick()
        assert world.plan.status == "paid"
        world.sound()

    def test_that_comes_when_all_was_given_up_goes_back_whole(self, world):
        world.booked()
        world.behave("insufficient_funds")
        world.until_due()
        late = world.clock(hours=72)
        collecting.advance_due(at=late)
        world.pays(world.second)
        world.turn()
        refund = CardRefund.objects.get()
        assert (refund.payment_id, refund.amount_minor) == (
            world.second.pk,
            world.second.amount_minor,
        )
        assert refund.status == "succeeded"
        world.see()
        assert world.reservation.status == "cancelled"
        world.first.refresh_from_db()
        assert world.first.refunded_minor == 0
        world.ends_empty()

    def test_of_a_tenant_without_a_saved_card_waits_for_it(self, world, unguarded):
        world.booked()
        Payer.objects.update(saved_card_id="")
        world.until_due()
        assert (world.second.status, world.second.is_off_session) == ("open", False)
        assert world.plan.status == "asked"
        world.pays(world.second)
        world.tick()
        assert world.plan.status == "paid"

    def test_that_nobody_asked_for_in_time_costs_nothing(self, world):
        world.booked()
        start = world.reservation.starts_at
        world.turn(seconds=(start - world.clock()).total_seconds() - 1800)
        collecting.advance_due(at=world.clock())
        world.tick()
        assert world.reservation.status == "cancelled"
        change = world.reservation.changes.get()
        assert (change.fee_minor, change.refunded_minor) == (0, world.plan.net_minor)
        world.tick()
        world.first.refresh_from_db()
        assert world.first.refunded_minor == world.first.amount_minor
        assert not Payment.objects.filter(purpose="balance").exists()
        world.ends_empty()

    def test_is_not_charged_while_the_money_of_the_tenant_is_parked(self, world, monkeypatch):
        world.booked()
        monkeypatch.setattr(collecting.parking, "is_parked", lambda *, organizations: True)
        world.until_due()
        assert (world.plan.status, world.second) == ("open", None)

    def test_is_asked_for_in_the_steps_in_which_the_provider_takes_money(self, db, settings):
        settings.CURRENCY = "kwd"
        at = books_factories.START
        row = books_factories.reservation(
            buyer=books_factories.tenant(), total_minor=4_706, currency="kwd", paid=False
        )
        Reservation.objects.filter(pk=row.pk).update(status="scheduled", unpaid_minor=3_529)
        plan = deposits.make(
            reservation=row,
            parts=deposits.Parts(
                net_minor=1_177,
                gross_minor=1_177,
                balance_net_minor=3_529,
                balance_gross_minor=3_529,
                balance_due_at=at,
            ),
            at=at,
        )
        asked = payments.open_for_balance(plan=plan, wishes=CARD, due_at=at, at=at)
        assert asked.amount_minor == 3_530
        currencies.require_charge(asked.amount_minor, asked.currency)


class TestParked:
    """Nothing is charged and nothing given up of parked money; afterwards it goes on."""

    def park(self, world):
        parking.park(breaches={world.tenant.pk: "why"}, at=world.clock())

    def unpark(self, world):
        parking.end(organization=world.tenant, at=world.clock(), actor="two people")

    def asked(self, world):
        """Let a balance be asked for that the bank of the saved card declines."""
        world.booked()
        world.behave("insufficient_funds")
        world.until_due()
        assert world.plan.status == "asked"

    def test_balance_is_charged_when_it_moves_again(self, world):
        world.booked()
        self.park(world)
        world.until_due()
        assert (world.plan.status, world.second) == ("open", None)
        world.tick(days=1)
        assert (world.plan.status, world.reservation.status) == ("open", "scheduled")
        self.unpark(world)
        world.tick()
        assert (world.plan.status, world.reservation.unpaid_minor) == ("paid", 0)
        world.sound()

    def test_balance_that_is_paid_meanwhile_waits_in_the_wallet_and_buys_afterwards(self, world):
        self.asked(world)
        self.park(world)
        world.pays(world.second)
        world.tick(hours=80)
        assert (world.plan.status, world.reservation.status) == ("asked", "scheduled")
        assert world.balance() == world.second.amount_minor
        assert not CardRefund.objects.exists()
        world.sound()
        self.unpark(world)
        world.tick()
        assert (world.plan.status, world.reservation.unpaid_minor) == ("paid", 0)
        assert (world.balance(), world.kinds()[-1]) == (0, "balance.paid")
        world.sound()

    def test_balance_that_was_paid_meanwhile_and_then_spent_is_still_owed(self, world):
        self.asked(world)
        self.park(world)
        world.pays(world.second)
        world.tick(hours=1)
        self.unpark(world)
        other = books_factories.reservation(
            buyer=world.tenant, total_minor=world.second.amount_minor
        )
        assert world.balance() == 0
        world.tick()
        assert (world.plan.status, world.reservation.status) == ("asked", "scheduled")
        assert other.status == "active"

    def test_time_to_return_begins_anew(self, world):
        self.asked(world)
        world.tick(hours=10)
        self.park(world)
        world.tick(hours=100)
        assert (world.plan.status, world.reservation.status) == ("asked", "scheduled")
        self.unpark(world)
        world.tick()
        assert world.reservation.status == "scheduled"
        assert world.plan.return_by == world.clock() + dt.timedelta(hours=72)
        world.tick()
        assert world.second.status == "open"
        assert world.second.due_at == world.plan.return_by
        world.pays(world.second)
        world.tick()
        assert (world.plan.status, world.reservation.unpaid_minor) == ("paid", 0)
        world.sound()

    def test_time_to_return_is_given_anew_once(self, world):
        self.asked(world)
        self.park(world)
        world.tick(hours=100)
        self.unpark(world)
        world.tick()
        world.tick(hours=72)
        assert (world.reservation.status, world.plan.status) == ("cancelled", "ended")
        world.tick()
        world.ends_empty()

    def test_reservation_cannot_be_left_and_is_left_afterwards(self, world):
        world.booked()
        self.park(world)
        with pytest.raises(parking.MoneyParked), transaction.atomic():
            TestChanges().leave(world)
        world.see()
        assert (world.reservation.status, world.plan.status) == ("scheduled", "open")
        self.unpark(world)
        quote = TestChanges().leave(world)
        world.tick()
        world.tick()
        assert world.reservation.status == "cancelled"
        world.first.refresh_from_db()
        assert world.first.refunded_minor == quote.refund_minor
        world.ends_empty()

    def test_until_the_end_gives_back_both_parts_and_costs_nothing(self, world):
        self.asked(world)
        self.park(world)
        world.pays(world.second)
        world.tick(seconds=(world.reservation.ends_at - world.clock()).total_seconds())
        reservations.start_due(at=world.clock())
        world.tick()
        assert (world.reservation.status, world.plan.status) == ("failed", "ended")
        assert world.balance() == world.second.amount_minor
        self.unpark(world)
        settlements.settle_ended(at=world.clock())
        for _ in range(3):
            world.tick()
        for payment in (world.first, world.second):
            payment.refresh_from_db()
            assert payment.refunded_minor == payment.amount_minor
        # What is left is the credit for what was not delivered.
        credit = ledger.balance(account=ledger.AccountRef(AccountKind.SLA_CREDITS, "usd"))
        assert (world.balance(), world.deferred()) == (credit, 0)

    def test_beyond_the_time_to_ask_costs_nothing(self, world):
        world.booked()
        self.park(world)
        start = world.reservation.starts_at
        world.tick(seconds=(start - world.clock()).total_seconds() - 1800)
        assert world.reservation.status == "scheduled"
        self.unpark(world)
        for _ in range(3):
            world.tick()
        assert world.reservation.status == "cancelled"
        world.first.refresh_from_db()
        assert world.first.refunded_minor == world.first.amount_minor
        world.ends_empty()


class TestStart:
    def test_waits_for_the_balance(self, world):
        world.booked()
        world.turn(seconds=(world.reservation.starts_at - world.clock()).total_seconds())
        assert reservations.start_due(at=world.clock()) == 0
        world.see()
        assert world.reservation.status == "scheduled"
        assert not Lease.objects.exists()

    def test_is_refused_by_the_database_while_it_is_open(self, world):
        world.booked()
        with (
            pytest.raises(IntegrityError, match="reservation_is_paid_before_it_begins"),
            transaction.atomic(),
        ):
            Reservation.objects.filter(pk=world.reservation.pk).update(status="active")

    def test_that_never_came_gives_the_deposit_back(self, world):
        world.booked()
        end = world.reservation.ends_at
        world.turn(seconds=(end - world.clock()).total_seconds())
        reservations.start_due(at=world.clock())
        settlements.settle_ended(at=world.clock())
        world.see()
        assert world.reservation.status == "failed"
        world.tick()
        world.first.refresh_from_db()
        assert world.first.refunded_minor == world.first.amount_minor
        assert world.plan.status == "ended"


class TestEarly:
    def pay(self, world, wishes=CARD, **changes):
        payment = collecting.pay_early(
            **{
                "organization": world.tenant,
                "reservation_id": world.reservation.pk,
                "wishes": wishes,
                "at": world.clock(),
                **changes,
            }
        )
        provider.drive_payment(payment_id=payment.pk, at=world.clock())
        payment.refresh_from_db()
        return payment

    def test_payment_pays_the_balance(self, world):
        world.booked()
        payment = self.pay(world)
        assert payment.amount_minor == world.plan.balance_gross_minor
        world.pays(payment)
        world.tick()
        assert (world.plan.status, world.kinds()) == ("paid", ["balance.paid"])
        world.until_due()
        assert Payment.objects.filter(purpose="balance").count() == 1
        world.sound()

    def test_payment_by_the_saved_card_is_made_at_once(self, world):
        world.booked()
        assert self.pay(world, SAVED).status == "succeeded"
        world.see()
        assert world.plan.status == "paid"

    def test_payment_that_waits_is_the_answer_to_a_second_wish(self, world):
        world.booked()
        assert self.pay(world).pk == self.pay(world).pk

    def test_payment_that_was_left_open_keeps_nobody_from_charging_the_card(self, world):
        world.booked()
        due_at = world.plan.balance_due_at
        world.tick(seconds=(due_at - world.clock()).total_seconds() - 60)
        early = self.pay(world)
        world.tick(seconds=60)
        assert world.plan.status == "open"
        world.tick(minutes=15)
        world.tick()
        early.refresh_from_db()
        assert early.status == "cancelled"
        assert world.plan.status == "paid"
        world.sound()

    def test_payment_is_refused_where_nothing_is_open(self, world):
        world.booked()
        with pytest.raises(NotFound):
            self.pay(world, organization=factories.make_organization())
        with pytest.raises(NotFound):
            self.pay(world, reservation_id="rsv_\x00")
        self.pay(world, SAVED)
        with pytest.raises(StateConflict):
            self.pay(world)

    def test_payment_comes_too_late_when_the_time_to_return_is_over(self, world):
        world.booked()
        world.behave("insufficient_funds")
        world.until_due()
        world.clock(hours=72)
        with pytest.raises(StateConflict, match="not paid in time"):
            self.pay(world)


class TestChanges:
    def leave(self, world):
        quote = cancellations.quote(
            organization=world.tenant, reservation_id=world.reservation.pk, at=world.clock()
        )
        changes.cancel(
            organization=world.tenant,
            reservation_id=world.reservation.pk,
            quote_id=quote.pk,
            at=world.clock(),
            actor="test",
        )
        world.tick()
        return quote

    def test_leaving_early_costs_the_ladder_of_the_whole_price_out_of_the_deposit(self, world):
        world.booked()
        quote = self.leave(world)
        total, paid = world.reservation.total_minor, world.plan.net_minor
        assert (quote.fee_basis_points, quote.from_total_minor) == (1_000, paid)
        assert quote.unpaid_minor == total - paid
        assert quote.fee_minor == round(total / 10)
        assert quote.refund_minor == paid - quote.fee_minor
        world.tick()
        world.first.refresh_from_db()
        assert world.first.refunded_minor == quote.refund_minor
        bill = bills.reservation_bill(reservation=world.reservation, at=world.clock())
        assert (bill.bought.amount_minor, bill.fees.amount_minor) == (paid, quote.fee_minor)
        world.ends_empty()

    def test_leaving_late_costs_no_more_than_was_paid(self, world):
        world.booked()
        world.behave("insufficient_funds")
        world.until_due()
        world.tick(hours=70)
        # Half of the price would be more than the deposit.
        change_rules.publish(
            wish=change_rules.RuleWish(
                ladder=((0, 5_000),),
                extension_opens_seconds=3600,
                extension_closes_seconds=0,
                move_closes_seconds=0,
            ),
            based_on=1,
            at=world.clock(),
            actor="test",
        )
        quote = self.leave(world)
        assert (quote.fee_minor, quote.refund_minor) == (world.plan.net_minor, 0)
        world.tick()
        world.ends_empty()

    def test_leaving_after_the_balance_sends_back_over_both_charges(self, world):
        world.booked()
        world.until_due()
        second = world.second
        quote = self.leave(world)
        total = world.reservation.total_minor
        assert quote.fee_minor == total // 4
        world.tick()
        parts = {r.payment_id: (r.amount_minor, r.status) for r in Refund.objects.all()}
        assert parts == {second.pk: (second.amount_minor, "settled")}
        world.ends_empty()

    def test_of_the_window_and_the_end_wait_for_the_balance(self, world):
        world.booked()
        with pytest.raises(BalanceOpen):
            extensions.quote(
                organization=world.tenant,
                reservation_id=world.reservation.pk,
                ends_at=world.reservation.ends_at + factories.hours(1),
                max_rate=None,
                at=world.clock(),
            )
        with pytest.raises(BalanceOpen):
            rebookings.quote(
                organization=world.tenant,
                reservation_id=world.reservation.pk,
                wish=rebookings.WindowWish(
                    starts_at=None,
                    ends_at=world.reservation.ends_at - factories.hours(1),
                    max_rate=None,
                ),
                at=world.clock(),
            )


class TestTax:
    def test_of_both_parts_is_the_tax_of_the_price(self, world):
        books_factories.taxed(buyer=world.tenant)
        world.booked()
        world.until_due()
        total = world.reservation.total_minor
        gross = tax.gross_minor(net_minor=total, terms=tax.terms_of(reservation=world.reservation))
        assert world.first.amount_minor + world.second.amount_minor == gross
        assert world.first.amount_minor == world.plan.gross_minor
        assert purchases.price_with_tax(reservation=world.reservation) == gross
        assert tax.net_kept(reservation=world.reservation) == total
        assert (world.balance(), world.plan.status) == (0, "paid")
        world.sound()


class Died(BaseException):
    """The process is gone: nothing catches it."""


class TestDeath:
    @pytest.mark.parametrize("step", ["claimed", "called", "recorded"])
    def test_at_any_step_of_the_call_leaves_one_charge(self, world, monkeypatch, step):
        world.booked()
        due_at = world.plan.balance_due_at
        world.turn(seconds=(due_at - world.clock()).total_seconds())
        collecting.advance_due(at=world.clock())

        def die(*, step, intent, at=step):
            if step == at and intent.kind == IntentKind.PAYMENT:
                raise Died

        monkeypatch.setattr(intents, "reached", die)
        with pytest.raises(Died):
            provider.drive_due(at=world.clock())
        monkeypatch.undo()
        world.tick(seconds=61)
        assert world.plan.status == "paid"
        assert len(world.stand_in.world.all("charge")) == 2
        assert not Intent.objects.filter(closed_at__isnull=True).exists()
        world.sound()


def test_every_move_is_written_down(world):
    world.booked()
    world.until_due()
    moves = ProviderTransition.objects.filter(machine="deposit", subject_id=world.reservation.pk)
    assert list(moves.order_by("id").values_list("from_status", "to_status")) == [
        ("awaited", "open"),
        ("open", "asked"),
        ("asked", "paid"),
    ]


def test_wishes_to_save_a_card_are_made_for_a_deposit(world):
    assert not Wishes(means=PaymentMeans.CARD).saves_card
    world.buy()
    assert world.first.saves_card
    assert deposits.rules.BASIS_POINTS == 10_000
