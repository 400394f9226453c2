"""What was written off, and comes after all: by a refund, a credit, or a payment that nobody expected."""

import datetime as dt

import pytest
from django.conf import LazySettings

from billing import bad_debts, books, parking, receivables, settlements, tax
from billing.models import CreditSale, Entry, TaxLine
from billing.states import AccountKind, EntryKind
from marketplace.core.money import Money, share_of
from marketplace.models import Event
from scheduler.models import Reservation
from scheduler.states import PaymentMethod, ReservationStatus
from tests.billing import debtors, factories
from tests.billing.bookings import extend, leave
from tests.billing.debtors import pay_by_bank
from tests.billing.readings import balance, purse
from tests.scheduler import factories as market
from tests.scheduler.factories import NOW

pytestmark = pytest.mark.django_db

AT = factories.START + dt.timedelta(hours=2)


def write_off(sale: CreditSale, amount: int, *, decision: str = "apv_1") -> None:
    receivables.write_off(
        organization=sale.organization,
        invoice_id=sale.invoice_id,
        amount_minor=amount,
        currency="usd",
        decision_id=decision,
        at=NOW,
    )


def given_up(sale: CreditSale) -> int:
    return bad_debts.given_up_minor(
        owed=receivables.account(
            organization=sale.organization, invoice_id=sale.invoice_id, currency="usd"
        )
    )


def sound(*, at: dt.datetime = NOW) -> None:
    report = books.check(at=at)
    assert report.ok, [check for check in report.checks if not check.ok]


@pytest.fixture
def sale() -> CreditSale:
    """Return a sale on account that begins in two days, of 471 to 1000 minor units."""
    market.make_pool()
    quote = market.make_quote(tenant=debtors.a_debtor(), gpus=2, window=market.window_in(48))
    return debtors.sale_of(debtors.buy(quote))


class TestRefund:
    def test_of_what_was_written_off_makes_the_loss_smaller(self, sale):
        write_off(sale, sale.amount_minor)
        change = leave(sale.reservation)
        assert change.refunded_minor > 0
        assert purse(sale.organization) == 0
        assert balance(AccountKind.REFUND_PAYABLE, sale.reservation_id) == 0
        assert balance(AccountKind.BAD_DEBT) == given_up(sale) == change.fee_minor
        sound()

    def test_gives_to_the_wallet_only_what_was_paid(self, sale):
        pay_by_bank(sale, sale.amount_minor - 100)
        write_off(sale, 100)
        change = leave(sale.reservation)
        assert change.refunded_minor > 100
        assert balance(AccountKind.BAD_DEBT) == given_up(sale) == 0
        assert purse(sale.organization) == change.refunded_minor - 100
        sound()

    def test_pays_what_is_still_owed_first(self, sale):
        write_off(sale, sale.amount_minor - 10)
        change = leave(sale.reservation)
        assert debtors.owed(sale) == 0
        assert balance(AccountKind.BAD_DEBT) == sale.amount_minor - change.refunded_minor
        assert purse(sale.organization) == 0
        sound()

    def test_of_an_invoice_pays_the_loss_of_another_one_of_the_same_reservation(self, sale):
        pay_by_bank(sale, sale.amount_minor)
        added = extend(sale.reservation, payment_method="invoice")
        second = CreditSale.objects.get(change=added)
        pay_by_bank(second, second.amount_minor - 100)
        write_off(second, 100)
        change = leave(Reservation.objects.get(pk=sale.reservation_id))
        assert change.refunded_minor > 100
        assert (given_up(second), balance(AccountKind.BAD_DEBT)) == (0, 0)
        assert purse(sale.organization) == change.refunded_minor - 100
        sound()


class TestPayment:
    def test_by_bank_after_all_makes_the_loss_smaller(self, sale):
        write_off(sale, sale.amount_minor)
        pay_by_bank(sale, sale.amount_minor - 5)
        assert balance(AccountKind.BAD_DEBT) == given_up(sale) == 5
        assert purse(sale.organization) == 0
        pay_by_bank(sale, 25)
        assert (balance(AccountKind.BAD_DEBT), purse(sale.organization)) == (0, 20)
        sound()

    def test_out_of_the_wallet_makes_the_loss_smaller_once(self, sale):
        write_off(sale, sale.amount_minor)
        factories.fund(sale.organization, minor=50)
        for _ in range(2):
            receivables.pay_from_wallet(
                organization=sale.organization,
                invoice_id=sale.invoice_id,
                payment_id="pay_1",
                amount=Money(20, "usd"),
                at=NOW,
            )
        assert given_up(sale) == balance(AccountKind.BAD_DEBT) == sale.amount_minor - 20
        assert purse(sale.organization) == 30
        sound()

    def test_that_pays_what_is_open_takes_nothing_else_of_the_wallet_for_the_loss(self, sale):
        write_off(sale, sale.amount_minor - 100)
        factories.fund(sale.organization, minor=500)
        pay_by_bank(sale, 130)
        assert (debtors.owed(sale), given_up(sale)) == (0, sale.amount_minor - 130)
        assert purse(sale.organization) == 500
        assert Event.objects.filter(kind="invoice.paid", object_id=sale.invoice_id).count() == 1
        sound()

    def test_out_of_the_wallet_takes_no_more_than_is_in_it(self, sale):
        write_off(sale, sale.amount_minor)
        factories.fund(sale.organization, minor=10)
        receivables.pay_from_wallet(
            organization=sale.organization,
            invoice_id=sale.invoice_id,
            payment_id="pay_1",
            amount=Money(20, "usd"),
            at=NOW,
        )
        assert (purse(sale.organization), given_up(sale)) == (0, sale.amount_minor - 10)
        sound()

    def test_while_the_money_is_parked_waits_in_the_wallet(self, sale):
        write_off(sale, sale.amount_minor)
        parking.park(breaches={sale.organization_id: "why"}, at=NOW)
        pay_by_bank(sale, 5)
        assert (purse(sale.organization), given_up(sale)) == (5, sale.amount_minor)
        sound()


def ran(*, delivered_seconds: int) -> CreditSale:
    """Return the written-off sale of a reservation of 471 of which so much of an hour is delivered."""
    tenant = debtors.grant(factories.tenant())
    row = factories.reservation(buyer=tenant, paid=False)
    Reservation.objects.filter(pk=row.pk).update(payment_method=PaymentMethod.INVOICE)
    row.refresh_from_db()
    factories.bought_on_account(row)
    sale = CreditSale.objects.get()
    write_off(sale, sale.amount_minor)
    factories.lease(of=row, returned_after_seconds=delivered_seconds)
    return sale


class TestLease:
    def test_that_was_not_delivered_brings_nothing_to_who_never_paid(self):
        sale = ran(delivered_seconds=1800)
        lease = sale.reservation.leases.get()
        made = settlements.settle(lease_id=lease.pk, at=AT)
        assert made is not None
        assert (made.refunded_minor > 0, made.credit_minor > 0) == (True, True)
        Reservation.objects.filter(pk=sale.reservation_id).update(
            status=ReservationStatus.COMPLETED
        )
        assert settlements.refund_rest(reservation_id=sale.reservation_id, at=AT) is False
        # The credit was set against the loss at once, the price when refunds are opened.
        assert balance(AccountKind.BAD_DEBT) == sale.amount_minor - made.credit_minor
        receivables.offset(reservation=sale.reservation, at=AT)
        assert purse(sale.organization) == 0
        left = sale.amount_minor - made.refunded_minor - made.credit_minor
        assert balance(AccountKind.BAD_DEBT) == given_up(sale) == left
        sound(at=AT)

    def test_of_what_never_began_is_no_loss(self):
        tenant = debtors.grant(factories.tenant())
        row = factories.reservation(buyer=tenant, paid=False, status=ReservationStatus.CANCELLED)
        factories.bought_on_account(row)
        sale = CreditSale.objects.get()
        pay_by_bank(sale, 71)
        write_off(sale, 390)
        assert settlements.refund_rest(reservation_id=row.pk, at=AT)
        receivables.offset(reservation=row, at=AT)
        assert (balance(AccountKind.BAD_DEBT), purse(tenant)) == (0, 71)
        sound(at=AT)


class TestRelief:
    """The tax in what is recovered is owed to its office again, once."""

    @pytest.fixture
    def taxed(self, settings: LazySettings) -> CreditSale:
        settings.TAX_RELIEF_ON_BAD_DEBT = True
        tenant = debtors.grant(factories.taxed(buyer=factories.tenant()))
        row = factories.reservation(buyer=tenant, paid=False)
        Reservation.objects.filter(pk=row.pk).update(payment_method=PaymentMethod.INVOICE)
        row.refresh_from_db()
        factories.bought_on_account(row)
        return CreditSale.objects.get()  # of 471 and 89 of tax

    def settled(self, sale: CreditSale, *, delivered_seconds: int) -> None:
        row = sale.reservation
        lease = factories.lease(of=row, returned_after_seconds=delivered_seconds)
        settlements.settle(lease_id=lease.pk, at=AT)
        Reservation.objects.filter(pk=row.pk).update(status=ReservationStatus.COMPLETED)
        receivables.offset(reservation=row, at=AT)

    @pytest.mark.parametrize("delivered_seconds", [0, 1800, 3599])
    @pytest.mark.parametrize("lost", [560, 300, 100])
    def test_is_that_of_what_is_still_given_up(self, taxed, lost, delivered_seconds):
        if lost < 560:
            pay_by_bank(taxed, 560 - lost)
        write_off(taxed, lost)
        self.settled(taxed, delivered_seconds=delivered_seconds)
        terms = tax.terms_of(reservation=taxed.reservation)
        kept = tax.net_kept(reservation=taxed.reservation)
        still = given_up(taxed)
        assert still <= max(tax.gross_minor(net_minor=kept, terms=terms) - (560 - lost), 0)
        in_it = share_of(total_minor=89, part=still, whole=560)
        assert self.relief() == min(tax.tax_minor(net_minor=kept, terms=terms), in_it)
        assert balance(AccountKind.BAD_DEBT) == still - self.relief()
        sound(at=AT)

    def test_is_owed_again_when_all_was_paid(self, taxed):
        write_off(taxed, 560)
        assert (self.relief(), balance(AccountKind.TAX_PAYABLE, "DE")) == (89, 0)
        pay_by_bank(taxed, 560)
        assert (self.relief(), balance(AccountKind.TAX_PAYABLE, "DE")) == (0, 89)
        assert balance(AccountKind.BAD_DEBT) == 0
        sound(at=AT)

    def test_comes_back_in_parts_without_a_cent_left(self, taxed):
        write_off(taxed, 560)
        for _ in range(7):
            pay_by_bank(taxed, 80)
            assert balance(AccountKind.BAD_DEBT) == given_up(taxed) - self.relief()
        assert (self.relief(), balance(AccountKind.BAD_DEBT)) == (0, 0)
        assert balance(AccountKind.TAX_PAYABLE, "DE") == 89
        assert Entry.objects.filter(kind=EntryKind.RELIEF_WITHDRAWN).count() == 7
        sound(at=AT)

    def relief(self) -> int:
        lines = TaxLine.objects.filter(is_relief=True)
        return sum(line.tax_refunded_minor - line.tax_charged_minor for line in lines)
