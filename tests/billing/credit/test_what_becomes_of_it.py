"""What was bought on account is changed, left, delivered and taxed: what is owed follows."""

import pytest

from billing import bills, credit, ledger, refunds, settlements, tax, wallet
from billing.models import CreditSale, Entry, Refund
from billing.payment_methods import PaymentMethodUnavailable
from billing.states import AccountKind, EntryKind
from marketplace.core.money import Money
from scheduler import leases, reservations
from scheduler.models import Change, Lease, Quote, Reservation
from tests.billing import factories as books_factories
from tests.billing.bookings import LONG_AFTER, extend, leave, rebook
from tests.billing.debtors import a_debtor, buy, grant, owed, pay_by_bank, sale_of
from tests.billing.readings import balance, breaches, purse
from tests.scheduler import factories
from tests.scheduler.factories import NOW, make_pool, make_quote, seconds, window_in

pytestmark = pytest.mark.django_db


class TestChange:
    def bought(self, *, limit: int = 1_000_000, starts: float = 48) -> Reservation:
        make_pool()
        return buy(make_quote(tenant=a_debtor(limit=limit), window=window_in(starts)))

    def test_that_adds_hours_has_an_invoice_of_its_own(self):
        reservation = self.bought()
        change = extend(reservation, payment_method="invoice")
        sale = CreditSale.objects.get(change=change)
        assert owed(sale) == sale.amount_minor == change.charged_minor > 0
        assert owed(sale_of(reservation)) == sale_of(reservation).amount_minor
        reservation.refresh_from_db()
        assert balance(AccountKind.DEFERRED, reservation.pk) == reservation.total_minor
        bill = bills.reservation_bill(reservation=reservation, at=NOW)
        assert bill.bought.amount_minor == reservation.total_minor
        assert breaches(at=NOW) == []

    def test_beyond_the_limit_leaves_the_old_end(self):
        reservation = self.bought()
        grant(reservation.organization, limit=sale_of(reservation).amount_minor)
        with pytest.raises(credit.CreditLimitExceeded):
            extend(reservation, payment_method="invoice")
        before = reservation.ends_at
        reservation.refresh_from_db()
        assert reservation.ends_at == before
        assert not Change.objects.exists()

    def test_by_card_is_still_not_offered(self):
        with pytest.raises(PaymentMethodUnavailable, match="on account"):
            extend(self.bought(), payment_method="card")

    def test_to_a_longer_window_is_owed_and_to_a_shorter_one_owed_no_more(self):
        reservation = self.bought()
        longer = rebook(reservation, window=window_in(48, length=5), payment_method="invoice")
        added = CreditSale.objects.get(change=longer)
        assert owed(added) == longer.charged_minor > 0
        reservation.refresh_from_db()
        owed_before = owed(added) + owed(sale_of(reservation))
        shorter = rebook(reservation, window=window_in(48, length=1), payment_method="invoice")
        assert shorter.refunded_minor > 0
        assert owed(added) + owed(sale_of(reservation)) == owed_before - shorter.refunded_minor
        assert purse(reservation.organization) == 0
        assert breaches(at=NOW) == []

    def test_of_what_the_wallet_paid_can_be_bought_on_account(self):
        make_pool()
        tenant = a_debtor()
        wallet.record_deposit(
            organization=tenant,
            amount=Money(1_000_000, "usd"),
            idempotency_key="first",
            at=NOW,
            actor="test",
        )
        reservation = buy(
            make_quote(tenant=tenant, window=window_in(24 * 40)), payment_method="wallet"
        )
        before = purse(tenant)
        change = extend(reservation, payment_method="invoice")
        reservation.refresh_from_db()
        left = leave(reservation)
        # What is owed is owed no more; only what was paid, less the fee, comes back.
        assert owed(CreditSale.objects.get(change=change)) == 0
        assert purse(tenant) == before + left.refunded_minor - change.charged_minor
        assert breaches(at=NOW) == []


class TestCancellation:
    def test_reduces_what_is_owed_to_the_fee(self):
        make_pool()
        tenant = a_debtor()
        reservation = buy(make_quote(tenant=tenant, gpus=8, window=window_in(48)))
        change = leave(reservation)
        assert change.fee_minor > 0
        assert owed(sale_of(reservation)) == change.fee_minor
        assert purse(tenant) == 0
        assert balance(AccountKind.REFUND_PAYABLE, reservation.pk) == 0
        assert breaches(at=NOW + LONG_AFTER) == []

    def test_of_what_was_paid_in_part_gives_back_only_what_was_paid(self):
        make_pool()
        tenant = a_debtor()
        reservation = buy(make_quote(tenant=tenant, gpus=8, window=window_in(48)))
        pay_by_bank(sale_of(reservation), reservation.total_minor - 10)
        change = leave(reservation)
        assert owed(sale_of(reservation)) == 0
        assert purse(tenant) == change.refunded_minor - 10
        assert breaches(at=NOW + LONG_AFTER) == []

    def test_of_what_was_paid_in_full_goes_to_the_wallet(self):
        make_pool()
        tenant = a_debtor()
        reservation = buy(make_quote(tenant=tenant, gpus=8, window=window_in(48)))
        pay_by_bank(sale_of(reservation), reservation.total_minor)
        change = leave(reservation)
        assert purse(tenant) == change.refunded_minor
        assert breaches(at=NOW + LONG_AFTER) == []


class TestSettlement:
    def test_of_what_was_not_delivered_is_owed_no_more(self):
        make_pool()
        tenant = a_debtor()
        reservation = buy(make_quote(tenant=tenant))
        reservations.start_due(at=reservation.ends_at)
        settlements.settle_ended(at=reservation.ends_at)
        assert balance(AccountKind.REFUND_PAYABLE, reservation.pk) == reservation.total_minor
        for _ in range(2):
            refunds.open_due(at=reservation.ends_at)
        assert owed(sale_of(reservation)) == 0
        assert not Refund.objects.exists()
        # The credit for what was not delivered is the tenant's to spend.
        assert purse(tenant) == round(reservation.total_minor / 10)
        assert breaches(at=reservation.ends_at + LONG_AFTER) == []

    def test_of_what_was_delivered_leaves_it_owed(self):
        make_pool()
        reservation = buy(make_quote(tenant=a_debtor()))
        reservations.start_due(at=reservation.starts_at)
        lease = Lease.objects.get()
        factories.say_handed_over(lease)
        leases.advance(at=reservation.starts_at + seconds(5))
        leases.advance(at=reservation.ends_at)
        factories.say_returned(lease)
        closed_at = reservation.ends_at + seconds(5)
        leases.advance(at=closed_at)
        reservations.finish_due(at=closed_at)
        settlements.settle_ended(at=closed_at + LONG_AFTER)
        refunds.open_due(at=closed_at + LONG_AFTER)
        refunded = reservation.total_minor - owed(sale_of(reservation))
        assert 0 <= refunded < reservation.total_minor // 100
        pay_by_bank(sale_of(reservation), owed(sale_of(reservation)))
        assert breaches(at=closed_at + LONG_AFTER + LONG_AFTER) == []


class TestTax:
    def test_is_owed_with_the_price_and_counts_against_the_limit(self):
        make_pool()
        tenant = factories.make_organization()
        books_factories.taxed(buyer=tenant)
        quote = make_quote(tenant=tenant)
        gross = tax.gross_minor(
            net_minor=quote.total_minor, terms=tax.current_terms(organization=tenant, at=NOW)
        )
        assert gross > quote.total_minor
        grant(tenant, limit=gross - 1)
        with pytest.raises(credit.CreditLimitExceeded):
            buy(quote)
        grant(tenant, limit=gross)
        reservation = buy(quote)
        sale = sale_of(reservation)
        assert (sale.amount_minor, owed(sale)) == (gross, gross)
        leave(reservation)
        assert breaches(at=NOW + LONG_AFTER) == []


class TestOtherCurrencies:
    @pytest.mark.parametrize(("currency", "price"), [("jpy", 625), ("kwd", 4706)])
    def test_are_owed_to_their_last_unit(self, settings, currency, price):
        settings.CURRENCY = currency
        tenant = books_factories.tenant()
        grant(tenant, limit=price, currency=currency)
        row = books_factories.reservation(
            buyer=tenant, paid=False, total_minor=price, status="scheduled"
        )
        for model in (Reservation, Quote):
            model.objects.filter(organization=tenant).update(currency=currency)
        Reservation.objects.update(payment_method="invoice")
        row = Reservation.objects.get(pk=row.pk)
        terms = credit.require(organization=tenant, amount=Money(price, currency), at=NOW)
        sale = credit.buy(terms=terms, reservation=row, at=NOW)
        assert (sale.amount_minor, owed(sale)) == (price, price)
        with pytest.raises(credit.CreditLimitExceeded) as caught:
            credit.require(organization=tenant, amount=Money(1, currency), at=NOW)
        assert caught.value.extra["missing"] == {"amount_minor": 1, "currency": currency}
        pay_by_bank(sale, price + 5)
        assert (
            ledger.kept_balance(account=wallet.account(organization=tenant, currency=currency)) == 5
        )
        assert breaches(at=NOW) == []

    def test_have_limits_of_their_own(self):
        tenant = a_debtor()
        with pytest.raises(credit.CreditNotGranted):
            credit.require(organization=tenant, amount=Money(1, "jpy"), at=NOW)


def test_what_is_given_back_is_posted_once_per_occasion():
    make_pool()
    reservation = buy(make_quote(tenant=a_debtor(), gpus=8, window=window_in(48)))
    leave(reservation)
    refunds.open_for(reservation_id=reservation.pk, at=NOW)
    assert Entry.objects.filter(kind=EntryKind.OFFSET).count() == 1
