"""Money for the wallet: asked for, declined, given up, sent in parts."""

import pytest

from billing import ledger, payments
from billing.models import Payer, Payment
from marketplace.core.errors import InvalidValue
from tests.billing.card_market import BANK, SAVED, SAVING, fund_cash

pytestmark = pytest.mark.django_db


class TestTopUps:
    def test_wait_for_the_tenant_and_then_fill_the_wallet(self, world):
        payment = world.top_up()
        assert payment.status == "open"
        assert payment.client_secret.startswith(payment.provider_id)
        assert world.balance() == 0
        world.completes(payment)
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
            world.top_up(wishes=SAVED)

    def test_use_the_card_that_was_saved(self, world):
        first = world.top_up(wishes=SAVING)
        world.pays(first)
        world.turn()
        assert world.top_up(wishes=SAVED).status == "succeeded"
        assert world.balance() == 10_000
