"""Documents are numbered without gaps, add up, and never change: PostgreSQL refuses whoever goes around."""

import datetime as dt
import threading
from collections import Counter

import pytest
from django.db import IntegrityError, connection, transaction

from billing import invoices
from billing.invoices import InvoiceRefused, LineDraft
from billing.models import BillingProfile, Invoice, InvoiceLine, InvoiceSeries
from marketplace.models import Event, Organization
from tests.billing import factories
from tests.races.test_last_gpus import at_once

pytestmark = pytest.mark.django_db

AT = factories.START
DUE = AT + dt.timedelta(days=30)
ISSUES = 50


def a_line(*, key: str, net: int = 100, tax: int = 19, **fields: object) -> LineDraft:
    values: dict[str, object] = {
        "entry_key": key,
        "reservation": None,
        "description": "2 × h100",
        "window": None,
        "gpu_seconds": 7200,
        "net_minor": net,
        "tax_minor": tax,
    }
    return LineDraft(**{**values, **fields})  # type: ignore[arg-type]


def an_invoice(*, key: str = "purchase:rsv_1", at: dt.datetime = AT, **fields: object) -> Invoice:
    values: dict[str, object] = {
        "organization": factories.tenant(),
        "currency": "usd",
        "lines": [a_line(key=key)],
        "at": at,
    }
    return invoices.issue(**{**values, **fields})  # type: ignore[arg-type]


def a_checked_invoice(**fields: object) -> None:
    """Issue, and let PostgreSQL check what it would check at commit."""
    an_invoice(**fields)  # type: ignore[arg-type]
    execute("SET CONSTRAINTS ALL IMMEDIATE")


def store_checked(row: Invoice) -> None:
    row.save(force_insert=True)
    execute("SET CONSTRAINTS ALL IMMEDIATE")


def roll_back(*, key: str) -> None:
    """Issue and change one's mind."""
    an_invoice(key=key)
    raise ZeroDivisionError


def execute(statement: str) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


class TestNumbers:
    def test_begin_at_one_in_each_series(self) -> None:
        first = an_invoice(key="purchase:1", at=dt.datetime(2026, 12, 31, 23, 59, tzinfo=dt.UTC))
        second = an_invoice(key="purchase:2", at=dt.datetime(2026, 12, 31, 23, 59, tzinfo=dt.UTC))
        third = an_invoice(key="purchase:3", at=dt.datetime(2027, 1, 1, tzinfo=dt.UTC))
        note = an_invoice(
            lines=[a_line(key="refund:1", net=5, tax=0, corrects_line=first.lines.get())],
            corrects=first,
        )
        numbers = [each.number for each in (first, second, third, note)]
        assert numbers == [
            "HR-2026-000001",
            "HR-2026-000002",
            "HR-2027-000001",
            "HR-CN-2026-000001",
        ]

    def test_have_the_order_of_the_dates_even_where_a_clock_was_behind(self) -> None:
        first = an_invoice(key="purchase:1")
        second = an_invoice(
            key="purchase:2", at=AT - dt.timedelta(seconds=5), due_at=AT - dt.timedelta(seconds=1)
        )
        assert second.issued_at == first.issued_at == second.due_at

    def test_go_to_the_next_where_an_issue_was_rolled_back(self) -> None:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            roll_back(key="purchase:1")
        assert an_invoice(key="purchase:2").number == "HR-2026-000001"

    def test_cannot_leave_one_out_in_the_database(self) -> None:
        an_invoice(key="purchase:1")
        InvoiceSeries.objects.update(last_sequence=5)
        with pytest.raises(IntegrityError, match="no number precedes"), transaction.atomic():
            an_invoice(key="purchase:2")


@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(180)
def test_fifty_issues_at_once_of_which_some_roll_back_leave_no_gap() -> None:
    tenants = [factories.tenant(name=f"Tenant {number}") for number in range(5)]

    def issuing(number: int):
        def run() -> str:
            try:
                with transaction.atomic():
                    an_invoice(key=f"purchase:{number}", organization=tenants[number % 5])
                    if number % 3 == 0:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                return "rolled back"
            return "issued"

        return run

    outcome = at_once([issuing(number) for number in range(ISSUES)])
    assert outcome == Counter({"issued": 33, "rolled back": 17})
    rows = Invoice.objects.order_by("sequence")
    assert [each.sequence for each in rows] == list(range(1, 34))
    assert [each.issued_at for each in rows] == sorted(each.issued_at for each in rows)


@pytest.mark.django_db(transaction=True)
def test_a_counter_that_nobody_locks_gives_a_number_twice(monkeypatch) -> None:
    """The twin: without the row lock both read the same last number, and the database refuses one."""
    an_invoice(key="purchase:0")
    tenants = [factories.tenant(name=f"Tenant {number}") for number in range(2)]
    meeting = threading.Barrier(2, timeout=30)
    manager = type(InvoiceSeries.objects)

    def unlocked(self, **_kwargs):
        queryset = self.get_queryset()
        if self.model is InvoiceSeries:
            queryset = queryset.all()
            original = queryset.get

            def get(**place):
                row = original(**place)
                meeting.wait()
                return row

            monkeypatch.setattr(queryset, "get", get, raising=False)
        return queryset

    monkeypatch.setattr(manager, "select_for_update", unlocked, raising=False)

    def issuing(number: int):
        def run() -> str:
            try:
                an_invoice(key=f"purchase:{number + 1}", organization=tenants[number])
            except IntegrityError:
                return "refused"
            return "issued"

        return run

    assert at_once([issuing(0), issuing(1)]) == Counter({"issued": 1, "refused": 1})


class TestADocument:
    def test_keeps_seller_and_buyer_as_they_were(self, settings) -> None:
        tenant = factories.tenant()
        BillingProfile.objects.create(
            organization=tenant,
            legal_name="Perceptron Aktiengesellschaft",
            city="Zürich",
            country="CH",
            tax_id="CHE-1",
            purchase_order_number="PO 7",
            updated_at=AT,
        )
        invoice = an_invoice()
        BillingProfile.objects.update(legal_name="Renamed")
        settings.SELLER = {"name": "Somebody else"}
        kept = Invoice.objects.get(pk=invoice.pk)
        assert kept.buyer["name"] == "Perceptron Aktiengesellschaft"
        assert (kept.buyer["tax_id"], kept.purchase_order_number) == ("CHE-1", "PO 7")
        assert kept.seller["name"] == "Headroom"

    def test_is_told_to_its_tenant_once(self) -> None:
        invoice = an_invoice(due_at=DUE)
        (event,) = Event.objects.filter(object_id=invoice.pk)
        assert event.kind == "invoice.issued"
        assert event.data["total_minor"] == 119
        assert event.data["due_at"] == DUE.isoformat()

    @pytest.mark.parametrize("count", [0, 5001])
    def test_has_at_least_one_line_and_not_too_many(self, count: int) -> None:
        with pytest.raises(InvoiceRefused):
            an_invoice(lines=[a_line(key=f"purchase:{number}") for number in range(count)])

    @pytest.mark.parametrize("currency", ["jpy", "kwd"])
    def test_keeps_minor_units_of_any_currency(self, currency: str) -> None:
        invoice = an_invoice(currency=currency, lines=[a_line(key="purchase:1", net=1, tax=0)])
        assert (invoice.total_minor, invoice.currency) == (1, currency)


class TestPostgresql:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE billing_invoice SET total_minor = total_minor",
            "UPDATE billing_invoice SET buyer = '{}'",
            "DELETE FROM billing_invoice",
            "TRUNCATE billing_invoice CASCADE",
            "UPDATE billing_invoiceline SET net_minor = 1",
            "DELETE FROM billing_invoiceline",
            "TRUNCATE billing_invoiceline",
            "DELETE FROM billing_invoiceseries",
            "TRUNCATE billing_invoiceseries",
            "UPDATE billing_invoiceseries SET year = 2020",
        ],
    )
    def test_lets_nothing_of_an_issued_document_change(self, statement: str) -> None:
        an_invoice()
        execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
        with pytest.raises(IntegrityError):
            execute(statement)

    def test_lets_no_line_come_after_the_document(self) -> None:
        invoice = an_invoice()
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
            cursor.execute("SET LOCAL session_replication_role = replica")
            cursor.execute("UPDATE billing_invoice SET transaction_id = transaction_id - 1")
            cursor.execute("SET LOCAL session_replication_role = DEFAULT")
        late = InvoiceLine(
            invoice=invoice,
            position=2,
            entry_key="purchase:2",
            description="late",
            gpu_seconds=0,
            net_minor=0,
            tax_minor=0,
            tax_treatment="standard",
        )
        with pytest.raises(IntegrityError, match="its transaction is over"), transaction.atomic():
            late.save()

    @pytest.mark.parametrize("changes", [{"net_minor": 99}, {"net_minor": 0, "tax_minor": 0}])
    def test_refuses_a_document_whose_lines_do_not_add_up(self, changes: dict[str, int]) -> None:
        invoice = an_invoice()
        twin = Invoice.objects.get(pk=invoice.pk)
        twin.pk, twin.number, twin.sequence = "inv_twin", "twin", 2
        for name, value in changes.items():
            setattr(twin, name, value)
        twin.total_minor = twin.net_minor + twin.tax_minor
        with pytest.raises(IntegrityError, match="lines of twin"), transaction.atomic():
            store_checked(twin)

    def test_refuses_to_invoice_one_entry_twice(self) -> None:
        an_invoice()
        with pytest.raises(IntegrityError, match="entry_is_invoiced_once"), transaction.atomic():
            an_invoice()

    @pytest.mark.parametrize(("net", "tax"), [(101, 0), (0, 20)])
    def test_refuses_to_credit_more_than_was_invoiced(self, net: int, tax: int) -> None:
        invoice = an_invoice()
        line = invoice.lines.get()
        an_invoice(lines=[a_line(key="a", net=60, tax=10, corrects_line=line)], corrects=invoice)
        rest = a_line(key="b", net=net - min(net, 60), tax=tax - min(tax, 10), corrects_line=line)
        with pytest.raises(IntegrityError, match="more is credited"), transaction.atomic():
            a_checked_invoice(lines=[rest], corrects=invoice)

    def test_refuses_to_credit_a_line_of_another_document(self) -> None:
        first, second = an_invoice(key="purchase:1"), an_invoice(key="purchase:2")
        with pytest.raises(IntegrityError, match="another document"), transaction.atomic():
            an_invoice(
                lines=[a_line(key="r", corrects_line=first.lines.get())],
                corrects=second,
            )


class TestAPurchaseOnAccount:
    def test_has_one_invoice_however_often_it_is_asked_for(self) -> None:
        reservation = factories.reservation(buyer=factories.tenant(), paid=False)
        first = invoices.issue_for_purchase(reservation=reservation, due_at=DUE, at=AT)
        again = invoices.issue_for_purchase(reservation=reservation, due_at=DUE, at=AT)
        assert first.pk == again.pk
        assert (first.total_minor, first.due_at, first.period) == (471, DUE, "")
        line = first.lines.get()
        assert (line.reservation_id, line.gpu_seconds) == (reservation.pk, 7200)
        assert "2 × h100-sxm-80gb" in line.description

    def test_names_a_buyer_without_a_profile_by_its_name(self) -> None:
        tenant: Organization = factories.tenant()
        reservation = factories.reservation(buyer=tenant, paid=False)
        invoice = invoices.issue_for_purchase(reservation=reservation, due_at=DUE, at=AT)
        assert invoice.buyer["name"] == tenant.name
