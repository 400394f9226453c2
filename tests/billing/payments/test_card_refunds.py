"""Money of a top-up that goes back to its card."""

import pytest

from billing import card_refunds, ledger, provider
from billing.models import Intent, Payment
from billing.provider_states import IntentKind
from marketplace.core.errors import StateConflict

pytestmark = pytest.mark.django_db


class TestRefunds:
    def test_wait_while_the_provider_works(self, world):
        world.paid()
        refund = world.gives_back(world.paid(method="pm_card_pendingRefund"), 5000)
        assert (refund.status, world.balance()) == ("pending", 5000)
        world.turn(days=3)
        refund.refresh_from_db()
        assert refund.status == "succeeded"

    def test_that_fail_days_later_fill_the_wallet_again(self, world):
        world.paid()
        payment = world.paid(method="pm_card_refundFail")
        refund = world.gives_back(payment, 2000)
        assert (refund.status, world.balance()) == ("succeeded", 8000)
        world.clock(days=3)
        made = provider.gateway.read_refund(refund_id=refund.provider_id)
        card_refunds.apply(refund_id=refund.pk, made=made, at=world.clock())
        payment.refresh_from_db()
        assert (world.balance(), payment.refunded_minor) == (10_000, 0)
        assert world.told()[-1] == "refund.failed"
        world.sound()

    def test_never_return_more_than_came(self, world):
        payment = world.paid()
        card_refunds.write(payment=payment, amount_minor=3000, reason="a", at=world.clock())
        with pytest.raises(StateConflict):
            card_refunds.write(payment=payment, amount_minor=2001, reason="b", at=world.clock())

    def test_never_return_what_the_wallet_has_spent(self, world, unguarded):
        payment = world.paid()
        other = world.paid()
        card_refunds.write(payment=other, amount_minor=5000, reason="a", at=world.clock())
        with unguarded():
            Payment.objects.filter(pk=payment.pk).update(amount_minor=9000, received_minor=9000)
        payment.refresh_from_db()
        with pytest.raises(ledger.InsufficientFunds):
            card_refunds.write(payment=payment, amount_minor=5001, reason="b", at=world.clock())
        payment.refresh_from_db()
        assert payment.refunded_minor == 0
        assert Intent.objects.filter(kind=IntentKind.REFUND).count() == 1
