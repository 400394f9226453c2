"""Reservations that are paid by card or by bank: in time, late, declined, held and given up."""

import pytest
from django.db import IntegrityError, transaction

from billing import ledger, payments
from billing.models import CardRefund, Payer, Payment
from billing.states import AccountKind
from marketplace.states import Tier
from scheduler import reservations
from scheduler.models import Allocation
from tests.billing.card_market import BANK, CARD, SAVED, SAVING, fund_cash
from tests.scheduler import factories

pytestmark = pytest.mark.django_db


class TestReservations:
    def test_are_scheduled_once_they_are_paid(self, world):
        reservation, payment = world.reserve()
        assert reservation.status == "payment_pending"
        world.pays(payment)
        world.turn()
        reservation.refresh_from_db()
        assert reservation.status == "scheduled"
        deferred = ledger.AccountRef(AccountKind.DEFERRED, "usd", reservation.pk)
        assert ledger.balance(account=deferred) == reservation.total_minor
        assert world.balance() == 0
        world.sound()

    def test_have_one_open_payment_of_a_purpose(self, world):
        reservation, payment = world.reserve()
        with (
            pytest.raises(IntegrityError, match="payment_is_open_once_per_purpose"),
            transaction.atomic(),
        ):
            payments.open_for_reservation(reservation=reservation, wishes=CARD, at=world.clock())
        world.turn(minutes=16)
        assert Payment.objects.get().pk == payment.pk

    def test_go_back_on_sale_when_nobody_pays(self, world):
        reservation, payment = world.reserve()
        world.turn(minutes=16)
        reservation.refresh_from_db()
        payment.refresh_from_db()
        assert (reservation.status, payment.status) == ("expired", "cancelled")
        assert not Allocation.objects.filter(live=True).exists()
        assert world.told() == ["payment.closed"]

    def test_go_back_on_sale_when_three_d_secure_is_abandoned(self, world):
        reservation, payment = world.reserve()
        world.pays(payment, "pm_card_threeDSecure2Required")
        world.turn(minutes=16)
        reservation.refresh_from_db()
        payment.refresh_from_db()
        assert (reservation.status, payment.status) == ("expired", "cancelled")

    def test_are_booked_again_at_the_locked_price_when_the_money_comes_late(self, world):
        reservation, payment = world.reserve()
        reservations.expire_unpaid(at=world.clock(minutes=16))
        world.pays(payment)
        world.turn()
        reservation.refresh_from_db()
        assert reservation.status == "scheduled"
        assert reservation.transitions.last().reason == "paid_late"
        assert Allocation.objects.filter(live=True, reservation=reservation).exists()
        assert (world.balance(), CardRefund.objects.count()) == (0, 0)
        world.sound()

    def test_are_refunded_in_full_when_the_money_comes_late_and_the_gpus_are_gone(self, world):
        reservation, payment = world.reserve()
        reservations.expire_unpaid(at=world.clock(minutes=16))
        world.nodes_report = False
        world.pays(payment)
        world.turn()
        reservation.refresh_from_db()
        payment.refresh_from_db()
        assert reservation.status == "expired"
        refund = CardRefund.objects.get()
        assert (refund.status, refund.amount_minor) == ("succeeded", payment.amount_minor)
        assert (world.balance(), payment.refunded_minor) == (0, payment.amount_minor)
        assert world.told() == ["payment.succeeded", "payment.returned", "refund.sent"]
        world.sound()

    def test_are_refunded_when_the_money_comes_after_the_window_began(self, world):
        _, payment = world.reserve(starts_in=1)
        reservations.expire_unpaid(at=world.clock(minutes=90))
        world.pays(payment)
        world.turn()
        assert CardRefund.objects.get().status == "succeeded"

    def test_fail_at_once_when_the_saved_card_is_declined(self, world):
        first = world.top_up(wishes=SAVING)
        world.pays(first)
        world.turn()
        card = world.stand_in.world.get(Payer.objects.get().saved_card_id, "payment_method")
        card["_behaves"] = "insufficient_funds"
        reservation, payment = world.reserve(SAVED)
        reservation.refresh_from_db()
        assert reservation.status == "payment_failed"
        assert not Allocation.objects.filter(live=True).exists()
        world.turn()
        payment.refresh_from_db()
        assert (payment.status, payment.failure_code) == ("failed", "insufficient_funds")

    def test_wait_for_the_tenant_when_the_saved_card_asks_a_question(self, world):
        first = world.top_up(wishes=SAVING)
        world.pays(first)
        world.turn()
        card = world.stand_in.world.get(Payer.objects.get().saved_card_id, "payment_method")
        card["_behaves"] = "asks"
        reservation, payment = world.reserve(SAVED)
        assert payment.status == "open"
        assert world.told()[-1] == "payment.action_required"
        world.pays(payment)
        world.turn()
        reservation.refresh_from_db()
        assert reservation.status == "scheduled"

    def test_that_are_best_effort_are_held_and_taken_before_the_start(self, world):
        reservation, payment = world.reserve(tier=Tier.RECLAIMABLE)
        assert payment.is_held
        world.pays(payment)
        world.turn()
        reservation.refresh_from_db()
        payment.refresh_from_db()
        assert (reservation.status, payment.status) == ("scheduled", "authorized")
        assert world.balance() == 0
        world.turn(hours=23, minutes=50)
        payment.refresh_from_db()
        assert payment.status == "succeeded"
        deferred = ledger.AccountRef(AccountKind.DEFERRED, "usd", reservation.pk)
        assert ledger.balance(account=deferred) == reservation.total_minor

    def test_that_were_held_fail_when_the_hold_is_gone(self, world):
        reservation, payment = world.reserve(tier=Tier.RECLAIMABLE)
        world.pays(payment)
        world.turn()
        from tests.fakes.stripe import payments as theirs
        from tests.fakes.stripe.world import Request

        theirs.cancel_intent(world.stand_in.world, Request("POST", ""), payment.provider_id)
        world.turn(hours=23, minutes=50)
        reservation.refresh_from_db()
        assert reservation.status == "payment_failed"
        assert not Allocation.objects.filter(live=True).exists()

    def test_by_bank_transfer_wait_half_a_day(self, world):
        reservation, payment = world.reserve(BANK, starts_in=96)
        assert payment.due_at == world.clock() + factories.hours(12)
        world.turn(hours=11)
        customer = Payer.objects.get().customer_id
        fund_cash(
            world.stand_in, customer, {"amount": str(payment.amount_minor), "currency": "usd"}
        )
        world.turn()
        reservation.refresh_from_db()
        assert reservation.status == "scheduled"
