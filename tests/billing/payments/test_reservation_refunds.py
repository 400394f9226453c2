"""The price of what was not delivered, on its way back to the card or against a dispute."""

import pytest

from billing import ledger, provider
from billing.models import Dispute, Payment, Refund
from billing.states import AccountKind
from tests.billing.payments.market import Undelivering

pytestmark = pytest.mark.django_db


@pytest.fixture
def world(provider, clock):
    return Undelivering(provider, clock)


class TestRefundsOfReservations:
    def test_go_back_to_the_card(self, world):
        reservation, payment = world.owing()
        refund = world.sent()
        payment.refresh_from_db()
        assert (refund.status, refund.amount_minor) == ("settled", reservation.total_minor)
        assert (payment.refunded_minor, world.back()) == (reservation.total_minor, 0)
        assert [r["amount"] for r in world.stand_in.world.all("refund")] == [
            reservation.total_minor
        ]
        assert world.told()[-1] == "refund.sent"

    def test_are_asked_for_once(self, world):
        world.owing()
        for _ in range(3):
            world.sent()
        assert len(world.stand_in.world.all("refund")) == 1

    def test_wait_while_the_payment_is_disputed(self, world):
        reservation, payment = world.owing()
        world.learn(world.dispute(payment))
        for _ in range(2):
            world.again()
        assert (world.statuses(), world.back()) == (["due"], 0)
        assert world.payable(reservation) == reservation.total_minor
        world.sound()

    def test_stay_owed_when_the_provider_refuses_what_a_bank_took_back(self, world):
        reservation, payment = world.owing()
        made = world.dispute(payment)
        assert world.sent().status == "failed"
        for _ in range(2):
            world.again()
        assert (world.statuses(), world.back()) == (["failed"], 0)
        assert world.payable(reservation) == reservation.total_minor
        payment.refresh_from_db()
        assert payment.refunded_minor == 0
        assert "refund.failed" not in world.told()
        world.learn(made)
        world.again()
        assert world.statuses() == ["failed"]
        world.sound()

    def test_are_set_off_when_the_tenants_bank_keeps_the_money(self, world):
        reservation, payment = world.owing()
        made = world.dispute(payment)
        world.learn(made)
        world.learn(made, won=False)
        for _ in range(2):
            world.again()
        assert (world.statuses(), world.back()) == (["set_off"], 0)
        assert world.payable(reservation) == 0
        assert Dispute.objects.get().set_off_minor == reservation.total_minor
        assert ledger.balance(account=ledger.AccountRef(AccountKind.DISPUTE_LOSSES, "usd")) == 0
        assert not world.stand_in.world.all("refund")
        world.sound()

    def test_go_back_when_the_dispute_is_won(self, world):
        reservation, payment = world.owing()
        made = world.dispute(payment)
        assert world.sent().status == "failed"
        world.learn(made)
        world.learn(made, won=True)
        world.again()
        assert world.statuses() == ["failed", "settled"]
        assert (world.payable(reservation), world.back()) == (0, 0)
        world.sound()

    def test_are_tried_again_when_no_dispute_is_heard_of(self, world):
        _, payment = world.owing()
        made = world.dispute(payment)
        assert world.sent().status == "failed"
        world.stand_in.control("/_control/close-dispute", {"id": made["id"], "won": True})
        world.clock(days=1)
        world.again()
        assert world.statuses() == ["failed", "settled"]

    def test_fill_the_wallet_when_they_come_back_days_later(self, world):
        reservation, _ = world.owing()
        refund = world.sent()
        theirs = world.stand_in.world.all("refund")[0]
        world.stand_in.control("/_control/fail-refund", {"id": theirs["id"]})
        assert provider.READERS["refund"](theirs["id"], world.clock())
        refund.refresh_from_db()
        assert (refund.status, world.back()) == ("failed", reservation.total_minor)

    def test_are_split_over_the_charges_the_newest_first(self, world, unguarded):
        reservation, first = world.undelivered()
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
        world.again()
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
        assert world.back() == 100 + 1  # the top-up is in the wallet still

    def test_of_one_charge_stay_on_it_when_another_was_disputed(self, world, unguarded):
        reservation, first = world.undelivered()
        second = world.top_up(amount=100)
        world.pays(second)
        world.turn()
        with unguarded():
            Payment.objects.filter(pk=second.pk).update(
                reservation=reservation, purpose="reservation"
            )
        second.refresh_from_db()
        world.stand_in.control("/_control/dispute", {"id": second.charge_id})
        world.again()
        rows = Refund.objects.values_list("payment", "status")
        assert set(rows) == {(second.pk, "failed"), (first.pk, "settled")}
        first.refresh_from_db()
        second.refresh_from_db()
        assert (first.refunded_minor, second.refunded_minor) == (reservation.total_minor - 100, 0)

    def test_fill_the_wallet_with_what_the_charge_has_no_room_for_any_more(self, world, unguarded):
        reservation, payment = world.owing()
        with unguarded():
            Payment.objects.filter(pk=payment.pk).update(refunded_minor=1)
        assert world.sent().status == "failed"
        assert world.back() == reservation.total_minor
        assert not world.stand_in.world.all("refund")
