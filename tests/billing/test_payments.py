"""Money that comes in: for the wallet and for reservations, in time, late, declined and given up."""

import pytest
from django.db import IntegrityError, transaction

from billing import (
    card_refunds,
    ledger,
    payments,
    provider,
    refunds,
    reservation_refunds,
    settlements,
)
from billing.models import CardRefund, Dispute, Intent, Payer, Payment, Refund
from billing.payments import Wishes
from billing.provider_states import IntentKind, PaymentMeans
from billing.states import AccountKind
from marketplace.core.errors import InvalidValue
from marketplace.states import Tier
from scheduler import reservations
from scheduler.models import Allocation
from tests.billing.card_market import BANK, CARD, World, fund_cash
from tests.scheduler import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def world(provider, clock):
    return World(provider, clock)


class TestTopUps:
    def test_wait_for_the_tenant_and_then_fill_the_wallet(self, world):
        payment = world.top_up()
        assert payment.status == "open"
        assert payment.client_secret.startswith(payment.provider_id)
        assert world.balance() == 0
        world.pays(payment)
        world.turn()
        payment.refresh_from_db()
        assert (payment.status, payment.received_minor) == ("succeeded", 5000)
        assert world.balance() == 5000
        assert ledger.balance(account=payments.clearing(payment=payment)) == 5000
        assert world.told() == ["payment.succeeded"]
        world.sound()

    def test_make_the_tenant_a_customer_once(self, world):
        world.top_up()
        world.top_up()
        assert Payer.objects.get().customer_id
        assert len(world.stand_in.world.all("customer")) == 1

    def test_survive_a_decline_and_take_the_next_card(self, world):
        payment = world.top_up()
        with pytest.raises(Exception, match="declined"):
            world.pays(payment, "pm_card_visa_chargeDeclined")
        world.turn()
        payment.refresh_from_db()
        assert (payment.status, payment.failure_code) == ("open", "generic_decline")
        world.pays(payment)
        world.turn()
        assert world.balance() == 5000
        assert world.told() == ["payment.declined", "payment.succeeded"]

    def test_wait_for_three_d_secure(self, world):
        payment = world.top_up()
        world.pays(payment, "pm_card_threeDSecure2Required")
        world.turn()
        assert world.balance() == 0
        world.stand_in.control("/_control/authenticate", {"id": payment.provider_id})
        world.turn()
        assert world.balance() == 5000

    def test_end_when_nobody_pays(self, world):
        payment = world.top_up()
        world.turn(hours=25)
        payment.refresh_from_db()
        assert payment.status == "cancelled"
        assert world.told() == ["payment.closed"]

    def test_come_by_bank_transfer_in_parts(self, world):
        payment = world.top_up(amount=10_000, wishes=BANK)
        assert payment.instructions["amount_remaining"] == 10_000
        fund = {"amount": "4000", "currency": "usd"}
        customer = Payer.objects.get().customer_id
        for _ in range(3):
            fund_cash(world.stand_in, customer, fund)
            world.turn()
        payment.refresh_from_db()
        assert payment.status == "succeeded"
        assert world.balance() == 10_000 + 2_000  # too much was sent, and is the tenant's
        world.sound()

    @pytest.mark.parametrize("amount", [0, -1, 49, 100_000_000])
    def test_are_of_an_amount_that_the_provider_takes(self, world, amount):
        with pytest.raises(InvalidValue):
            world.top_up(amount=amount)
        assert not Payment.objects.exists()

    def test_need_a_saved_card_to_be_made_unasked(self, world):
        with pytest.raises(payments.NoSavedCard):
            world.top_up(wishes=Wishes(means=PaymentMeans.CARD, with_saved_card=True))

    def test_use_the_card_that_was_saved(self, world):
        first = world.top_up(wishes=Wishes(means=PaymentMeans.CARD, saves_card=True))
        world.pays(first)
        world.turn()
        saved = Wishes(means=PaymentMeans.CARD, with_saved_card=True)
        assert world.top_up(wishes=saved).status == "succeeded"
        assert world.balance() == 10_000


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
        first = world.top_up(wishes=Wishes(means=PaymentMeans.CARD, saves_card=True))
        world.pays(first)
        world.turn()
        card = world.stand_in.world.get(Payer.objects.get().saved_card_id, "payment_method")
        card["_behaves"] = "insufficient_funds"
        reservation, payment = world.reserve(Wishes(means=PaymentMeans.CARD, with_saved_card=True))
        reservation.refresh_from_db()
        assert reservation.status == "payment_failed"
        assert not Allocation.objects.filter(live=True).exists()
        world.turn()
        payment.refresh_from_db()
        assert (payment.status, payment.failure_code) == ("failed", "insufficient_funds")

    def test_wait_for_the_tenant_when_the_saved_card_asks_a_question(self, world):
        first = world.top_up(wishes=Wishes(means=PaymentMeans.CARD, saves_card=True))
        world.pays(first)
        world.turn()
        card = world.stand_in.world.get(Payer.objects.get().saved_card_id, "payment_method")
        card["_behaves"] = "asks"
        reservation, payment = world.reserve(Wishes(means=PaymentMeans.CARD, with_saved_card=True))
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


class TestRefunds:
    def paid(self, world, method):
        payment = world.top_up()
        world.pays(payment, method)
        world.turn()
        payment.refresh_from_db()
        return payment

    def give_back(self, world, payment, amount):

        refund = card_refunds.write(
            payment=payment, amount_minor=amount, reason="asked", at=world.clock()
        )
        world.turn()
        refund.refresh_from_db()
        return refund

    def test_wait_while_the_provider_works(self, world):
        self.paid(world, "pm_card_bypassPending")
        refund = self.give_back(world, self.paid(world, "pm_card_pendingRefund"), 5000)
        assert (refund.status, world.balance()) == ("pending", 5000)
        world.turn(days=3)
        refund.refresh_from_db()
        assert refund.status == "succeeded"

    def test_that_fail_days_later_fill_the_wallet_again(self, world):
        self.paid(world, "pm_card_bypassPending")
        payment = self.paid(world, "pm_card_refundFail")
        refund = self.give_back(world, payment, 2000)
        assert (refund.status, world.balance()) == ("succeeded", 8000)
        world.clock(days=3)
        made = provider.gateway.read_refund(refund_id=refund.provider_id)

        card_refunds.apply(refund_id=refund.pk, made=made, at=world.clock())
        payment.refresh_from_db()
        assert (world.balance(), payment.refunded_minor) == (10_000, 0)
        assert world.told()[-1] == "refund.failed"
        world.sound()

    def test_never_return_more_than_came(self, world):
        from marketplace.core.errors import StateConflict

        payment = self.paid(world, "pm_card_bypassPending")
        card_refunds.write(payment=payment, amount_minor=3000, reason="a", at=world.clock())
        with pytest.raises(StateConflict):
            card_refunds.write(payment=payment, amount_minor=2001, reason="b", at=world.clock())

    def test_never_return_what_the_wallet_has_spent(self, world, unguarded):

        payment = self.paid(world, "pm_card_bypassPending")
        other = self.paid(world, "pm_card_bypassPending")
        card_refunds.write(payment=other, amount_minor=5000, reason="a", at=world.clock())
        with unguarded():
            Payment.objects.filter(pk=payment.pk).update(amount_minor=9000, received_minor=9000)
        payment.refresh_from_db()
        with pytest.raises(ledger.InsufficientFunds):
            card_refunds.write(payment=payment, amount_minor=5001, reason="b", at=world.clock())
        payment.refresh_from_db()
        assert payment.refunded_minor == 0
        assert Intent.objects.filter(kind=IntentKind.REFUND).count() == 1


class TestRefundsOfReservations:
    def owing(self, world):
        """Return a reservation that was paid by card, was not delivered, and owes its price."""
        reservation, payment = self.undelivered(world)
        refunds.open_due(at=world.clock())
        return reservation, payment

    def undelivered(self, world):
        reservation, payment = world.reserve()
        world.pays(payment)
        world.turn()
        reservations.start_due(at=world.clock(days=3))
        settlements.settle_ended(at=world.clock())
        self.credit = world.balance()  # what the market gives for the breach, beside the price
        return reservation, payment

    def sent(self, world):
        reservation_refunds.ask_due(at=world.clock())
        provider.drive_due(at=world.clock())
        return Refund.objects.get()

    def back(self, world):
        return world.balance() - self.credit

    def test_go_back_to_the_card(self, world):
        reservation, payment = self.owing(world)
        refund = self.sent(world)
        payment.refresh_from_db()
        assert (refund.status, refund.amount_minor) == ("settled", reservation.total_minor)
        assert (payment.refunded_minor, self.back(world)) == (reservation.total_minor, 0)
        assert [r["amount"] for r in world.stand_in.world.all("refund")] == [
            reservation.total_minor
        ]
        assert world.told()[-1] == "refund.sent"

    def test_are_asked_for_once(self, world):
        self.owing(world)
        for _ in range(3):
            self.sent(world)
        assert len(world.stand_in.world.all("refund")) == 1

    def dispute(self, world, payment):
        """Let the card holder dispute the payment; return the provider's object, of which we know nothing."""
        payment.refresh_from_db()
        return world.stand_in.control("/_control/dispute", {"id": payment.charge_id})

    def learn(self, world, made, *, won=None):
        if won is not None:
            world.stand_in.control("/_control/close-dispute", {"id": made["id"], "won": won})
        assert provider.READERS["dispute"](made["id"], world.clock())

    def again(self, world):
        refunds.open_due(at=world.clock())
        reservation_refunds.ask_due(at=world.clock())
        provider.drive_due(at=world.clock())

    def statuses(self):
        return list(Refund.objects.order_by("pk").values_list("status", flat=True))

    def payable(self, reservation):
        return ledger.balance(
            account=ledger.AccountRef(AccountKind.REFUND_PAYABLE, "usd", reservation.pk)
        )

    def test_wait_while_the_payment_is_disputed(self, world):
        reservation, payment = self.owing(world)
        self.learn(world, self.dispute(world, payment))
        for _ in range(2):
            self.again(world)
        assert (self.statuses(), self.back(world)) == (["due"], 0)
        assert self.payable(reservation) == reservation.total_minor
        world.sound()

    def test_stay_owed_when_the_provider_refuses_what_a_bank_took_back(self, world):
        reservation, payment = self.owing(world)
        made = self.dispute(world, payment)
        assert self.sent(world).status == "failed"
        for _ in range(2):
            self.again(world)
        assert (self.statuses(), self.back(world)) == (["failed"], 0)
        assert self.payable(reservation) == reservation.total_minor
        payment.refresh_from_db()
        assert payment.refunded_minor == 0
        assert "refund.failed" not in world.told()
        self.learn(world, made)
        self.again(world)
        assert self.statuses() == ["failed"]
        world.sound()

    def test_are_set_off_when_the_tenants_bank_keeps_the_money(self, world):
        reservation, payment = self.owing(world)
        made = self.dispute(world, payment)
        self.learn(world, made)
        self.learn(world, made, won=False)
        for _ in range(2):
            self.again(world)
        assert (self.statuses(), self.back(world)) == (["set_off"], 0)
        assert self.payable(reservation) == 0
        assert Dispute.objects.get().set_off_minor == reservation.total_minor
        assert ledger.balance(account=ledger.AccountRef(AccountKind.DISPUTE_LOSSES, "usd")) == 0
        assert not world.stand_in.world.all("refund")
        world.sound()

    def test_go_back_when_the_dispute_is_won(self, world):
        reservation, payment = self.owing(world)
        made = self.dispute(world, payment)
        assert self.sent(world).status == "failed"
        self.learn(world, made)
        self.learn(world, made, won=True)
        self.again(world)
        assert self.statuses() == ["failed", "settled"]
        assert (self.payable(reservation), self.back(world)) == (0, 0)
        world.sound()

    def test_are_tried_again_when_no_dispute_is_heard_of(self, world):
        _, payment = self.owing(world)
        made = self.dispute(world, payment)
        assert self.sent(world).status == "failed"
        world.stand_in.control("/_control/close-dispute", {"id": made["id"], "won": True})
        world.clock(days=1)
        self.again(world)
        assert self.statuses() == ["failed", "settled"]

    def test_fill_the_wallet_when_they_come_back_days_later(self, world):
        reservation, _ = self.owing(world)
        refund = self.sent(world)
        theirs = world.stand_in.world.all("refund")[0]
        world.stand_in.control("/_control/fail-refund", {"id": theirs["id"]})
        assert provider.READERS["refund"](theirs["id"], world.clock())
        refund.refresh_from_db()
        assert (refund.status, self.back(world)) == ("failed", reservation.total_minor)

    def test_are_split_over_the_charges_the_newest_first(self, world, unguarded):
        reservation, first = self.undelivered(world)
        # A second charge, of which ten have gone back; the first brought all but the last minor unit.
        second = world.top_up(amount=100)
        world.pays(second)
        world.turn()
        with unguarded():
            Payment.objects.filter(pk=second.pk).update(
                reservation=reservation, purpose="reservation", refunded_minor=10
            )
            Payment.objects.filter(pk=first.pk).update(
                amount_minor=reservation.total_minor - 91,
                received_minor=reservation.total_minor - 91,
            )
        refunds.open_due(at=world.clock())
        reservation_refunds.ask_due(at=world.clock())
        provider.drive_due(at=world.clock())
        parts = Refund.objects.values_list("payment", "amount_minor", "status")
        assert set(parts) == {
            (second.pk, 90, "settled"),
            (first.pk, reservation.total_minor - 91, "settled"),
            (None, 1, "failed"),
        }
        for payment in (first, second):
            payment.refresh_from_db()
            assert payment.refunded_minor == payment.received_minor
        sent = {r["payment_intent"]: r["amount"] for r in world.stand_in.world.all("refund")}
        assert sent == {second.provider_id: 90, first.provider_id: reservation.total_minor - 91}
        assert self.back(world) == 100 + 1  # the top-up is in the wallet still

    def test_of_one_charge_stay_on_it_when_another_was_disputed(self, world, unguarded):
        reservation, first = self.undelivered(world)
        second = world.top_up(amount=100)
        world.pays(second)
        world.turn()
        with unguarded():
            Payment.objects.filter(pk=second.pk).update(
                reservation=reservation, purpose="reservation"
            )
        second.refresh_from_db()
        world.stand_in.control("/_control/dispute", {"id": second.charge_id})
        refunds.open_due(at=world.clock())
        reservation_refunds.ask_due(at=world.clock())
        provider.drive_due(at=world.clock())
        rows = Refund.objects.values_list("payment", "status")
        assert set(rows) == {(second.pk, "failed"), (first.pk, "settled")}
        first.refresh_from_db()
        second.refresh_from_db()
        assert (first.refunded_minor, second.refunded_minor) == (reservation.total_minor - 100, 0)

    def test_fill_the_wallet_with_what_the_charge_has_no_room_for_any_more(self, world, unguarded):
        reservation, payment = self.owing(world)
        with unguarded():
            Payment.objects.filter(pk=payment.pk).update(refunded_minor=1)
        assert self.sent(world).status == "failed"
        assert self.back(world) == reservation.total_minor
        assert not world.stand_in.world.all("refund")
