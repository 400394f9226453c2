"""The second part of a price in two: asked for, declined, paid early, given up, late, killed on the way."""

import datetime as dt

import pytest

from agents.models import Node
from billing import bills, deposits, payments, provider, releases, settlements
from billing.deposits import collecting
from billing.models import CardRefund, FeeShare, Intent, Payer, Payment, Refund
from billing.provider_states import IntentKind
from billing.states import GPU_SECONDS, AccountKind
from marketplace.core.errors import NotFound, StateConflict
from marketplace.models import Event
from scheduler import reservations
from scheduler.models import Allocation, Lease, Reservation
from tests.billing import factories as books_factories
from tests.billing.card_market import CARD, SAVED, World
from tests.billing.deposits.market import DAY
from tests.billing.dying import STEPS, dies
from tests.fakes.stripe import currencies
from tests.scheduler import factories

pytestmark = pytest.mark.django_db


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
        releases.release_due(at=world.clock(days=20))
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


class TestDeath:
    @pytest.mark.parametrize("step", STEPS)
    def test_at_any_step_of_the_call_leaves_one_charge(self, world, step):
        world.booked()
        due_at = world.plan.balance_due_at
        world.turn(seconds=(due_at - world.clock()).total_seconds())
        collecting.advance_due(at=world.clock())
        with dies(at=step, kind=IntentKind.PAYMENT):
            provider.drive_due(at=world.clock())
        world.tick(seconds=61)
        assert world.plan.status == "paid"
        assert len(world.stand_in.world.all("charge")) == 2
        assert not Intent.objects.filter(closed_at__isnull=True).exists()
        world.sound()
