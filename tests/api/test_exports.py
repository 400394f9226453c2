"""The FOCUS files over HTTP: whose, of which month, in which form."""

import csv
import io
from decimal import Decimal

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from billing import focus, wallet
from billing.focus import Dataset, Version, reading
from marketplace.core.money import Money
from marketplace.models import Organization
from marketplace.states import Scope
from tests.billing import factories as books
from tests.billing.focus import world
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db

PATH = "/v1/exports/focus"
FILES = sorted((version.value, dataset.value) for version, dataset in focus.COLUMNS)


def download(organization: Organization, **query: str):
    _, secret = a_key(organization=organization)
    return Client().get(
        PATH, {"month": "2026-11", **query}, headers={"Authorization": f"Bearer {secret}"}
    )


def rows(organization: Organization, **query: str) -> list[dict[str, str]]:
    answer = download(organization, **query)
    assert answer.status_code == 200, answer.content
    return list(csv.DictReader(io.StringIO(answer.getvalue().decode())))


class TestFile:
    def test_is_streamed_under_a_name_that_tells_what_it_is(
        self, organization: Organization
    ) -> None:
        answer = download(organization, version="1.2")
        assert answer.streaming
        assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
        name = "focus-1.2-cost_and_usage-2026-11.csv"
        assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}"'

    @pytest.mark.parametrize(("version", "dataset"), FILES)
    def test_of_an_empty_month_has_a_header(
        self, organization: Organization, version: str, dataset: str
    ) -> None:
        answer = download(organization, version=version, dataset=dataset)
        header, *found = answer.getvalue().decode().splitlines()
        columns = focus.COLUMNS[Version(version), Dataset(dataset)]
        assert header.split(",") == list(columns)
        assert len(found) == (dataset == Dataset.BILLING_PERIOD)

    def test_is_of_the_newest_version_and_of_charges_unless_told_otherwise(
        self, organization: Organization
    ) -> None:
        books.reservation(buyer=books_of(organization))
        (row,) = rows(organization)
        assert row == rows(organization, version="1.4", dataset="cost_and_usage")[0]
        assert Decimal(row["BilledCost"]) == Decimal("4.71")
        assert "ServiceProviderName" in row

    def test_keeps_what_a_tenant_wrote_from_being_a_formula(
        self, organization: Organization
    ) -> None:
        reservation = books.reservation(buyer=books_of(organization))
        type(reservation).objects.update(name="=1+1", project='@"x', tags={"a": "=2"})
        (row,) = rows(organization)
        assert (row["ResourceName"], row["SubAccountId"]) == ("'=1+1", "'@\"x")
        assert row["Tags"] == '{"a": "=2"}'

    def test_has_nothing_of_another_tenant(self, organization: Organization) -> None:
        world.lived_in()
        for version, dataset in FILES:
            found = rows(organization, version=version, dataset=dataset)
            assert len(found) == (dataset == Dataset.BILLING_PERIOD)

    def test_takes_no_query_more_for_more_rows(self, organization: Organization) -> None:
        counts = []
        books_of(organization)
        for _ in range(2):
            for _ in range(3):
                books.reservation(buyer=organization)
            with CaptureQueriesContext(connection) as captured:
                found = rows(organization)
            counts.append((len(captured), len(found)))
        assert [number for _, number in counts] == [3, 6]
        assert counts[0][0] == counts[1][0]

    def test_takes_the_same_queries_for_each_page(
        self, organization: Organization, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reading, "ROWS_PER_PAGE", 2)
        books_of(organization)
        for _ in range(4):
            books.reservation(buyer=organization)
        with CaptureQueriesContext(connection) as captured:
            found = rows(organization)
        of_pages = [q for q in captured.captured_queries if "billing_invoiceline" in q["sql"]]
        assert (len(found), len(of_pages)) == (4, 2)


class TestRefusals:
    @pytest.mark.parametrize(
        "query",
        [
            {"month": "2026-13"},
            {"month": "2026-1"},
            {"month": "november"},
            {"month": "9999-01"},
            {"month": "9999-12"},
            {"version": "1.3"},
            {"dataset": "invoices"},
            {"month": ""},
            {"since": "2026-11"},
            {"version": "1.2", "dataset": "contract_commitment"},
            {"version": "1.2", "dataset": "invoice_detail"},
            {"version": "1.2", "dataset": "billing_period"},
        ],
    )
    def test_name_the_part_of_the_question_that_does_not_fit(
        self, api: ApiClient, query: dict[str, str]
    ) -> None:
        answer = api.get(PATH, **{"month": "2026-11", **query})
        assert answer.status == 422
        named = {error["pointer"] for error in answer.json["errors"]}
        assert named <= {f"/{name}" for name in query}
        assert named

    def test_ask_for_a_month(self, api: ApiClient) -> None:
        answer = api.get(PATH)
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/month")

    def test_meet_a_key_without_the_scope(self, organization: Organization) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.OWNER_READ])
        assert ApiClient(secret=secret).get(PATH, month="2026-11").code == "scope_missing"

    def test_meet_a_caller_without_a_key(self, anybody: ApiClient) -> None:
        assert anybody.get(PATH, month="2026-11").code == "api_key_required"


def test_a_stranger_sees_the_same_as_somebody_without_business() -> None:
    world.lived_in()
    assert rows(an_organization()) == []


def books_of(organization: Organization) -> Organization:
    """Return the organization with money in its wallet."""

    wallet.record_deposit(
        organization=organization,
        amount=Money(100_000, "usd"),
        idempotency_key="funds",
        at=books.START,
        actor="test",
    )
    return organization
