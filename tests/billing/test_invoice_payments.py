"""What is owed on an invoice gets paid: once, as far as it is open, and the rest is the tenant's."""

import threading

import pytest
from django.db import connections

from billing import (
    books,
    chargeable,
    credit,
    invoice_payments,
    ledger,
    parking,
    payments,
    receivables,
    wallet,
)
from billing import provider as doors
from billing.models import CreditSale, Payment
from billing.payments import Wishes
from billing.provider_states import IntentKind
from billing.states import AccountKind
from marketplace.core.errors import InvalidValue, NotFound
from marketplace.core.money import Money
from marketplace.models import AuditEvent, Event, Organization
from tests.billing.card_market import CARD, SAVED
from tests.billing.crash_case import Case
from tests.billing.debtors import a_debtor, buy, owed, sale_of
from tests.billing.dying import STEPS, dies
from tests.billing.readings import balance, purse
from tests.scheduler import factories
from tests.scheduler.factories import NOW, make_pool, make_quote

pytestmark = pytest.mark.django_db


def a_sale(*, tenant: Organization | None = None, gpus: int = 2) -> CreditSale:
    make_pool()
    return sale_of(buy(make_quote(tenant=tenant or a_debtor(), gpus=gpus)))


def fund(organization: Organization, amount: int) -> None:
    wallet.record_deposit(
        organization=organization,
        amount=Money(amount, "usd"),
        idempotency_key=f"{amount}",
        at=NOW,
        actor="test",
    )


def is_sound() -> bool:
    return books.check(at=NOW).ok


class TestFromTheWallet:
    def test_pays_all_that_is_open_and_is_told_once(self):
        sale = a_sale()
        fund(sale.organization, sale.amount_minor + 5)
        _, paid = invoice_payments.from_wallet(sale=sale, amount_minor=None, at=NOW)
        assert (paid, owed(sale), purse(sale.organization)) == (sale.amount_minor, 0, 5)
        assert Event.objects.filter(kind="invoice.paid", object_id=sale.invoice_id).count() == 1
        assert is_sound()

    def test_pays_in_parts(self):
        sale = a_sale()
        fund(sale.organization, sale.amount_minor)
        for _ in range(2):
            invoice_payments.from_wallet(sale=sale, amount_minor=100, at=NOW)
        assert owed(sale) == sale.amount_minor - 200
        assert not Event.objects.filter(kind="invoice.paid").exists()

    def test_gives_room_under_the_limit(self):
        sale = a_sale(tenant=a_debtor(limit=10_000))
        tenant, all_of_it = sale.organization, Money(10_000, "usd")
        fund(tenant, sale.amount_minor)
        with pytest.raises(credit.CreditLimitExceeded):
            credit.require(organization=tenant, amount=all_of_it, at=NOW)
        invoice_payments.from_wallet(sale=sale, amount_minor=None, at=NOW)
        assert credit.require(organization=tenant, amount=all_of_it, at=NOW)

    def test_takes_nothing_from_a_wallet_that_is_short(self):
        sale = a_sale()
        fund(sale.organization, 1)
        with pytest.raises(ledger.InsufficientFunds) as caught:
            invoice_payments.from_wallet(sale=sale, amount_minor=None, at=NOW)
        assert caught.value.extra["missing"] == {
            "amount_minor": sale.amount_minor - 1,
            "currency": "usd",
        }
        assert (owed(sale), purse(sale.organization)) == (sale.amount_minor, 1)

    @pytest.mark.parametrize("excess", [1, 10_000])
    def test_pays_no_more_than_is_open(self, excess):
        sale = a_sale()
        fund(sale.organization, 100_000)
        with pytest.raises(receivables.NothingReceivable):
            invoice_payments.from_wallet(sale=sale, amount_minor=sale.amount_minor + excess, at=NOW)
        invoice_payments.from_wallet(sale=sale, amount_minor=None, at=NOW)
        with pytest.raises(receivables.NothingReceivable):
            invoice_payments.from_wallet(sale=sale, amount_minor=None, at=NOW)

    def test_does_not_happen_while_the_tenants_money_is_parked(self):
        sale = a_sale()
        fund(sale.organization, 100_000)
        parking.park(breaches={sale.organization_id: "a breach"}, at=NOW)
        with pytest.raises(parking.MoneyParked):
            invoice_payments.from_wallet(sale=sale, amount_minor=None, at=NOW)

    @pytest.mark.parametrize("invoice_id", ["inv_1", "", "inv_\x00"])
    def test_finds_no_invoice_that_is_not_there(self, invoice_id):
        with pytest.raises(NotFound):
            invoice_payments.sale_of(
                organization=factories.make_organization(), invoice_id=invoice_id
            )

    def test_finds_no_invoice_of_somebody_else(self):
        sale = a_sale()
        with pytest.raises(NotFound):
            invoice_payments.sale_of(
                organization=factories.make_organization(), invoice_id=sale.invoice_id
            )


class TestTransfer:
    def record(self, sale: CreditSale, amount: int, *, key: str = "one") -> str:
        return invoice_payments.record_transfer(
            sale=sale,
            amount=Money(amount, sale.currency),
            idempotency_key=key,
            at=NOW,
            actor="anna",
        )

    def test_pays_once_per_key_and_stands_in_the_trail(self):
        sale = a_sale()
        assert self.record(sale, 100) == self.record(sale, 100)
        self.record(sale, 100, key="two")
        assert owed(sale) == sale.amount_minor - 200
        assert AuditEvent.objects.filter(action="invoice.paid_by_transfer").count() == 2
        assert is_sound()

    def test_of_another_amount_by_the_same_key_is_refused(self):
        sale = a_sale()
        self.record(sale, 100)
        with pytest.raises(ledger.EntryMismatch, match=r"1\.00 USD") as caught:
            self.record(sale, 200)
        assert caught.value.pointer == "/amount_minor"
        assert owed(sale) == sale.amount_minor - 100

    @pytest.mark.parametrize("of_same_tenant", [True, False])
    def test_of_another_invoice_by_the_same_key_is_refused(self, of_same_tenant):
        one = a_sale()
        tenant = one.organization if of_same_tenant else a_debtor()
        two = sale_of(buy(make_quote(tenant=tenant, gpus=2)))
        self.record(one, 100)
        with pytest.raises(ledger.EntryMismatch, match=one.invoice_id):
            self.record(two, 100)
        assert owed(two) == two.amount_minor
        assert AuditEvent.objects.filter(action="invoice.paid_by_transfer").count() == 1

    def test_that_comes_again_is_the_same_however_it_was_divided(self):
        sale = a_sale()
        for _ in range(2):
            self.record(sale, sale.amount_minor + 9)
        assert (owed(sale), purse(sale.organization)) == (0, 9)
        self.record(sale, 7, key="two")
        self.record(sale, 7, key="two")
        assert purse(sale.organization) == 16

    def test_for_another_tenant_than_the_first_is_refused(self):
        sale, other = a_sale(), a_debtor()
        payment = {
            "invoice_id": sale.invoice_id,
            "payment_id": "pay_1",
            "amount_minor": 100,
            "currency": "usd",
            "at": NOW,
            "is_by_bank": True,
        }
        receivables.pay(organization=sale.organization, **payment)
        with pytest.raises(ledger.EntryMismatch):
            receivables.pay(organization=other, **payment)

    def test_beyond_the_invoice_goes_to_the_wallet(self):
        sale = a_sale()
        self.record(sale, sale.amount_minor + 9)
        assert (owed(sale), purse(sale.organization)) == (0, 9)
        assert is_sound()

    @pytest.mark.parametrize("amount", [0, -5])
    def test_of_nothing_is_refused(self, amount):
        with pytest.raises(receivables.NothingReceivable):
            self.record(a_sale(), amount)

    def test_of_another_currency_is_refused(self):
        with pytest.raises(receivables.NothingReceivable):
            invoice_payments.record_transfer(
                sale=a_sale(), amount=Money(5, "jpy"), idempotency_key="x", at=NOW, actor="anna"
            )


class TestThroughTheProvider:
    def ask(self, sale: CreditSale, clock, *, wishes: Wishes = CARD) -> Payment:
        payment = invoice_payments.through_provider(
            sale=sale, amount_minor=None, wishes=wishes, at=clock()
        )
        doors.drive_payment(payment_id=payment.pk, at=clock())
        payment.refresh_from_db()
        return payment

    def pay(self, payment: Payment, stand_in, clock, method: str = "pm_card_bypassPending") -> None:
        stand_in.control("/_control/confirm", {"id": payment.provider_id, "payment_method": method})
        doors.read_payment(payment_id=payment.pk, object_id=payment.provider_id, at=clock())

    def test_pays_the_invoice_when_the_money_is_there(self, provider, clock):
        sale = a_sale()
        payment = self.ask(sale, clock)
        assert (payment.status, owed(sale)) == ("open", sale.amount_minor)
        self.pay(payment, provider, clock)
        doors.read_payment(payment_id=payment.pk, object_id=payment.provider_id, at=clock())
        assert (owed(sale), purse(sale.organization)) == (0, 0)
        told = Event.objects.filter(kind="payment.succeeded").get().data
        assert told["invoice_id"] == sale.invoice_id
        assert is_sound()

    def test_that_comes_after_the_invoice_was_paid_stays_in_the_wallet(self, provider, clock):
        sale = a_sale()
        payment = self.ask(sale, clock)
        fund(sale.organization, sale.amount_minor)
        invoice_payments.from_wallet(sale=sale, amount_minor=None, at=clock())
        self.pay(payment, provider, clock)
        assert (owed(sale), purse(sale.organization)) == (0, sale.amount_minor)
        assert is_sound()

    def test_that_comes_after_the_invoice_was_given_up_makes_the_loss_smaller(
        self, provider, clock
    ):
        sale = a_sale()
        payment = self.ask(sale, clock)
        receivables.write_off(
            organization=sale.organization,
            invoice_id=sale.invoice_id,
            amount_minor=sale.amount_minor,
            currency="usd",
            decision_id="apv_1",
            at=clock(),
        )
        self.pay(payment, provider, clock)
        doors.read_payment(payment_id=payment.pk, object_id=payment.provider_id, at=clock())
        assert (purse(sale.organization), balance(AccountKind.BAD_DEBT)) == (0, 0)
        assert Event.objects.filter(kind="invoice.paid", object_id=sale.invoice_id).count() == 1
        assert is_sound()

    def test_that_is_declined_leaves_it_owed(self, provider, clock):
        sale = a_sale()
        payment = self.ask(sale, clock)
        with pytest.raises(Exception, match="declined"):
            self.pay(payment, provider, clock, "pm_card_visa_chargeDeclined")
        assert owed(sale) == sale.amount_minor

    def test_that_nobody_makes_is_given_up(self, provider, clock):
        sale = a_sale()
        payment = self.ask(sale, clock)
        late = clock(hours=25)
        payments.give_up_due(at=late)
        doors.drive_due(at=late)
        payment.refresh_from_db()
        assert (payment.status, owed(sale)) == ("cancelled", sale.amount_minor)

    def test_needs_a_saved_card_where_one_is_to_pay(self, provider, clock):
        with pytest.raises(payments.NoSavedCard):
            self.ask(a_sale(), clock, wishes=SAVED)

    def test_is_not_asked_for_less_than_the_provider_takes(self, provider, clock):
        sale = a_sale()
        with pytest.raises(InvalidValue):
            invoice_payments.through_provider(
                sale=sale, amount_minor=chargeable.least("usd") - 1, wishes=CARD, at=clock()
            )


class InvoiceCase(Case):
    """A saved card that is to pay an invoice."""

    def prepare_payment(self):
        self.tenant = a_debtor()
        self.a_paid_top_up()
        self.sale = a_sale(tenant=self.tenant)
        self.payment = invoice_payments.through_provider(
            sale=self.sale,
            amount_minor=None,
            wishes=SAVED,
            at=self.clock(),
        )

    def check_payment(self):
        assert Payment.objects.get(pk=self.payment.pk).status == "succeeded"
        assert owed(self.sale) == 0
        assert wallet.balance(organization=self.tenant).amount_minor == 5000
        assert len(self.stand_in.world.all("charge")) == 2


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("later", [{"seconds": 61}, {"hours": 25}])
def test_a_death_at_any_step_pays_an_invoice_once(provider, clock, step, later):
    case = InvoiceCase(provider, clock, "payment")
    with dies(at=step, kind=IntentKind.PAYMENT):
        case.drive()
    case.drive()  # at once: it is still claimed by the dead
    case.drive(**later)
    case.check()


@pytest.mark.django_db(transaction=True)
def test_many_who_pay_one_invoice_at_once_pay_it_once():
    sale = a_sale()
    fund(sale.organization, 20 * sale.amount_minor)
    ready = threading.Barrier(8)
    refused: list[Exception] = []

    def client() -> None:
        try:
            ready.wait(timeout=30)
            invoice_payments.from_wallet(sale=sale, amount_minor=None, at=NOW)
        except receivables.NothingReceivable as error:
            refused.append(error)
        finally:
            connections["default"].close()

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    assert (owed(sale), purse(sale.organization)) == (0, 19 * sale.amount_minor)
    assert is_sound()
