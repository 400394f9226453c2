"""Prepaid money goes back the way it came; what cannot, and large sums, take two operators."""

import datetime as dt
import itertools

import pytest
from django.db import IntegrityError, transaction

from billing import approvals, books, card_refunds, ledger, parking, payments, wallet, withdrawals
from billing.ledger import InsufficientFunds
from billing.models import (
    Approval,
    CardRefund,
    Intent,
    Payment,
    TopUpDispute,
    Withdrawal,
    WithdrawalPart,
)
from billing.provider_states import PaymentMeans, PaymentPurpose, PaymentStatus
from billing.provider_values import ProviderRefund
from billing.states import AccountKind, ApprovalKind, EntryKind
from billing.withdrawals import WithdrawalRefused
from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.core.money import Money
from marketplace.models import Event, Organization
from scheduler.states import PaymentMethod
from tests.billing import factories

pytestmark = pytest.mark.django_db

AT = factories.START
_numbers = itertools.count(1)


def topped_up(minor: int, *, by: Organization | None = None) -> Payment:
    """Return a payment by card that filled the wallet."""
    tenant = by or factories.tenant()
    number = next(_numbers)
    payment = Payment.objects.create(
        organization=tenant,
        purpose=PaymentPurpose.TOP_UP,
        means=PaymentMeans.CARD,
        status=PaymentStatus.SUCCEEDED,
        amount_minor=minor,
        received_minor=minor,
        currency="usd",
        provider_id=f"pi_{number}",
        charge_id=f"ch_{number}",
        read_due_at=AT,
        due_at=AT,
        created_at=AT,
    )
    ledger.post(
        idempotency_key=f"topup:{payment.pk}",
        kind=EntryKind.TOP_UP,
        subject_id=payment.pk,
        effective_at=AT,
        legs=ledger.transfer(
            debited=payments.clearing(payment=payment),
            credited=wallet.account(organization=tenant, currency="usd"),
            amount=minor,
        ),
    )
    return payment


def withdraw(minor: int, *, at: dt.datetime = AT, currency: str = "usd") -> Withdrawal:
    return withdrawals.request(
        organization=factories.tenant(), amount=Money(minor, currency), at=at, actor="key_cfo"
    )


def ask(row: Withdrawal, *, minor: int | None = None, at: dt.datetime = AT) -> Approval:
    return approvals.request(
        kind=ApprovalKind.WITHDRAWAL,
        organization=row.organization,
        subject_id=row.pk,
        amount=Money(row.amount_minor if minor is None else minor, "usd"),
        reason="the customer leaves",
        at=at,
        actor="anna",
    )


def approve(row: Withdrawal, *, at: dt.datetime = AT) -> Withdrawal:
    approvals.approve(approval_id=ask(row, at=at).pk, at=at, actor="bert")
    row.refresh_from_db()
    return row


def held() -> int:
    return wallet.balance(organization=factories.tenant()).amount_minor


def told() -> list[tuple[str, dict[str, object]]]:
    """Return what the tenant was told of its withdrawals, oldest first, without what is in all of it."""
    rows = Event.objects.filter(kind__startswith="withdrawal.").order_by("id")
    return [
        (
            row.kind.removeprefix("withdrawal."),
            {k: v for k, v in row.data.items() if k not in {"amount_minor", "currency"}},
        )
        for row in rows
    ]


def end(row: Withdrawal, state: str, *, minor: int | None = None) -> str:
    """Let the provider say what became of a part of a withdrawal, twice; return the refund's id."""
    part = row.parts.get(**({} if minor is None else {"refund__amount_minor": minor}))
    made = ProviderRefund(
        id=f"re_{part.refund_id}",
        intent_id="",
        state=state,
        amount_minor=part.refund.amount_minor,
        currency="usd",
        payment_id="",
        failure_code="closed",
        created_at=AT,
    )
    for _ in range(2):
        card_refunds.apply(refund_id=part.refund_id, made=made, at=AT)
    return part.refund_id


class TestEvents:
    def test_tell_that_it_was_sent_and_when_all_of_it_is_through(self):
        topped_up(5_000)
        topped_up(2_000)
        row = withdraw(3_000)
        sent = ("sent", {"to_cards_minor": 3_000, "by_bank_minor": 0})
        assert told() == [("requested", {}), sent]
        end(row, "succeeded", minor=1_000)
        end(row, "pending", minor=2_000)
        assert len(told()) == 2
        end(row, "succeeded", minor=2_000)
        assert told()[2:] == [("settled", {"settled_minor": 3_000, "given_back_minor": 0})]

    def test_tell_what_is_in_the_wallet_again(self):
        topped_up(5_000)
        topped_up(2_000)
        row = withdraw(3_000)
        refund_id = end(row, "failed", minor=1_000)
        failed = {"refund_id": refund_id, "given_back_minor": 1_000, "code": "closed"}
        assert told()[2:] == [("failed", failed)]
        end(row, "succeeded", minor=2_000)
        assert told()[3:] == [("settled", {"settled_minor": 2_000, "given_back_minor": 1_000})]

    def test_tell_of_a_card_that_was_closed_days_later(self):
        topped_up(2_000)
        row = withdraw(2_000)
        end(row, "succeeded")
        refund_id = end(row, "failed")
        failed = {"refund_id": refund_id, "given_back_minor": 2_000, "code": "closed"}
        assert [kind for kind, _ in told()] == ["requested", "sent", "settled", "failed"]
        assert told()[3:] == [("failed", failed)]

    def test_tell_that_it_waits_and_went_by_bank(self):
        factories.fund(factories.tenant(), minor=500)
        row = withdraw(500)
        assert told() == [("requested", {})]
        approve(row)
        assert told()[1:] == [
            ("sent", {"to_cards_minor": 0, "by_bank_minor": 500}),
            ("settled", {"settled_minor": 500, "given_back_minor": 0}),
        ]

    def test_tell_that_operators_refused_it(self):
        factories.fund(factories.tenant(), minor=500)
        row = withdraw(500)
        approvals.refuse(approval_id=ask(row).pk, at=AT, actor="bert")
        assert told() == [("requested", {}), ("refused", {})]
        assert Event.objects.get(kind="withdrawal.refused").object_id == row.pk

    def test_tell_nothing_of_other_refunds(self):
        payment = topped_up(2_000)
        refund = card_refunds.write(payment=payment, amount_minor=100, reason="asked", at=AT)
        card_refunds.refused(refund_id=refund.pk, code="closed", at=AT)
        assert told() == []


class TestBackTheWayItCame:
    def test_returns_the_newest_top_up_first_and_none_by_more_than_it_brought(self):
        old, new = topped_up(5_000), topped_up(2_000)
        row = withdraw(3_000)
        assert row.carried_out_at == AT
        refunds = CardRefund.objects.order_by("-amount_minor")
        assert [(each.payment, each.amount_minor) for each in refunds] == [
            (new, 2_000),
            (old, 1_000),
        ]
        assert {part.refund for part in row.parts.all()} == set(refunds)
        assert Intent.objects.filter(kind="refund").count() == 2
        assert (held(), row.bank_minor) == (4_000, 0)

    def test_is_in_the_wallet_again_where_the_card_is_closed_and_goes_by_bank_then(self):
        topped_up(2_000)
        row = withdraw(2_000)
        card_refunds.refused(refund_id=row.parts.get().refund_id, code="expired_card", at=AT)
        assert held() == 2_000
        again = withdraw(2_000)
        assert again.carried_out_at is None
        approve(again)
        assert (held(), again.bank_minor, again.parts.count()) == (0, 2_000, 0)

    def test_leaves_out_what_a_bank_calls_into_question(self):
        payment = topped_up(2_000)
        TopUpDispute.objects.create(
            pk="dp_1",
            payment=payment,
            amount_minor=2_000,
            fee_minor=15,
            currency="usd",
            opened_at=AT,
        )
        factories.fund(factories.tenant(), minor=1_000)
        assert withdraw(1_000).carried_out_at is None
        assert not CardRefund.objects.exists()


class TestByOperators:
    def test_takes_two_of_them_where_it_came_another_way(self):
        topped_up(1_000)
        factories.fund(factories.tenant(), minor=500)  # by bank transfer
        row = withdraw(1_500)
        assert (row.carried_out_at, held()) == (None, 1_500)
        asked = ask(row)
        assert asked.decided_at is None
        with pytest.raises(approvals.FourEyesNeeded):
            approvals.approve(approval_id=asked.pk, at=AT, actor="anna")
        approvals.approve(approval_id=asked.pk, at=AT, actor="bert")
        row.refresh_from_db()
        assert (row.approval, row.bank_minor, held()) == (asked, 500, 0)
        assert row.parts.get().refund.amount_minor == 1_000
        assert ledger.balance(account=ledger.AccountRef(AccountKind.BANK, "usd")) == 0
        report = books.check(at=AT)
        assert report.ok, [check for check in report.checks if not check.ok]

    def test_decide_large_sums_and_what_adds_up_to_them_in_a_day(self, settings):
        settings.WITHDRAWAL_ALONE_MINOR_MAX = 1_000
        topped_up(5_000)
        assert withdraw(600).carried_out_at == AT
        waits = withdraw(401)
        assert waits.carried_out_at is None
        with pytest.raises(StateConflict):
            withdraw(1)
        approve(waits)
        assert (held(), waits.bank_minor) == (3_999, 0)
        assert withdraw(400).carried_out_at == AT
        assert withdraw(1_000, at=AT + dt.timedelta(days=1)).carried_out_at is not None

    def test_who_refuse_leave_it_in_the_wallet(self):
        factories.fund(factories.tenant(), minor=500)
        row = withdraw(500)
        approvals.refuse(approval_id=ask(row).pk, at=AT, actor="bert")
        assert held() == 500
        assert not Withdrawal.objects.waiting().exists()
        with pytest.raises(InvalidValue), transaction.atomic():
            approve(row)
        assert withdraw(500).pk != row.pk

    def test_decide_the_amount_that_was_asked_for_and_once(self):
        factories.fund(factories.tenant(), minor=500)
        row = withdraw(500)
        wrong = ask(row, minor=499)
        with pytest.raises(InvalidValue), transaction.atomic():
            approvals.approve(approval_id=wrong.pk, at=AT, actor="bert")
        approvals.refuse(approval_id=wrong.pk, at=AT, actor="bert")

    def test_cannot_pay_out_what_was_spent_meanwhile(self):
        tenant = factories.tenant(funds_minor=500)
        row = withdraw(500)
        factories.reservation(buyer=tenant)
        with pytest.raises(InsufficientFunds), transaction.atomic():
            approve(row)
        row.refresh_from_db()
        assert (row.carried_out_at, held()) == (None, 29)

    def test_are_asked_for_by_the_database_too(self):
        factories.fund(factories.tenant(), minor=500)
        row = withdraw(500)
        with pytest.raises(IntegrityError, match="withdrawal_by_bank"), transaction.atomic():
            Withdrawal.objects.filter(pk=row.pk).update(bank_minor=500)
        with pytest.raises(IntegrityError), transaction.atomic():
            Withdrawal.objects.filter(pk=row.pk).update(amount_minor=1)


class TestARefusal:
    @pytest.mark.parametrize(("minor", "currency"), [(0, "usd"), (501, "usd"), (1, "eur")])
    def test_comes_where_the_wallet_does_not_hold_it(self, minor, currency):
        factories.fund(factories.tenant(), minor=500)
        with pytest.raises(WithdrawalRefused):
            withdraw(minor, currency=currency)
        assert not Withdrawal.objects.exists()

    def test_comes_where_the_money_is_owed(self):
        tenant = factories.tenant(funds_minor=500)
        row = factories.reservation(buyer=tenant, paid=False)
        row.payment_method = PaymentMethod.INVOICE
        row.save(update_fields=["payment_method"])
        factories.bought_on_account(row)  # 471 are owed
        with pytest.raises(WithdrawalRefused):
            withdraw(30)

    def test_comes_for_a_promotion(self):
        factories.promotion(buyer=factories.tenant(), minor=500)
        with pytest.raises(WithdrawalRefused):
            withdraw(1)

    def test_comes_while_the_money_is_parked(self):
        topped_up(500)
        parking.park(breaches={factories.tenant().pk: "why"}, at=AT)
        with pytest.raises(parking.MoneyParked):
            withdraw(1)
        assert not WithdrawalPart.objects.exists()
