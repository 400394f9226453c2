"""The FOCUS files over HTTP: whose, of which month, in which form."""

import csv
import datetime as dt
import hashlib
import io
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
import time_machine
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from billing import budgets, focus, invoices, settlements, wallet
from billing.focus import Dataset, Version, reading, slots
from marketplace.core.money import Money
from marketplace.models import Organization
from marketplace.states import Scope
from scheduler.details import DetailChanges
from tests.billing import factories as books
from tests.billing.focus import world
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db

PATH = "/v1/exports/focus"
MANIFEST = f"{PATH}/manifest"
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


class TestManifest:
    def test_says_what_the_file_is(self, organization: Organization, api: ApiClient) -> None:
        books.reservation(buyer=books_of(organization))
        for version, dataset in FILES:
            if dataset == Dataset.BILLING_PERIOD:
                continue  # of an open month it says when it was read
            query = {"month": "2026-11", "version": version, "dataset": dataset}
            content = download(organization, **query).getvalue()
            found = api.get(MANIFEST, **query).json
            assert found["sha256"] == hashlib.sha256(content).hexdigest()
            assert found["size_bytes"] == len(content)
            assert found["rows"] == len(content.splitlines()) - 1
            assert found["file_name"] == f"focus-{version}-{dataset}-2026-11.csv"
            assert (found["delivery"], found["closed_at"], found["is_final"]) == (
                "overwrite",
                None,
                False,
            )
            names = [column["name"] for column in found["columns"]]
            assert names == list(focus.COLUMNS[Version(version), Dataset(dataset)])

    def test_of_a_closed_month_stays_whatever_happens_later(
        self, organization: Organization, api: ApiClient
    ) -> None:
        reservation = books.reservation(buyer=books_of(organization))
        closed_at = dt.datetime(2026, 12, 2, tzinfo=dt.UTC)
        invoices.issue_month(organization=organization, month="2026-11", at=closed_at)
        kept = [each for each in FILES if each[1] != Dataset.CONTRACT_COMMITMENT]

        def manifests() -> list[Any]:
            return [
                api.get(MANIFEST, month="2026-11", version=version, dataset=dataset).json
                for version, dataset in kept
            ]

        before = manifests()
        assert {each["delivery"] for each in before} == {"append"}
        assert {each["closed_at"] for each in before} == {"2026-12-02T00:00:00Z"}
        lease = books.lease(of=reservation, returned_after_seconds=1800)
        settlements.settle(lease_id=lease.pk, at=closed_at + dt.timedelta(hours=1))
        budgets.change_details(
            reservation=reservation,
            changes=DetailChanges(name="renamed", project="moved", tags={"a": "b"}),
            at=closed_at + dt.timedelta(hours=1),
            actor="test",
        )
        Organization.objects.filter(pk=organization.pk).update(name="Adaline GmbH")
        assert [each["sha256"] for each in manifests()] == [each["sha256"] for each in before]
        commitments = api.get(MANIFEST, month="2026-11", dataset="contract_commitment").json
        assert (commitments["delivery"], commitments["is_final"]) == ("overwrite", False)

    def test_is_final_an_hour_after_the_close(
        self, organization: Organization, api: ApiClient
    ) -> None:
        books.reservation(buyer=books_of(organization))
        closed_at = dt.datetime(2026, 12, 2, tzinfo=dt.UTC)
        invoices.issue_month(organization=organization, month="2026-11", at=closed_at)
        for minutes, is_final in ((59, False), (60, True)):
            with time_machine.travel(closed_at + dt.timedelta(minutes=minutes), tick=False):
                assert api.get(MANIFEST, month="2026-11").json["is_final"] is is_final

    def test_that_is_final_reads_its_file_once_and_no_other_does(
        self, organization: Organization, api: ApiClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        books.reservation(buyer=books_of(organization))
        closed_at = dt.datetime(2026, 12, 2, tzinfo=dt.UTC)
        read = []
        right = focus.lines

        def lines(**wish: Any) -> Any:
            read.append(wish["dataset"])
            return right(**wish)

        monkeypatch.setattr(focus, "lines", lines)
        with time_machine.travel(closed_at, tick=False):
            api.get(MANIFEST, month="2026-11")
            api.get(MANIFEST, month="2026-11")
            assert len(read) == 2
        invoices.issue_month(organization=organization, month="2026-11", at=closed_at)
        with time_machine.travel(closed_at + dt.timedelta(hours=2), tick=False):
            first = api.get(MANIFEST, month="2026-11").json
            assert api.get(MANIFEST, month="2026-11").json == first
            assert len(read) == 3
            for _ in range(2):
                api.get(MANIFEST, month="2026-11", dataset="contract_commitment")
            assert len(read) == 5
            content = download(organization, month="2026-11").getvalue()
        assert first["sha256"] == hashlib.sha256(content).hexdigest()

    def test_names_the_type_of_each_column(self, api: ApiClient) -> None:
        found = api.get(MANIFEST, month="2026-11").json["columns"]
        types = {column["name"]: column["data_type"] for column in found}
        assert types["BilledCost"] == types["x_BusyGpuHours"] == "decimal"
        assert types["ChargePeriodStart"] == types["BillingPeriodEnd"] == "datetime"
        assert types["Tags"] == types["ContractApplied"] == "json"
        assert types["InvoiceId"] == types["x_LeaseId"] == "string"

    def test_refuses_what_the_export_refuses(self, api: ApiClient) -> None:
        answer = api.get(MANIFEST, month="2026-11", version="1.2", dataset="invoice_detail")
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/dataset")


class TestSlots:
    @pytest.fixture
    def others(self) -> Iterator[psycopg.Connection[Any]]:
        """Return a session of the database that reads exports beside the one of the test."""
        with psycopg.connect(**connection.get_connection_params(), autocommit=True) as session:
            yield session

    def take(
        self, session: psycopg.Connection[Any], organization: Organization, *, slots: int
    ) -> None:
        for number in range(slots):
            session.execute(
                "SELECT pg_advisory_lock(hashtextextended(%s, 0))",
                [f"export:{organization.pk}:{number}"],
            )

    def test_are_so_many_and_no_more(
        self, organization: Organization, api: ApiClient, others: psycopg.Connection[Any]
    ) -> None:
        self.take(others, organization, slots=slots.EXPORTS_AT_ONCE_MAX - 1)
        assert download(organization).getvalue()
        self.take(others, organization, slots=slots.EXPORTS_AT_ONCE_MAX)
        for path in (PATH, MANIFEST):
            answer = api.get(path, month="2026-11")
            assert (answer.status, answer.code) == (429, "too_many_exports")
            assert answer.headers["Retry-After"] == str(slots.RETRY_AFTER_SECONDS)
        assert download(an_organization()).getvalue()

    @pytest.mark.parametrize("read", ["to its end", "not at all", "in part"])
    def test_are_given_back_when_a_file_is_read_or_its_reader_goes(
        self, organization: Organization, others: psycopg.Connection[Any], read: str
    ) -> None:
        answer = download(organization)
        if read == "to its end":
            assert answer.getvalue()
        elif read == "in part":
            next(iter(answer.streaming_content))
        answer.close()
        for number in range(slots.EXPORTS_AT_ONCE_MAX):
            name = f"export:{organization.pk}:{number}"
            row = others.execute(
                "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [name]
            ).fetchone()
            assert row == (True,)


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
