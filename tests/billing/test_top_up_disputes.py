"""What a bank has taken back of a top-up cannot be spent, withdrawn or refunded a second time."""

import datetime as dt
from typing import Any

import pytest
from django.db import transaction

from billing import (
    approvals,
    books,
    card_refunds,
    credit,
    ledger,
    parking,
    provider_values,
    top_up_disputes,
    wallet,
    withdrawals,
)
from billing.ledger import InsufficientFunds
from billing.models import CardRefund, Intent, Payment, TopUpDispute
from billing.states import AccountKind, ApprovalKind
from billing.withdrawals import WithdrawalRefused
from marketplace.core.errors import StateConflict
from marketplace.core.money import Money
from marketplace.models import Event
from tests.billing import debtors, factories
from tests.billing.bookings import extend, leave
from tests.billing.card_market import World
from tests.billing.readings import balance
from tests.billing.test_withdrawals import topped_up
from tests.scheduler import factories as market

pytestmark = pytest.mark.django_db

AT = factories.START


def say(
    payment: Payment,
    state: str = "needs_response",
    *,
    dispute_id: str = "dp_1",
    amount: int | None = None,
    at: dt.datetime = AT,
) -> TopUpDispute:
    """Take over what the provider says of the dispute of a top-up, by default of all of it."""
    return top_up_disputes.apply(
        payment=payment,
        made=provider_values.ProviderDispute(
            id=dispute_id,
            state=state,
            amount_minor=payment.received_minor if amount is None else amount,
            taken_minor=0
            if state == "won"
            else payment.received_minor
            if amount is None
            else amount,
            fee_minor=15,
            currency="usd",
            payment_id=payment.provider_id,
            created_at=AT,
        ),
        at=at,
    )


def spend(minor: int) -> None:
    """Let the tenant buy something for so much from its wallet."""
    factories.reservation(buyer=factories.tenant(), total_minor=minor)


def purse() -> int:
    return wallet.balance(organization=factories.tenant()).amount_minor


def withheld() -> int:
    return top_up_disputes.withheld_minor(organization=factories.tenant(), currency="usd")


def owed() -> int:
    return top_up_disputes.owed_minor(organization=factories.tenant(), currency="usd")


def square() -> int:
    return top_up_disputes.square_due(at=AT)


def sound() -> None:
    report = books.check(at=AT)
    assert report.ok, [check for check in report.checks if not check.ok]


def told(kind: str) -> Any:
    return Event.objects.get(kind=kind).data


class TestOpen:
    def test_keeps_its_amount_from_being_spent(self):
        say(topped_up(5_000))
        assert (purse(), withheld(), owed()) == (0, 5_000, 0)
        with pytest.raises(InsufficientFunds):
            ledger.require_funds(
                account=wallet.account(organization=factories.tenant(), currency="usd"), amount=1
            )
        assert told("dispute.opened")["withheld_minor"] == 5_000
        sound()

    def test_leaves_what_is_beyond_it(self):
        payment = topped_up(5_000)
        factories.fund(factories.tenant(), minor=700)
        say(payment, amount=3_000)
        assert (purse(), withheld()) == (2_700, 3_000)
        sound()

    def test_that_is_told_again_withholds_once(self):
        payment = topped_up(5_000)
        factories.fund(factories.tenant(), minor=5_000)
        for _ in range(3):
            say(payment)
        assert (square(), purse(), withheld()) == (0, 5_000, 5_000)

    def test_withholds_what_comes_later_as_far_as_it_is_missing(self):
        payment = topped_up(5_000)
        spend(4_000)
        say(payment)
        assert (purse(), withheld()) == (0, 1_000)
        factories.fund(factories.tenant(), minor=6_000)
        assert (square(), square()) == (1, 0)
        assert (purse(), withheld()) == (2_000, 5_000)
        sound()

    def test_is_one_of_several(self):
        first, second = topped_up(3_000), topped_up(2_000)
        spend(1_000)
        say(first, dispute_id="dp_1")
        say(second, dispute_id="dp_2")
        assert (purse(), withheld()) == (0, 4_000)
        assert balance(AccountKind.DISPUTE_WITHHELD, "dp_1") == 3_000
        say(first, "won", dispute_id="dp_1")
        assert (purse(), withheld()) == (3_000, 1_000)
        square()
        assert (purse(), withheld()) == (2_000, 2_000)
        sound()

    def test_withholds_nothing_of_parked_money_before_it_moves(self):
        payment = topped_up(5_000)
        parking.park(breaches={factories.tenant().pk: "why"}, at=AT)
        say(payment)
        assert (square(), purse(), withheld()) == (0, 5_000, 0)
        sound()
        parking.end(organization=factories.tenant(), at=AT, actor="test")
        assert (square(), purse(), withheld()) == (1, 0, 5_000)
        sound()


class TestWon:
    def test_gives_back_what_was_withheld(self):
        payment = topped_up(5_000)
        spend(2_000)
        say(payment)
        say(payment, "won")
        assert (purse(), withheld(), owed()) == (3_000, 0, 0)
        assert balance(AccountKind.DISPUTE_HOLD, "dp_1") == 0
        assert told("dispute.closed")["owed_minor"] == 0
        assert square() == 0
        sound()

    def test_gives_back_when_the_money_moves_again(self):
        payment = topped_up(5_000)
        say(payment)
        parking.park(breaches={factories.tenant().pk: "why"}, at=AT)
        say(payment, "won")
        assert (square(), purse(), withheld()) == (0, 0, 5_000)
        sound()
        parking.end(organization=factories.tenant(), at=AT, actor="test")
        assert (square(), purse(), withheld()) == (1, 5_000, 0)
        sound()


class TestLost:
    def test_is_paid_by_what_was_withheld(self):
        payment = topped_up(5_000)
        say(payment)
        say(payment, "lost")
        assert (purse(), withheld(), owed()) == (0, 0, 0)
        assert balance(AccountKind.DISPUTE_HOLD, "dp_1") == 0
        assert balance(AccountKind.DISPUTE_LOSSES) == 0
        sound()

    def test_leaves_a_debt_that_the_wallet_pays_with_whatever_comes_next(self):
        payment = topped_up(5_000)
        spend(4_000)
        say(payment)
        say(payment, "lost")
        assert (purse(), withheld(), owed()) == (0, 0, 4_000)
        assert told("dispute.closed") == {
            "amount_minor": 5_000,
            "currency": "usd",
            "status": "lost",
            "withheld_minor": 0,
            "owed_minor": 4_000,
        }
        sound()
        for _ in range(2):
            factories.fund(factories.tenant(), minor=3_000)
            assert square() == 1
        assert (purse(), owed(), square()) == (2_000, 0, 0)
        sound()

    def test_takes_what_is_there_by_then(self):
        payment = topped_up(5_000)
        spend(4_000)
        say(payment)
        factories.fund(factories.tenant(), minor=500)
        say(payment, "lost")
        assert (purse(), owed()) == (0, 3_500)
        sound()

    def test_takes_nothing_of_parked_money_and_is_owed(self):
        payment = topped_up(5_000)
        parking.park(breaches={factories.tenant().pk: "why"}, at=AT)
        say(payment, "lost")
        assert (purse(), owed()) == (5_000, 5_000)
        sound()
        parking.end(organization=factories.tenant(), at=AT, actor="test")
        assert (square(), purse(), owed()) == (1, 0, 0)
        sound()

    def test_counts_against_what_may_be_owed(self):
        payment = topped_up(5_000)
        spend(5_000)
        say(payment, "lost")
        assert credit.owed_minor(organization=factories.tenant(), currency="usd") == 5_000

    def test_is_written_off_by_two_people(self):
        payment = topped_up(5_000)
        spend(5_000)
        say(payment, "lost")
        asked = approvals.request(
            kind=ApprovalKind.WRITE_OFF,
            organization=factories.tenant(),
            subject_id="dp_1",
            amount=Money(5_000, "usd"),
            reason="the card was stolen",
            at=AT,
            actor="anna",
        )
        approvals.approve(approval_id=asked.pk, at=AT, actor="bert")
        assert (owed(), balance(AccountKind.BAD_DEBT)) == (0, 5_000)
        factories.fund(factories.tenant(), minor=100)
        assert (square(), purse()) == (0, 100)
        sound()


class TestMoneyThatGoesBack:
    def test_is_not_that_of_a_disputed_top_up(self):
        payment = topped_up(5_000)
        factories.fund(factories.tenant(), minor=5_000)
        say(payment)
        for state in ("needs_response", "lost"):
            say(payment, state)
            with pytest.raises(StateConflict, match="disputed"):
                card_refunds.write(payment=payment, amount_minor=100, reason="asked", at=AT)
        assert not Intent.objects.exists()

    def test_may_be_that_of_a_dispute_that_was_won(self):
        payment = topped_up(5_000)
        say(payment)
        say(payment, "won")
        refund = card_refunds.write(payment=payment, amount_minor=100, reason="asked", at=AT)
        assert Intent.objects.get(subject_id=refund.pk).kind == "refund"

    def test_that_was_promised_of_parked_money_is_not_sent_once_a_bank_has_it(self):
        payment = topped_up(5_000)
        tenant = factories.tenant()
        parking.park(breaches={tenant.pk: "why"}, at=AT)
        card_refunds.write(payment=payment, amount_minor=5_000, reason="asked", at=AT)
        say(payment)
        parking.end(organization=tenant, at=AT, actor="test")
        card_refunds.send_due(at=AT)
        refund = CardRefund.objects.get()
        assert (refund.status, refund.failure_code) == ("failed", "charge_disputed")
        payment.refresh_from_db()
        assert (payment.refunded_minor, Intent.objects.exists()) == (0, False)
        square()
        assert (purse(), withheld()) == (0, 5_000)
        sound()

    def test_that_the_provider_refuses_is_withheld(self, provider, clock):
        world = World(provider, clock)
        payment = world.paid()
        refund = card_refunds.write(
            payment=payment, amount_minor=5_000, reason="asked", at=world.clock()
        )
        made = provider.control("/_control/dispute", {"id": payment.charge_id})
        world.turn()
        refund.refresh_from_db()
        assert (refund.status, refund.failure_code) == ("failed", "charge_disputed")
        assert world.balance() == 5_000
        payment.refresh_from_db()
        say(payment, dispute_id=made["id"], at=world.clock())
        assert world.balance() == 0
        world.sound()

    def test_is_withheld_before_any_of_it_is_withdrawn(self):
        payment = topped_up(5_000)
        spend(5_000)
        say(payment)
        topped_up(2_000)
        with pytest.raises(WithdrawalRefused):
            withdrawals.request(
                organization=factories.tenant(), amount=Money(1, "usd"), at=AT, actor="key_cfo"
            )
        factories.fund(factories.tenant(), minor=5_000)
        withdrawals.request(
            organization=factories.tenant(), amount=Money(1_000, "usd"), at=AT, actor="key_cfo"
        )
        assert withheld() == 5_000
        sound()

    def test_is_withheld_before_operators_let_it_go(self):
        payment = topped_up(500)
        tenant = factories.tenant(funds_minor=1_000)
        row = withdrawals.request(
            organization=tenant, amount=Money(1_500, "usd"), at=AT, actor="key_cfo"
        )
        spend(1_500)
        say(payment)
        factories.fund(tenant, minor=1_500)
        asked = approvals.request(
            kind=ApprovalKind.WITHDRAWAL,
            organization=tenant,
            subject_id=row.pk,
            amount=Money(1_500, "usd"),
            reason="the customer leaves",
            at=AT,
            actor="anna",
        )
        with pytest.raises(InsufficientFunds):
            approvals.approve(approval_id=asked.pk, at=AT, actor="bert")


class TestPurchase:
    def test_does_not_spend_what_a_cancellation_brought_back_of_it(self):
        """A thief buys with a stolen card, leaves when its bank takes the money back, and buys again."""
        market.make_pool()
        thief = market.make_organization()
        first, second = (market.make_quote(tenant=thief, gpus=1, at=market.NOW) for _ in range(2))
        payment = topped_up(first.total_minor, by=thief)
        bought = debtors.buy(first, payment_method="wallet")
        say(payment)
        leave(bought)
        back = wallet.balance(organization=thief).amount_minor
        assert back > 0
        topped_up(second.total_minor - back, by=thief)
        with pytest.raises(InsufficientFunds), transaction.atomic():
            debtors.buy(second, payment_method="wallet")
        square()
        assert wallet.balance(organization=thief).amount_minor == 0

    def test_of_more_time_does_not_either(self):
        """The dispute opened on an empty wallet; what came into it since is the bank's first."""
        market.make_pool()
        thief = market.make_organization()
        first = market.make_quote(tenant=thief, gpus=1, at=market.NOW)
        payment = topped_up(first.total_minor, by=thief)
        bought = debtors.buy(first, payment_method="wallet")
        say(payment)
        factories.fund(thief, minor=first.total_minor)
        with pytest.raises(InsufficientFunds), transaction.atomic():
            extend(bought)
        square()
        assert wallet.balance(organization=thief).amount_minor == 0
