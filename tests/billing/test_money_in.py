"""Payments by card and by invoice, the provider's books, promotions, and what is never paid."""

import datetime as dt
from typing import Any

import pytest

from billing import (
    accounts,
    books,
    ledger,
    parking,
    promotions,
    provider_money,
    purchases,
    receivables,
    settlements,
    wallet,
)
from billing.models import Entry
from billing.states import GPU_SECONDS, AccountKind, EntryKind
from marketplace.core.money import Money
from scheduler.models import Reservation
from scheduler.states import PaymentMethod, ReservationStatus
from tests.billing import factories
from tests.billing.debtors import grant
from tests.billing.readings import balance

pytestmark = pytest.mark.django_db

AT = factories.START
LATER = AT + dt.timedelta(days=2)


def unpaid(
    *, method: PaymentMethod = PaymentMethod.WALLET, funds_minor: int = 0, **changes: Any
) -> Reservation:
    row = factories.reservation(
        buyer=factories.tenant(funds_minor=funds_minor),
        paid=False,
        status=changes.pop("status", ReservationStatus.PAYMENT_PENDING),
        **changes,
    )
    Reservation.objects.filter(pk=row.pk).update(payment_method=method)
    return Reservation.objects.get(pk=row.pk)


class TestCard:
    def test_buys_with_what_the_provider_took_and_clears_with_its_books(self):
        row = unpaid(method=PaymentMethod.CARD, status=ReservationStatus.SCHEDULED)
        factories.paid_by_card(row)
        assert balance(AccountKind.PSP_CLEARING, "pi_1") == 471
        price = Money(471, "usd")
        for _ in range(2):
            provider_money.match(
                object_id="pi_1", transaction_id="txn_1", amount=price, fee_minor=44, at=AT
            )
        provider_money.make_available(transaction_id="txn_1", amount=Money(427, "usd"), at=LATER)
        assert balance(AccountKind.PSP_CLEARING, "pi_1") == 0
        assert (balance(AccountKind.PSP_FEES), balance(AccountKind.STRIPE_PENDING)) == (44, 0)
        assert balance(AccountKind.STRIPE_AVAILABLE) == 427
        assert books.check(at=LATER).ok

    def test_money_of_nobody_is_put_aside_and_found_after_a_day(self):
        ledger.post(
            idempotency_key="bt:txn_3",
            kind=EntryKind.SUSPENSE,
            subject_id="txn_3",
            effective_at=AT,
            legs=ledger.transfer(
                debited=ledger.AccountRef(AccountKind.STRIPE_AVAILABLE, "usd"),
                credited=ledger.AccountRef(AccountKind.SUSPENSE, "usd"),
                amount=5,
            ),
        )
        recorded_at = Entry.objects.get().recorded_at
        assert books.check(at=recorded_at + dt.timedelta(hours=23)).ok
        report = books.check(at=recorded_at + dt.timedelta(hours=25))
        assert [c.name for c in report.checks if not c.ok] == ["nothing_stays_in_suspense"]


class TestInvoice:
    def bought(self, *, status: ReservationStatus = ReservationStatus.SCHEDULED) -> Reservation:
        row = unpaid(method=PaymentMethod.INVOICE, status=status)
        self.invoice_id = factories.bought_on_account(row)
        return row

    def pay(self, row: Reservation, amount: int, *, payment: str = "pay_1") -> None:
        receivables.pay(
            organization=row.organization,
            invoice_id=self.invoice_id,
            payment_id=payment,
            amount_minor=amount,
            currency="usd",
            at=AT,
            is_by_bank=True,
        )

    def test_is_receivable_until_it_is_paid(self):
        row = self.bought()
        assert balance(AccountKind.RECEIVABLE, self.invoice_id) == 471
        for _ in range(2):
            self.pay(row, 400)
        self.pay(row, 100, payment="pay_2")
        assert balance(AccountKind.RECEIVABLE, self.invoice_id) == 0
        # What was paid too much is the tenant's.
        assert wallet.balance(organization=row.organization) == Money(29, "usd")
        assert books.check(at=LATER).ok

    def test_of_a_reservation_that_never_started_can_be_taken_back(self):
        grant(factories.tenant(), at=AT)
        row = self.bought()
        factories.given_back(row)
        assert balance(AccountKind.RECEIVABLE, self.invoice_id) == 0
        assert balance(AccountKind.U_RELEASED, row.id, currency=GPU_SECONDS) == 7200
        assert books.check(at=LATER).ok

    def test_that_nobody_pays_is_written_off_as_far_as_it_is_open(self):
        row = self.bought()
        self.pay(row, 71)

        def write_off(amount: int) -> None:
            receivables.write_off(
                organization=row.organization,
                invoice_id=self.invoice_id,
                amount_minor=amount,
                currency="usd",
                decision_id=f"apr_{amount}",
                at=AT,
            )

        with pytest.raises(receivables.NothingReceivable):
            write_off(401)
        write_off(400)
        write_off(400)
        assert balance(AccountKind.BAD_DEBT) == 400
        assert books.check(at=LATER).ok


class TestPromotion:
    def test_is_spent_before_the_wallet_and_expires_with_what_is_left(self):
        row = unpaid(funds_minor=100, status=ReservationStatus.SCHEDULED, total_minor=471)
        buyer = row.organization
        made = factories.promotion(buyer=buyer, minor=500, days=2)
        spent = promotions.spend(reservation=row, amount_minor=471, key=row.pk, at=AT)
        assert spent == 471
        purchases.post(reservation=row, at=AT)
        assert wallet.balance(organization=buyer) == Money(100, "usd")
        assert not promotions.expire(promotion_id=made.pk, at=AT)
        assert promotions.expire_due(at=LATER) == 1
        assert (balance(AccountKind.BREAKAGE), balance(AccountKind.PROMO_COST)) == (29, 500)
        assert promotions.expire_due(at=LATER) == 0
        assert books.check(at=LATER).ok


class TestOtherCurrencies:
    @pytest.mark.parametrize(
        ("currency", "price", "earned", "fee", "refunded"),
        [("jpy", 625, 312, 47, 313), ("kwd", 4706, 2353, 353, 2353), ("usd", 471, 236, 35, 235)],
    )
    def test_settle_to_their_last_unit(self, currency, price, earned, fee, refunded):
        row = unpaid(total_minor=price, status=ReservationStatus.COMPLETED)
        for model in (type(row), type(row.quote)):
            model.objects.filter(organization=row.organization).update(currency=currency)
        lots = [lot | {"floors": [[*lot["floors"][0][:2], 1]]} for lot in row.lots]
        type(row).objects.filter(pk=row.pk).update(lots=lots)
        row = Reservation.objects.get(pk=row.pk)
        ledger.post(
            idempotency_key="fill",
            kind=ledger.EntryKind.DEPOSIT,
            subject_id=row.organization_id,
            effective_at=AT,
            legs=ledger.transfer(
                debited=ledger.AccountRef(AccountKind.BANK, currency),
                credited=accounts.wallet(organization=row.organization, currency=currency),
                amount=price,
            ),
        )
        purchases.post(reservation=row, at=AT)
        lease = factories.lease(of=row, handed_over_after_seconds=1800)
        result = settlements.settle(lease_id=lease.id, at=LATER)
        assert (result.currency, result.bought_minor) == (currency, price)
        assert (result.earned_minor, result.fee_minor, result.refunded_minor) == (
            earned,
            fee,
            refunded,
        )
        assert books.check(at=LATER).ok


class TestParked:
    def test_money_is_not_spent(self):
        row = unpaid(funds_minor=471)
        parking.park(breaches={row.organization_id: "a breach"}, at=AT)
        with pytest.raises(parking.MoneyParked):
            purchases.post(reservation=row, at=AT)
        assert wallet.balance(organization=row.organization) == Money(471, "usd")
