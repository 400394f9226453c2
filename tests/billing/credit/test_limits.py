"""Buying on account, with the real scheduler beneath: never more than the limit, and nothing lost."""

import datetime as dt
import threading
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction

from agents.models import Node
from billing import approvals, books, credit, parking, wallet
from billing.models import Approval, CreditSale, CreditTerms, Entry
from billing.states import GPU_SECONDS, AccountKind, ApprovalKind
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.models import AuditEvent, Event, Organization
from scheduler.models import Allocation, Quote, Reservation
from tests.billing.debtors import a_debtor, ask_for_credit, buy, grant, owed, pay_by_bank, sale_of
from tests.billing.readings import balance, breaches
from tests.scheduler import factories
from tests.scheduler.factories import NOW, make_pool, make_quote, window_in

pytestmark = pytest.mark.django_db


def quoted_at(at: dt.datetime, *, tenant: Organization, starts: float) -> Quote:
    """Return a quote of an hour at which the nodes have just reported, too."""
    Node.objects.update(last_report_at=at)
    return make_quote(tenant=tenant, window=window_in(starts), at=at)


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
    ready = threading.Barrier(len(offers))
    results: list[object] = []

    def client(quote: Quote) -> None:
        try:
            connections["default"].ensure_connection()
            ready.wait(timeout=60)
            results.append(buy(quote))
        except Exception as error:  # noqa: BLE001 - the refusals are the result
            results.append(error)
        finally:
            connections["default"].close()

    threads = [threading.Thread(target=client, args=(quote,)) for quote in offers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
