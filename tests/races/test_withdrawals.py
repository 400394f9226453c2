"""Money leaves a wallet in several ways at once: no cent of it twice, and whoever comes late hears why.

The twins leave a lock out and show that the race is real.
"""

from collections.abc import Callable

import pytest
from django.db import OperationalError

from billing import (
    approvals,
    books,
    invoice_payments,
    ledger,
    receivables,
    wallet,
    withdrawals,
)
from billing import provider as doors
from billing.models import CardRefund, Payment, Withdrawal
from billing.payments import learning
from billing.states import ApprovalKind
from marketplace.core.money import Money
from marketplace.models import Organization
from tests.billing import debtors, factories
from tests.billing.bookings import purchase
from tests.billing.card_market import CARD
from tests.billing.test_withdrawals import topped_up
from tests.races.interleaving import before, heard
from tests.races.test_last_gpus import at_once
from tests.scheduler.factories import NOW, make_pool, make_quote

RIVALS = 8
SUM = 5_000

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


@pytest.fixture
def tenant() -> Organization:
    return factories.tenant()


def withdrawing(tenant: Organization, minor: int) -> Callable[[], str]:
    return heard(
        lambda: withdrawals.request(
            organization=tenant, amount=Money(minor, "usd"), at=NOW, actor="key_cfo"
        )
    )


def held(tenant: Organization) -> int:
    return wallet.balance(organization=tenant).amount_minor


def is_sound() -> bool:
    return books.check(at=NOW).ok


class TestTwoWithdrawals:
    def test_take_what_is_there_and_no_more(self, tenant: Organization) -> None:
        topped_up(SUM, by=tenant)
        covered = 3

        outcomes = at_once([withdrawing(tenant, SUM // covered)] * RIVALS)

        assert outcomes == {"done": covered, "withdrawal_refused": RIVALS - covered}
        assert held(tenant) == SUM % covered
        assert sum(CardRefund.objects.values_list("amount_minor", flat=True)) == SUM - held(tenant)
        payment = Payment.objects.get()
        assert payment.refunded_minor == SUM - held(tenant)

    def test_that_need_operators_wait_one_at_a_time(self, tenant: Organization) -> None:
        factories.fund(tenant, minor=SUM)  # by bank: no card that it could go back to

        outcomes = at_once([withdrawing(tenant, 100)] * RIVALS)

        assert outcomes == {"done": 1, "state_conflict": RIVALS - 1}
        assert Withdrawal.objects.count() == 1

    def test_that_operators_let_happen_twice_happen_once(self, tenant: Organization) -> None:
        factories.fund(tenant, minor=SUM)
        withdrawing(tenant, SUM)()
        asked = approvals.request(
            kind=ApprovalKind.WITHDRAWAL,
            organization=tenant,
            subject_id=Withdrawal.objects.get().pk,
            amount=Money(SUM, "usd"),
            reason="wired",
            at=NOW,
            actor="anna",
        )
        approve = heard(lambda: approvals.approve(approval_id=asked.pk, at=NOW, actor="bert"))

        assert at_once([approve] * RIVALS) == {"done": 1, "state_conflict": RIVALS - 1}
        assert held(tenant) == 0
        assert is_sound()

    def test_without_the_lock_the_limit_of_a_day_is_passed(
        self, tenant: Organization, settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each has looked before the other had withdrawn: both go without anybody's look."""
        settings.WITHDRAWAL_ALONE_MINOR_MAX = 1_000
        for _ in range(2):
            topped_up(SUM, by=tenant)
        monkeypatch.setattr(receivables, "lock", lambda organization: organization)
        monkeypatch.setattr(wallet, "locked_balance", wallet.balance)
        other = before(monkeypatch, withdrawals, "_carry_out", withdrawing(tenant, 1_000))

        assert withdrawing(tenant, 1_000)() == "done"
        assert other.outcome() == "done"
        alone = Withdrawal.objects.filter(approval=None, carried_out_at__isnull=False)
        assert sum(alone.values_list("amount_minor", flat=True)) > 1_000


class TestAWithdrawalAndAPurchase:
    def test_spend_the_wallet_once(self, tenant: Organization) -> None:
        make_pool()
        quote = make_quote(tenant=tenant)
        topped_up(quote.total_minor, by=tenant)
        buy = heard(lambda: purchase(quote))

        outcomes = at_once([buy, withdrawing(tenant, quote.total_minor)])

        assert outcomes in (
            {"done": 1, "withdrawal_refused": 1},
            {"done": 1, "payment_required": 1},
        )
        assert held(tenant) == 0

    def test_tell_who_comes_late_in_its_own_words(
        self, tenant: Organization, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_pool()
        quote = make_quote(tenant=tenant)
        topped_up(quote.total_minor, by=tenant)
        late = before(monkeypatch, ledger, "post", withdrawing(tenant, quote.total_minor))

        assert heard(lambda: purchase(quote))() == "done"
        assert late.outcome() == "withdrawal_refused"
        assert not Withdrawal.objects.exists()

    def test_without_the_lock_it_hears_of_a_price_that_it_never_asked_for(
        self, tenant: Organization, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_pool()
        quote = make_quote(tenant=tenant)
        topped_up(quote.total_minor, by=tenant)
        monkeypatch.setattr(wallet, "locked_balance", wallet.balance)
        late = before(monkeypatch, ledger, "post", withdrawing(tenant, quote.total_minor))

        assert heard(lambda: purchase(quote))() == "done"
        assert late.outcome() == "payment_required"


class TestAWithdrawalAndAPaymentOfAnInvoice:
    def paying(self, provider, clock) -> tuple[Organization, Callable[[], str]]:
        """Return a tenant with money in its wallet, and what hears that its card has paid an invoice."""
        make_pool()
        tenant = debtors.a_debtor()
        sale = debtors.sale_of(debtors.buy(make_quote(tenant=tenant, gpus=2)))
        topped_up(SUM, by=tenant)
        payment = invoice_payments.through_provider(
            sale=sale, amount_minor=sale.amount_minor, wishes=CARD, at=clock()
        )
        doors.drive_payment(payment_id=payment.pk, at=clock())
        payment.refresh_from_db()
        provider.control(
            "/_control/confirm",
            {"id": payment.provider_id, "payment_method": "pm_card_bypassPending"},
        )
        return tenant, heard(
            lambda: doors.read_payment(
                payment_id=payment.pk, object_id=payment.provider_id, at=clock()
            )
        )

    def test_wait_for_one_another_in_one_order(self, provider, clock, monkeypatch) -> None:
        tenant, hear = self.paying(provider, clock)
        rival = before(monkeypatch, receivables, "pay_from_wallet", withdrawing(tenant, SUM))

        assert hear() == "done"
        assert rival.outcome() == "done"
        assert held(tenant) == 0
        assert CardRefund.objects.get().amount_minor == SUM

    def test_without_that_order_one_is_broken_off(self, provider, clock, monkeypatch) -> None:
        tenant, hear = self.paying(provider, clock)
        monkeypatch.setattr(learning, "_lock_what_is_paid", lambda _payment: None)
        rival = before(monkeypatch, receivables, "pay_from_wallet", withdrawing(tenant, SUM))

        def both() -> tuple[str, str]:
            return hear(), rival.outcome()

        with pytest.raises(OperationalError, match="deadlock"):
            both()
