"""The provider's books against ours: what was booked is matched, what differs is found, adopted and told."""

import datetime as dt

import pytest
import stripe
import time_machine
from django.core.management import CommandError, call_command

from billing import books, card_refunds, ledger, payments, provider_books, reconcile
from billing import provider as doors
from billing.models import BalanceTransaction, Difference, Intent, Payment
from billing.states import AccountKind
from marketplace.core.errors import StateConflict
from tests.billing.card_market import World
from tests.fakes.stripe import balance as standin_balance

pytestmark = pytest.mark.django_db


@pytest.fixture
def world(provider, clock):
    return Market(provider, clock)


class Market(World):
    """A market whose every booking at the provider is one of its own."""

    def __init__(self, stand_in, clock):
        super().__init__(stand_in, clock)
        for row in stand_in.world.all("balance_transaction"):
            del stand_in.world.objects[row["id"]]  # the endowment of other tests

    def paid(self, amount=5000, method="pm_card_bypassPending"):
        payment = self.top_up(amount)
        self.pays(payment, method)
        self.turn()
        payment.refresh_from_db()
        return payment

    def client(self):
        return stripe.StripeClient("sk_test_x", base_addresses={"api": self.stand_in.base_url})

    def shared(self, kind):
        return ledger.balance(account=ledger.AccountRef(kind, "usd"))

    def differences(self, **passed):
        return [(d.kind, d.object_id) for d in reconcile.run(at=self.clock(**passed))]


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
        refund = card_refunds.write(
            payment=payment, amount_minor=2000, reason="asked", at=world.clock()
        )
        world.turn()
        refund.refresh_from_db()
        provider_books.fetch(at=world.clock())
        world.clock(days=3)
        made = doors.gateway.read_refund(refund_id=refund.provider_id)
        card_refunds.apply(refund_id=refund.pk, made=made, at=world.clock())
        assert world.differences() == []
        assert ledger.balance(account=card_refunds.clearing(refund=refund)) == 0
        assert world.balance() == 10_000
        world.sound()

    def test_of_our_own_payouts_go_to_the_bank(self, world):
        world.paid()
        world.client().v1.payouts.create({"amount": 4000, "currency": "usd"})
        provider_books.fetch(at=world.clock())
        assert world.shared(AccountKind.BANK) == 4000
        assert world.differences() == []


class TestDifferences:
    def test_are_none_after_a_day_of_business(self, world):
        payment = world.paid()
        world.paid(3000)
        world.paid(4000, "pm_card_visa")
        card_refunds.write(payment=payment, amount_minor=100, reason="asked", at=world.clock())
        world.turn()
        reservation, paid = world.reserve()
        world.pays(paid)
        world.turn()
        assert world.differences(hours=2) == []
        assert world.differences(days=3) == []
        assert reservation.pk
        assert books.check(at=world.clock()).ok

    def test_show_a_payment_that_we_do_not_know(self, world):
        made = world.client().v1.payment_intents.create(
            {"amount": 900, "currency": "usd", "confirm": True, "payment_method": "pm_card_visa"}
        )
        assert world.differences() == []  # it may be on its way
        found = world.differences(hours=1)
        assert ("payment_without_row", made.id) in found
        assert "booking_unmatched" in dict(found)

    def test_show_a_payment_that_is_further_there_than_here_and_adopt_it(self, world):
        payment = world.top_up()
        world.pays(payment)
        kinds = dict(world.differences(hours=1))
        assert kinds["payment_differs"] == payment.provider_id
        difference = Difference.objects.get(kind="payment_differs")
        reconcile.adopt(difference=difference, at=world.clock(), actor="cfo")
        assert world.balance() == 5000
        difference.refresh_from_db()
        assert difference.resolution == "adopted by cfo"
        assert world.differences() == []
        with pytest.raises(StateConflict):
            reconcile.adopt(difference=difference, at=world.clock(), actor="cfo")

    def test_show_a_payment_that_the_provider_does_not_know(self, world):
        payment = world.paid()
        world.clock(minutes=20)
        theirs = world.stand_in.world.objects
        del theirs[payment.provider_id]
        assert ("payment_without_object", payment.pk) in world.differences()

    def test_show_money_that_was_not_matched_and_put_it_aside(self, world):
        world.paid()
        standin_balance.move(
            world.stand_in.world,
            source={"id": "tu_2"},
            kind="topup",
            category="topup",
            amount=777,
            currency="usd",
        )
        ((kind, object_id),) = world.differences(hours=1)
        assert kind == "booking_unmatched"
        difference = Difference.objects.get()
        reconcile.adopt(difference=difference, at=world.clock(), actor="cfo")
        assert world.shared(AccountKind.SUSPENSE) == 777
        assert world.differences() == []
        assert object_id.startswith("txn_")

    def test_show_a_balance_that_is_another(self, world):
        world.paid()
        provider_books.fetch(at=world.clock())
        ledger.transfer(
            debited=ledger.AccountRef(AccountKind.STRIPE_AVAILABLE, "usd"),
            credited=ledger.AccountRef(AccountKind.SUSPENSE, "usd"),
            amount=1,
        )
        row = BalanceTransaction.objects.get()
        theirs = world.stand_in.world.get(row.pk, "balance_transaction")
        theirs["net"] -= 1
        ((kind, _),) = world.differences()
        assert kind == "balance_differs"

    def test_show_an_intent_that_nobody_knows_the_outcome_of(self, world):
        payment = world.top_up()
        Intent.objects.filter(subject_id=payment.pk).update(status="unknown", closed_at=None)
        assert ("intent_unknown", Intent.objects.get(subject_id=payment.pk).pk) in (
            world.differences()
        )

    def test_vanish_when_they_are_gone(self, world):
        payment = world.top_up()
        world.pays(payment)
        world.differences(hours=1)
        world.turn()
        assert world.differences() == []
        assert set(Difference.objects.values_list("resolution", flat=True)) == {"vanished"}

    def test_become_overdue_by_their_kind(self, world):
        payment = world.top_up()
        world.pays(payment)
        world.differences(hours=1)
        difference = Difference.objects.get(kind="payment_differs")
        assert not reconcile.is_overdue(difference=difference, at=world.clock(minutes=14))
        assert reconcile.is_overdue(difference=difference, at=world.clock(minutes=1))

    def test_cannot_be_looked_for_while_the_provider_is_away(self, world):
        world.stand_in.fail("server_error", "GET", times=9)
        with pytest.raises(reconcile.ProviderAway):
            reconcile.run(at=world.clock())


class TestCommand:
    def call(self, world, capsys, *arguments):
        with time_machine.travel(world.clock(), tick=False):
            try:
                call_command("reconcile", *arguments)
            except SystemExit as stop:
                return stop.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    def test_says_that_all_is_well(self, world, capsys):
        world.paid()
        status, text = self.call(world, capsys)
        assert (status, text.splitlines()[-1]) == (0, "the provider and the ledger agree")

    def test_lists_what_differs_fails_by_its_age_and_adopts(self, world, capsys):
        payment = world.top_up()
        world.pays(payment)
        world.clock(hours=1)
        status, text = self.call(world, capsys)
        assert (status, "payment_differs" in text) == (0, True)
        world.clock(minutes=20)
        status, text = self.call(world, capsys)
        assert (status, "OVERDUE" in text) == (1, True)
        number = str(Difference.objects.get(kind="payment_differs").pk)
        with pytest.raises(CommandError):
            call_command("reconcile", "--adopt", number)
        assert self.call(world, capsys, "--adopt", number, "--as", "cfo")[0] == 0
        assert Payment.objects.get().status == "succeeded"

    def test_needs_a_provider(self, db):
        with pytest.raises(CommandError, match="no payment provider"):
            call_command("reconcile")


def test_the_window_covers_a_weekend():
    assert dt.timedelta(seconds=reconcile.WINDOW_SECONDS) > dt.timedelta(days=3)
