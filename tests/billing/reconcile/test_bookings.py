"""What the provider booked is matched with what it was for."""

import pytest

from billing import (
    card_refunds,
    changes,
    ledger,
    payments,
    provider_books,
    refunds,
    reservation_refunds,
)
from billing import provider as doors
from billing.models import BalanceTransaction
from billing.states import AccountKind
from scheduler import cancellations

pytestmark = pytest.mark.django_db


class TestBookings:
    def test_of_a_payment_clear_it_and_bring_the_fee(self, world):
        payment = world.paid()
        assert provider_books.fetch(at=world.clock()) == 1
        assert ledger.balance(account=payments.clearing(payment=payment)) == 0
        assert world.shared(AccountKind.PSP_FEES) == 175
        assert world.shared(AccountKind.STRIPE_AVAILABLE) == 4825
        assert world.shared(AccountKind.STRIPE_PENDING) == 0

    def test_become_available_when_the_provider_lets_them(self, world):
        world.paid(method="pm_card_visa")
        provider_books.fetch(at=world.clock())
        assert world.shared(AccountKind.STRIPE_PENDING) == 4825
        provider_books.fetch(at=world.clock(days=3))
        assert world.shared(AccountKind.STRIPE_PENDING) == 0
        assert world.shared(AccountKind.STRIPE_AVAILABLE) == 4825

    def test_are_booked_once(self, world):
        world.paid()
        assert [provider_books.fetch(at=world.clock()) for _ in range(3)] == [1, 0, 0]
        assert BalanceTransaction.objects.count() == 1

    def test_wait_for_the_object_that_they_are_about(self, world):
        payment = world.top_up()
        world.pays(payment)
        provider_books.fetch(at=world.clock())
        assert BalanceTransaction.objects.get().matched_at is None
        world.turn()
        provider_books.fetch(at=world.clock())
        assert BalanceTransaction.objects.get().subject_id == payment.pk

    def test_of_refunds_that_come_back_end_at_zero(self, world):
        world.paid()
        payment = world.paid(method="pm_card_refundFail")
        refund = world.gives_back(payment, 2000)
        provider_books.fetch(at=world.clock())
        world.clock(days=3)
        made = doors.gateway.read_refund(refund_id=refund.provider_id)
        card_refunds.apply(refund_id=refund.pk, made=made, at=world.clock())
        assert world.differences() == []
        assert ledger.balance(account=card_refunds.clearing(refund=refund)) == 0
        assert world.balance() == 10_000
        world.sound()

    def test_of_refunds_of_reservations_that_come_back_end_at_zero(self, world):
        world.paid()
        reservation, payment = world.reserve()
        world.pays(payment)
        world.turn()
        who = {"organization": world.tenant, "reservation_id": reservation.pk}
        quote = cancellations.quote(**who, at=world.clock())
        changes.cancel(**who, quote_id=quote.pk, at=world.clock(), actor="test")
        (refund,) = refunds.open_for(reservation_id=reservation.pk, at=world.clock())
        reservation_refunds.ask(refund_id=refund.pk, at=world.clock())
        world.turn()
        provider_books.fetch(at=world.clock())
        (made,) = world.stand_in.world.all("refund")
        world.stand_in.control("/_control/fail-refund", {"id": made["id"]})
        doors.READERS["refund"](made["id"], world.clock())
        refund.refresh_from_db()
        assert refund.status == "failed"
        assert world.differences(hours=1) == []
        assert world.balance() == 5000 + refund.amount_minor
        world.sound()

    def test_of_our_own_payouts_go_to_the_bank(self, world):
        world.paid()
        world.client().v1.payouts.create({"amount": 4000, "currency": "usd"})
        provider_books.fetch(at=world.clock())
        assert world.shared(AccountKind.BANK) == 4000
        assert world.differences() == []
