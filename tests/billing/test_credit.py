"""Buying on account, with the real scheduler beneath: never more than the limit, and nothing lost."""

import datetime as dt
import threading
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction

from agents.models import Node
from billing import (
    approvals,
    bills,
    books,
    changes,
    credit,
    ledger,
    parking,
    refunds,
    settlements,
    tax,
    wallet,
)
from billing.models import Approval, CreditSale, CreditTerms, Entry, Refund
from billing.payment_methods import PaymentMethodUnavailable
from billing.states import GPU_SECONDS, AccountKind, ApprovalKind, EntryKind
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.models import AuditEvent, Event, Organization
from scheduler import cancellations, extensions, leases, rebookings, reservations
from scheduler.models import Allocation, Change, Lease, Quote, Reservation
from scheduler.rebookings import WindowWish
from tests.billing import factories as books_factories
from tests.billing.debtors import (
    a_debtor,
    ask_for_credit,
    balance,
    buy,
    grant,
    owed,
    pay_by_bank,
    sale_of,
)
from tests.scheduler import factories
from tests.scheduler.factories import NOW, hours, make_pool, make_quote, seconds, window_in

pytestmark = pytest.mark.django_db

LONG_AFTER = dt.timedelta(days=60)


def breaches(*, at: dt.datetime) -> list[str]:
    return [f"{c.name}: {c.detail}" for c in books.check(at=at).checks if not c.ok]


def purse(organization: Organization) -> int:
    return wallet.balance(organization=organization).amount_minor


def quoted_at(at: dt.datetime, *, tenant: Organization, starts: float) -> Quote:
    """Return a quote of an hour at which the nodes have just reported, too."""
    Node.objects.update(last_report_at=at)
    return make_quote(tenant=tenant, window=window_in(starts), at=at)


def leave(reservation: Reservation, *, at: dt.datetime = NOW) -> Change:
    quote = cancellations.quote(
        organization=reservation.organization, reservation_id=reservation.pk, at=at
    )
    return changes.cancel(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        at=at,
        actor="test",
    )


def extend(reservation: Reservation, *, payment_method: str = "invoice") -> Change:
    quote = extensions.quote(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        ends_at=reservation.ends_at + hours(2),
        max_rate=None,
        at=NOW,
    )
    return changes.extend(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        payment_method=payment_method,
        at=NOW,
        actor="test",
    )


def rebook(reservation: Reservation, *, starts: float, ends: float) -> Change:
    quote = rebookings.quote(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        wish=WindowWish(starts_at=NOW + hours(starts), ends_at=NOW + hours(ends)),
        at=NOW,
    )
    return changes.rebook(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        payment_method="invoice",
        at=NOW,
        actor="test",
    )


class TestTerms:
    def test_take_two_people(self):
        tenant = factories.make_organization()
        asked = ask_for_credit(tenant, limit=500_000)
        assert credit.terms_in_force(organization=tenant, currency="usd") is None
        with pytest.raises(approvals.FourEyesNeeded):
            approvals.approve(approval_id=asked.pk, at=NOW, actor="anna")
        approvals.approve(approval_id=asked.pk, at=NOW, actor="bert")
        terms = credit.terms_in_force(organization=tenant, currency="usd")
        assert terms is not None
        assert (terms.version, terms.limit_minor, terms.net_days) == (1, 500_000, 30)
        assert AuditEvent.objects.filter(action="credit.granted", object_id=terms.pk).exists()
        assert Event.objects.get(kind="credit.changed").data["limit_minor"] == 500_000

    def test_are_not_in_force_when_the_second_person_refuses(self):
        tenant = factories.make_organization()
        asked = ask_for_credit(tenant, limit=500_000)
        approvals.refuse(approval_id=asked.pk, at=NOW, actor="bert")
        assert credit.terms_in_force(organization=tenant, currency="usd") is None

    def test_come_in_versions_of_which_the_last_counts(self):
        tenant = a_debtor(limit=500_000)
        grant(tenant, limit=200_000, net_days=14)
        terms = credit.terms_in_force(organization=tenant, currency="usd")
        assert terms is not None
        assert (terms.version, terms.limit_minor, terms.net_days) == (2, 200_000, 14)
        assert CreditTerms.objects.count() == 2

    def test_are_ended_by_one_person_and_what_is_owed_stays_owed(self):
        make_pool()
        tenant = a_debtor()
        reservation = buy(make_quote(tenant=tenant))
        ask_for_credit(tenant, limit=0)
        with pytest.raises(credit.CreditNotGranted):
            buy(make_quote(tenant=tenant))
        assert owed(sale_of(reservation)) == reservation.total_minor

    @pytest.mark.parametrize("change", [{"limit_minor": 1}, {"net_days": 14}])
    def test_are_never_edited(self, change):
        a_debtor()
        with pytest.raises(IntegrityError), transaction.atomic():
            CreditTerms.objects.update(**change)
        with pytest.raises(IntegrityError), transaction.atomic():
            CreditTerms.objects.all().delete()

    @pytest.mark.parametrize(
        ("wish", "pointer"),
        [
            ({"limit": 500, "net_days": None}, "/net_days"),
            ({"limit": 500, "net_days": 60}, "/net_days"),
            ({"limit": -1}, "/amount_minor"),
            ({"limit": 500, "currency": "jpy"}, "/amount_minor"),
        ],
    )
    def test_that_nobody_gives_are_refused(self, wish, pointer):
        with pytest.raises(InvalidValue) as caught:
            ask_for_credit(factories.make_organization(), **wish)
        assert caught.value.pointer == pointer
        assert not Approval.objects.exists()

    def test_are_for_tenants_alone(self):
        with pytest.raises(InvalidValue, match="buys"):
            ask_for_credit(factories.make_organization(is_tenant=False), limit=500)

    def test_do_not_belong_to_other_movements_of_money(self):
        tenant = factories.make_organization()
        with pytest.raises(InvalidValue, match="days"):
            approvals.request(
                kind=ApprovalKind.REFUND,
                organization=tenant,
                subject_id=tenant.pk,
                amount=Money(5, "usd"),
                reason="why not",
                net_days=30,
                at=NOW,
                actor="anna",
            )


class TestPurchase:
    def test_schedules_the_reservation_and_is_owed_by_its_invoice(self):
        make_pool()
        tenant = a_debtor(net_days=14)
        quote = make_quote(tenant=tenant, gpus=2)
        reservation = buy(quote)
        sale = sale_of(reservation)
        assert reservation.status == "scheduled"
        assert (sale.amount_minor, sale.due_at) == (
            quote.total_minor,
            NOW + dt.timedelta(days=14),
        )
        assert owed(sale) == quote.total_minor
        assert balance(AccountKind.DEFERRED, reservation.pk) == quote.total_minor
        assert balance(AccountKind.U_OPEN, reservation.pk, currency=GPU_SECONDS) == 2 * 2 * 3600
        assert breaches(at=NOW) == []

    def test_goes_up_to_the_limit_and_says_what_is_missing_beyond_it(self):
        make_pool()
        tenant = factories.make_organization()
        first, second = (make_quote(tenant=tenant) for _ in range(2))
        grant(tenant, limit=2 * first.total_minor - 1)
        buy(first)
        with pytest.raises(credit.CreditLimitExceeded) as caught:
            buy(second)
        assert caught.value.extra == {
            "missing": {"amount_minor": 1, "currency": "usd"},
            "owed": {"amount_minor": first.total_minor, "currency": "usd"},
        }
        second.refresh_from_db()
        assert second.status == "open"
        assert Allocation.objects.filter(live=True).count() == 1
        pay_by_bank(CreditSale.objects.get(), 1)
        assert buy(second).status == "scheduled"
        assert breaches(at=NOW) == []

    def test_needs_terms_and_leaves_no_trace_without(self):
        make_pool()
        quote = make_quote(gpus=2)
        with pytest.raises(credit.CreditNotGranted):
            buy(quote)
        assert not Reservation.objects.exists()
        assert not Allocation.objects.exists()
        assert not Entry.objects.exists()
        quote.refresh_from_db()
        assert quote.status == "open"

    def test_is_refused_from_the_second_on_in_which_an_invoice_is_overdue(self):
        make_pool()
        tenant = a_debtor(net_days=14)
        first = buy(make_quote(tenant=tenant, window=window_in(24 * 20)))
        due_at = sale_of(first).due_at
        just_before = due_at - dt.timedelta(seconds=1)
        buy(quoted_at(just_before, tenant=tenant, starts=24 * 21), at=just_before)
        late = quoted_at(due_at, tenant=tenant, starts=24 * 22)
        with pytest.raises(credit.InvoiceOverdue) as caught:
            buy(late, at=due_at)
        assert caught.value.extra == {"invoice_id": sale_of(first).invoice_id}
        pay_by_bank(sale_of(first), first.total_minor)
        assert buy(late, at=due_at).status == "scheduled"

    def test_leaves_other_ways_to_pay_alone_while_an_invoice_is_overdue(self):
        make_pool()
        tenant = a_debtor(net_days=14)
        first = buy(make_quote(tenant=tenant, window=window_in(24 * 20)))
        wallet.record_deposit(
            organization=tenant,
            amount=Money(100_000, "usd"),
            idempotency_key="first",
            at=NOW,
            actor="test",
        )
        due_at = sale_of(first).due_at
        quote = quoted_at(due_at, tenant=tenant, starts=24 * 22)
        assert buy(quote, payment_method="wallet", at=due_at).status == "scheduled"

    def test_charges_a_quote_once(self):
        make_pool()
        quote = make_quote(tenant=a_debtor())
        buy(quote)
        with pytest.raises(Exception, match="was used") as caught:
            buy(quote)
        assert caught.value.code == "quote_used"
        assert CreditSale.objects.count() == 1

    def test_does_not_happen_while_the_tenants_money_is_parked(self):
        make_pool()
        tenant = a_debtor()
        parking.park(breaches={tenant.pk: "a breach"}, at=NOW)
        with pytest.raises(parking.MoneyParked):
            buy(make_quote(tenant=tenant))
        assert not Reservation.objects.exists()

    def test_is_a_fact_that_nobody_edits(self):
        make_pool()
        buy(make_quote(tenant=a_debtor()))
        with pytest.raises(IntegrityError), transaction.atomic():
            CreditSale.objects.update(amount_minor=1)

    def test_that_the_books_do_not_know_is_found(self, unguarded):
        make_pool()
        buy(make_quote(tenant=a_debtor()))
        with unguarded():
            CreditSale.objects.update(amount_minor=1)
        report = books.check(at=NOW)
        assert [c.name for c in report.checks if not c.ok] == ["sales_on_account_are_owed"]


class TestChange:
    def bought(self, *, limit: int = 1_000_000, starts: float = 48) -> Reservation:
        make_pool()
        return buy(make_quote(tenant=a_debtor(limit=limit), window=window_in(starts)))

    def test_that_adds_hours_has_an_invoice_of_its_own(self):
        reservation = self.bought()
        change = extend(reservation)
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
            extend(reservation)
        before = reservation.ends_at
        reservation.refresh_from_db()
        assert reservation.ends_at == before
        assert not Change.objects.exists()

    def test_by_card_is_still_not_offered(self):
        with pytest.raises(PaymentMethodUnavailable, match="on account"):
            extend(self.bought(), payment_method="card")

    def test_to_a_longer_window_is_owed_and_to_a_shorter_one_owed_no_more(self):
        reservation = self.bought()
        longer = rebook(reservation, starts=48, ends=53)
        added = CreditSale.objects.get(change=longer)
        assert owed(added) == longer.charged_minor > 0
        reservation.refresh_from_db()
        owed_before = owed(added) + owed(sale_of(reservation))
        shorter = rebook(reservation, starts=48, ends=49)
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
        change = extend(reservation)
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


@pytest.mark.django_db(transaction=True)
class TestRace:
    @pytest.mark.parametrize(
        ("clients", "nodes"), [(16, 3), pytest.param(100, 14, marks=pytest.mark.slow, id="100")]
    )
    def test_of_many_clients_for_a_limit_that_covers_eight(self, clients, nodes):
        make_pool(nodes=nodes)
        tenant = factories.make_organization()
        offers = [make_quote(tenant=tenant) for _ in range(clients)]
        price = offers[0].total_minor
        assert {offer.total_minor for offer in offers} == {price}
        grant(tenant, limit=9 * price - 1)
        results = everybody_buys(offers)
        assert sum(isinstance(result, Reservation) for result in results) == 8
        refused = [r for r in results if isinstance(r, credit.CreditLimitExceeded)]
        assert len(refused) == clients - 8
        assert credit.owed_minor(organization=tenant, currency="usd") == 8 * price
        assert Allocation.objects.filter(live=True).count() == 8
        assert breaches(at=NOW) == []

    def test_sells_more_than_the_limit_covers_where_nobody_locks_and_looks_again(self, monkeypatch):
        """The twin: what the lock and the second look are there for."""
        make_pool()
        tenant = factories.make_organization()
        offers = [make_quote(tenant=tenant) for _ in range(2)]
        grant(tenant, limit=offers[0].total_minor)
        both_have_looked = threading.Barrier(2)
        real = credit.require

        def wait_for_the_other(**arguments: Any) -> CreditTerms:
            terms: CreditTerms = real(**arguments)
            monkeypatch.setattr(credit, "_check_limit", lambda **_: None)
            both_have_looked.wait(timeout=30)
            return terms

        monkeypatch.setattr("billing.receivables.lock", lambda organization: organization)
        monkeypatch.setattr(credit, "require", wait_for_the_other)
        results = everybody_buys(offers)
        assert sum(isinstance(result, Reservation) for result in results) == 2
        assert credit.owed_minor(organization=tenant, currency="usd") > offers[0].total_minor


def everybody_buys(offers: list[Quote]) -> list[object]:
    """Let each quote be bought by a client of its own, all at one instant; return what they heard."""
    turns = threading.BoundedSemaphore(40)  # of the connections that the whole suite shares
    ready = threading.Barrier(len(offers))
    results: list[object] = []

    def client(quote: Quote) -> None:
        try:
            ready.wait(timeout=30)
            with turns:
                try:
                    results.append(buy(quote))
                finally:
                    connections["default"].close()
        except Exception as error:  # noqa: BLE001 - the refusals are the result
            results.append(error)

    threads = [threading.Thread(target=client, args=(quote,)) for quote in offers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_what_is_given_back_is_posted_once_per_occasion():
    make_pool()
    reservation = buy(make_quote(tenant=a_debtor(), gpus=8, window=window_in(48)))
    leave(reservation)
    refunds.open_for(reservation_id=reservation.pk, at=NOW)
    assert Entry.objects.filter(kind=EntryKind.OFFSET).count() == 1
