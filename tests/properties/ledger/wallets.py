"""Money that comes in for wallets, and goes out of them: deposits, top-ups, cash, gifts, withdrawals."""

import datetime as dt

from django.conf import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from billing import (
    approvals,
    card_refunds,
    cash,
    chargeable,
    ledger,
    payments,
    promotions,
    wallet,
    withdrawals,
)
from billing.models import CardRefund, Entry, Payer, Payment, Withdrawal
from billing.payments import Wishes
from billing.provider_states import (
    CardRefundStatus,
    IntentKind,
    PaymentMeans,
    PaymentStatus,
)
from billing.states import ApprovalKind, EntryKind
from billing.withdrawals import WithdrawalRefused
from marketplace.core.money import Money
from marketplace.models import Organization
from tests.billing import factories
from tests.properties.ledger.events import event
from tests.properties.ledger.model import DAY, FAR, WHO
from tests.properties.ledger.provider import Provider

# What becomes of money that comes: it fills a wallet, buys what it was asked for, or goes back.
RECEIVED = (
    EntryKind.TOP_UP,
    EntryKind.PURCHASE,
    EntryKind.BALANCE,
    EntryKind.CHANGE,
    EntryKind.PROMOTION_SPENT,  # by what is added to what was not paid by card
    EntryKind.PAYMENT,
    EntryKind.RECOVERY,
    EntryKind.RELIEF_WITHDRAWN,
    EntryKind.WITHDRAWAL,
)
# What moves between a wallet and the disputes of its top-ups, whenever somebody looks.
SQUARED = (
    EntryKind.DISPUTE_WITHHELD,
    EntryKind.DISPUTE_RELEASED,
    EntryKind.DISPUTE_REPAID,
)
AHEAD = factories.START - DAY / 48  # half an hour: what is sold may still begin


class Wallets(Provider):
    """The rules of prepaid money."""

    @rule(amount=st.integers(1, 20_000), who=WHO)
    @event(EntryKind.DEPOSIT)
    def deposit(self, amount: int, who: int) -> None:
        key = self.next_id("deposit")
        for _ in range(2):
            wallet.record_deposit(
                organization=self.tenants[who],
                amount=self.money(amount),
                idempotency_key=key,
                at=factories.START,
                actor="test",
            )

    @precondition(lambda self: Entry.objects.filter(kind=EntryKind.DEPOSIT).exists())
    @rule(data=st.data())
    @event(EntryKind.REVERSAL)
    def take_a_deposit_back(self, data: st.DataObject) -> None:
        deposits = Entry.objects.filter(kind=EntryKind.DEPOSIT, reversed_by=None)
        entry = self.pick(data, self.read(deposits))
        ledger.reverse(entry=entry, idempotency_key=f"undo:{entry.pk}", at=FAR)

    @rule(
        amount=st.integers(1, 20_000),
        who=WHO,
        means=st.sampled_from(PaymentMeans),
        is_paid=st.booleans(),
    )
    @event(*RECEIVED)
    def top_up(self, amount: int, who: int, means: PaymentMeans, *, is_paid: bool) -> None:
        payment = payments.open_top_up(
            organization=self.tenants[who],
            amount=self.money(self.takeable(amount)),
            wishes=Wishes(means=means),
            at=factories.START,
        )
        if is_paid:
            self.hear(payment, state="succeeded")

    @precondition(lambda self: self.open_payments())
    @rule(data=st.data(), state=st.sampled_from(("succeeded", "succeeded", "canceled")))
    @event(*RECEIVED)
    def hear_of_a_payment(self, data: st.DataObject, state: str) -> None:
        """Let the provider say what became of something that was asked for a while ago."""
        self.hear(self.pick(data, self.open_payments()), state=state)

    @rule(amount=st.integers(1, 20_000), who=WHO)
    @event(*RECEIVED)
    def find_cash(self, amount: int, who: int) -> None:
        """Take what came by bank and belongs to no payment: too late, or too much."""
        payer = Payer.objects.get(organization=self.tenants[who])
        payment = cash.take(
            customer_id=payer.customer_id, available={settings.CURRENCY: amount}, at=AHEAD
        )
        if payment is not None:
            self.hear(payment, state="succeeded")

    @rule(amount=st.integers(1, 5_000), who=WHO, days=st.integers(2, 400))
    @event(EntryKind.PROMOTION)
    def grant(self, amount: int, who: int, days: int) -> None:
        factories.promotion(buyer=self.tenants[who], minor=amount, days=days)

    @rule(days=st.integers(1, 400))
    @event(EntryKind.PROMOTION_EXPIRY)
    def end_promotions(self, days: int) -> None:
        promotions.expire_due(at=factories.START + days * DAY)

    @rule(amount=st.integers(1, 20_000), who=WHO)
    @event(EntryKind.GOODWILL)
    def be_kind(self, amount: int, who: int) -> None:
        self.by_two(
            ApprovalKind.REFUND,
            organization=self.tenants[who],
            subject_id=self.next_id("case"),
            amount=self.money(amount),
        )

    @rule(data=st.data(), who=WHO)
    @event(EntryKind.WITHDRAWAL, *SQUARED, refused=(WithdrawalRefused,))
    def withdraw(self, data: st.DataObject, who: int) -> None:
        """Take something out of a wallet: at once where it goes back the way it came, else by operators."""
        tenant = self.tenants[who]
        row = Withdrawal.objects.visible_to(tenant).waiting().first()
        if row is None:
            held = wallet.balance(organization=tenant).amount_minor
            if not held:
                return
            amount = data.draw(st.integers(1, held))
            row = withdrawals.request(
                organization=tenant, amount=self.money(amount), at=FAR, actor="key_cfo"
            )
            if row.carried_out_at is not None or data.draw(st.booleans()):
                return
        self.by_two(
            ApprovalKind.WITHDRAWAL,
            organization=tenant,
            subject_id=row.pk,
            amount=self.money(row.amount_minor),
        )

    @precondition(lambda self: CardRefund.objects.exists())
    @rule(
        data=st.data(),
        state=st.sampled_from(("pending", "succeeded", "failed", "refused")),
    )
    @event(EntryKind.WITHDRAWAL, EntryKind.REFUND_SENT, EntryKind.REFUND_FAILED)
    def hear_of_a_card_refund(self, data: st.DataObject, state: str) -> None:
        card_refunds.send_due(at=FAR)
        waiting = CardRefund.objects.exclude(status=CardRefundStatus.FAILED)
        self.hear_of_refund_to_card(self.pick(data, self.read(waiting)), state=state)

    def hear_of_refund_to_card(self, row: CardRefund, *, state: str) -> None:
        """Let the provider say what became of a refund; a closed card gives it back days later."""
        made = self.refund_made(row.pk, payment=row.payment, amount=row.amount_minor, state=state)
        intent = self.call(IntentKind.REFUND, row.pk, at=FAR)
        if intent is not None and state == "refused":
            self.refuse(intent, code="charge_already_refunded", at=FAR)
        elif intent is not None:
            self.answer(intent, made, at=FAR)
            self.will_book("refund", made.id, -row.amount_minor)
        elif state != "refused" and row.provider_id:
            card_refunds.apply(refund_id=row.pk, made=made, at=FAR)
        row.refresh_from_db()
        if state == "failed" and row.provider_id and row.status == CardRefundStatus.FAILED:
            self.will_book("refund_failure", made.id, row.amount_minor)

    def takeable(self, amount: int) -> int:
        """Return the next amount that the provider takes."""
        currency = settings.CURRENCY
        least = chargeable.least(currency)
        return chargeable.rounded_up(amount_minor=max(amount, least), currency=currency)

    def open_payments(self) -> list[Payment]:
        return self.read(Payment.objects.filter(status__in=payments.OPEN_STATUSES))

    def hear(self, payment: Payment, *, state: str, at: dt.datetime = factories.START) -> Payment:
        """Let the provider answer what asked for a payment, or say what became of it since; twice."""
        made = self.payment_made(payment, state=state)
        intent = self.call(IntentKind.PAYMENT, payment.pk, at=at)
        amount, currency = payment.amount_minor, payment.currency
        if intent is not None and not chargeable.is_taken(amount_minor=amount, currency=currency):
            self.refuse(intent, code="amount_too_small", at=at)
            return payment
        if intent is not None:
            self.answer(intent, made, at=at)
        payments.apply(payment_id=payment.pk, made=made, at=at)
        payment.refresh_from_db()
        if payment.status == PaymentStatus.SUCCEEDED and state == "succeeded":
            fee = min(payment.amount_minor, 7)
            self.will_book("charge", payment.charge_id, payment.received_minor, fee=fee)
        return payment

    def by_two(
        self,
        kind: ApprovalKind,
        *,
        organization: Organization | None,
        subject_id: str,
        amount: Money,
        at: dt.datetime = FAR,
    ) -> str:
        """Ask for something, and let another person approve it where one is not enough; return the id."""
        asked = approvals.request(
            kind=kind,
            organization=organization,
            subject_id=subject_id,
            amount=amount,
            reason="well founded",
            at=at,
            actor="anna",
        )
        if asked.decided_at is None:
            approvals.approve(approval_id=asked.pk, at=at, actor="bert")
        return asked.pk
