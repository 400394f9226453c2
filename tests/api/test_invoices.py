"""Invoices as their tenant reads them: what was issued, what has become of it, and nobody else's."""

import datetime as dt

import pytest

from billing import invoices, pdf, receivables, settlements
from billing.models import BillingProfile, Invoice
from marketplace.models import AuditEvent, Organization
from marketplace.states import Scope
from scheduler.models import Reservation
from scheduler.states import PaymentMethod, ReservationStatus
from tests.api.test_month_bills import funded
from tests.billing import factories as books
from tests.billing.debtors import grant
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db
CLOSED_AT = dt.datetime(2026, 12, 1, 2, tzinfo=dt.UTC)


@pytest.fixture
def month(organization: Organization) -> list[Invoice]:
    """Return the invoice and the credit note of a month in which half of an hour was not delivered."""
    row = books.reservation(buyer=funded(organization), status=ReservationStatus.COMPLETED)
    lease = books.lease(of=row, returned_after_seconds=1800)
    settlements.settle(lease_id=lease.id, at=books.START + dt.timedelta(hours=2))
    return invoices.issue_month(organization=organization, month="2026-11", at=CLOSED_AT)


@pytest.fixture
def on_account(organization: Organization) -> Invoice:
    grant(organization, at=books.START)
    row = books.reservation(buyer=organization, paid=False, status=ReservationStatus.SCHEDULED)
    Reservation.objects.filter(pk=row.pk).update(payment_method=PaymentMethod.INVOICE)
    row.refresh_from_db()
    return Invoice.objects.get(pk=books.bought_on_account(row))


def pay(invoice: Invoice, amount: int, *, payment: str) -> None:
    receivables.pay(
        organization=invoice.organization,
        invoice_id=invoice.pk,
        payment_id=payment,
        amount_minor=amount,
        currency="usd",
        at=CLOSED_AT,
        is_by_bank=True,
    )


class TestList:
    def test_has_the_documents_newest_first(self, api: ApiClient, month: list[Invoice]) -> None:
        answer = api.get("/v1/invoices").json
        assert [each["kind"] for each in answer["data"]] == ["credit_note", "invoice"]
        note, invoice = answer["data"]
        assert (invoice["number"], invoice["state"]) == ("HR-2026-000001", "paid")
        assert invoice["total"] == {"amount_minor": 471, "currency": "usd"}
        assert invoice["owed"] == {"amount_minor": 0, "currency": "usd"}
        assert (note["state"], note["corrects_id"]) == (None, invoice["id"])
        assert note["period"] == "2026-11"

    @pytest.mark.parametrize(
        ("query", "count"),
        [
            ({"kind": "invoice"}, 1),
            ({"kind": "credit_note"}, 1),
            ({"state": "paid"}, 1),
            ({"state": "open"}, 0),
            ({"month": "2026-11"}, 2),
            ({"month": "2026-12"}, 2),
            ({"month": "2026-10"}, 0),
            ({"limit": 1}, 1),
        ],
    )
    def test_is_filtered(
        self, api: ApiClient, month: list[Invoice], query: dict[str, object], count: int
    ) -> None:
        assert len(api.get("/v1/invoices", **query).json["data"]) == count

    @pytest.mark.parametrize(
        "query",
        [
            {"month": "2026-13"},
            {"month": "november"},
            {"kind": "bill"},
            {"state": "lost"},
            {"x": 1},
        ],
    )
    def test_refuses_a_filter_that_makes_no_sense(
        self, api: ApiClient, query: dict[str, object]
    ) -> None:
        answer = api.get("/v1/invoices", **query)
        assert (answer.status, answer.code) == (422, "invalid_request")

    def test_of_a_tenant_with_nothing_is_empty(self, api: ApiClient) -> None:
        assert api.get("/v1/invoices").json == {"data": [], "next_cursor": None}


class TestState:
    def state(self, api: ApiClient, invoice: Invoice) -> tuple[str, int]:
        answer = api.get(f"/v1/invoices/{invoice.pk}").json
        return answer["state"], answer["owed"]["amount_minor"]

    def test_goes_from_open_over_part_paid_to_paid(
        self, api: ApiClient, on_account: Invoice
    ) -> None:
        assert self.state(api, on_account) == ("open", 471)
        pay(on_account, 400, payment="pay_1")
        assert self.state(api, on_account) == ("part_paid", 71)
        (listed,) = api.get("/v1/invoices", state="part_paid").json["data"]
        assert listed["id"] == on_account.pk
        pay(on_account, 71, payment="pay_2")
        assert self.state(api, on_account) == ("paid", 0)

    def test_is_written_off_where_nobody_pays(self, api: ApiClient, on_account: Invoice) -> None:
        receivables.write_off(
            organization=on_account.organization,
            invoice_id=on_account.pk,
            amount_minor=471,
            currency="usd",
            decision_id="apr_1",
            at=CLOSED_AT,
        )
        assert self.state(api, on_account) == ("written_off", 0)

    def test_is_credited_where_it_never_started(self, api: ApiClient, on_account: Invoice) -> None:
        row = on_account.lines.get().reservation
        assert row is not None
        books.given_back(row)
        assert self.state(api, on_account) == ("credited", 0)
        later = CLOSED_AT + dt.timedelta(minutes=5)
        invoices.credit_on_account(organization=on_account.organization, at=later)
        (note,) = api.get("/v1/invoices", kind="credit_note").json["data"]
        assert api.get(f"/v1/invoices/{on_account.pk}").json["credit_note_ids"] == [note["id"]]


class TestOne:
    def test_has_its_parties_and_lines(self, api: ApiClient, month: list[Invoice]) -> None:
        invoice, note = month
        answer = api.get(f"/v1/invoices/{note.pk}").json
        (line,) = answer["lines"]
        assert line["corrects_line_id"] == invoice.lines.get().pk
        assert line["net"] == {"amount_minor": 235, "currency": "usd"}
        assert (line["gpu_seconds"], line["tax_rate_percent"]) == (3600, "0")
        assert answer["buyer"]["name"] == invoice.organization.name
        assert answer["seller"]["name"] == "Headroom"

    def test_is_a_pdf_with_the_hash_of_its_bytes(
        self, api: ApiClient, month: list[Invoice]
    ) -> None:
        answer = api.get(f"/v1/invoices/{month[0].pk}/pdf")
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/pdf"
        assert answer.headers["ETag"] == f'"{pdf.sha256(answer.content)}"'
        assert answer.content == pdf.invoice(invoice=month[0])

    @pytest.mark.parametrize("form", ["", "/pdf"])
    def test_of_somebody_else_does_not_exist(
        self, api: ApiClient, month: list[Invoice], form: str
    ) -> None:
        _, secret = a_key(organization=an_organization())
        stranger = api.signed_in(secret=secret)
        for invoice_id in (month[0].pk, "inv_nobody", "rsv_1"):
            answer = stranger.get(f"/v1/invoices/{invoice_id}{form}")
            assert (answer.status, answer.code) == (404, "not_found")
        assert stranger.get("/v1/invoices").json["data"] == []

    @pytest.mark.parametrize("form", ["", "/inv_1", "/inv_1/pdf"])
    def test_takes_the_scope(self, api: ApiClient, organization: Organization, form: str) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.MARKET_READ])
        answer = api.signed_in(secret=secret).get(f"/v1/invoices{form}")
        assert (answer.status, answer.code) == (403, "scope_missing")
        assert api.signed_in(secret=None).get(f"/v1/invoices{form}").status == 401


class TestMonthBill:
    def test_is_a_pdf_too(self, api: ApiClient, month: list[Invoice]) -> None:
        answer = api.get("/v1/bills/2026-11", format="pdf")
        assert answer.status == 200
        assert answer.content.startswith(b"%PDF-")
        assert 'filename="bill-2026-11.pdf"' in answer.headers["Content-Disposition"]

    def test_names_its_documents(self, api: ApiClient, month: list[Invoice]) -> None:
        documents = api.get("/v1/bills/2026-11").json["documents"]
        assert [(each["number"], each["state"]) for each in documents] == [
            ("HR-2026-000001", "paid"),
            ("HR-CN-2026-000001", None),
        ]

    def test_of_a_reservation_names_its_documents(
        self, api: ApiClient, month: list[Invoice]
    ) -> None:
        row = Reservation.objects.get()
        documents = api.get(f"/v1/reservations/{row.pk}/bill").json["documents"]
        assert [each["id"] for each in documents] == [each.pk for each in month]


class TestBillingProfile:
    BODY = {
        "legal_name": "Perceptron AG",
        "street": "Bahnhofstrasse 1",
        "city": "Zürich",
        "country": "CH",
        "tax_id": "CHE-1",
        "purchase_order_number": "PO 7",
        "email": "a@example.com",
    }

    def test_is_the_organizations_name_before_anybody_said_more(
        self, api: ApiClient, organization: Organization
    ) -> None:
        answer = api.get("/v1/billing-profile").json
        assert (answer["legal_name"], answer["updated_at"]) == (organization.name, None)
        assert not BillingProfile.objects.exists()

    def test_is_replaced_as_a_whole_and_leaves_a_line_in_the_trail(self, api: ApiClient) -> None:
        first = api.call("PUT", "/v1/billing-profile", body=self.BODY)
        assert (first.status, first.json["city"]) == (200, "Zürich")
        again = api.call("PUT", "/v1/billing-profile", body={"legal_name": "Other AG"})
        assert (again.json["legal_name"], again.json["city"]) == ("Other AG", "")
        assert api.get("/v1/billing-profile").json == again.json
        assert AuditEvent.objects.filter(action="billing_profile.changed").count() == 2

    def test_is_on_the_documents_that_come_after_it(
        self, api: ApiClient, organization: Organization
    ) -> None:
        books.reservation(buyer=funded(organization))
        api.call("PUT", "/v1/billing-profile", body=self.BODY)
        (invoice,) = invoices.issue_month(organization=organization, month="2026-11", at=CLOSED_AT)
        api.call("PUT", "/v1/billing-profile", body={"legal_name": "Other AG"})
        answer = api.get(f"/v1/invoices/{invoice.pk}").json
        assert (answer["buyer"]["name"], answer["purchase_order_number"]) == (
            "Perceptron AG",
            "PO 7",
        )

    @pytest.mark.parametrize(
        "change",
        [
            {"legal_name": ""},
            {"legal_name": "x" * 201},
            {"legal_name": None},
            {"country": "Switzerland"},
            {"country": "ch"},
            {"email": "nobody"},
            {"tax_id": "1" * 41},
            {"vat": "1"},
        ],
    )
    def test_refuses_what_is_no_profile(self, api: ApiClient, change: dict[str, object]) -> None:
        answer = api.call("PUT", "/v1/billing-profile", body={**self.BODY, **change})
        assert (answer.status, answer.code) == (422, "invalid_request")
        assert not BillingProfile.objects.exists()

    def test_takes_the_scope_to_write(self, api: ApiClient, organization: Organization) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.BILLING_READ])
        answer = api.signed_in(secret=secret).call("PUT", "/v1/billing-profile", body=self.BODY)
        assert (answer.status, answer.code) == (403, "scope_missing")
