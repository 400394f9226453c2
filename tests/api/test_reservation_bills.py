"""The bill of a reservation in its four forms: they say the same, and what the bill of its month says."""

import csv
import datetime as dt
import io
from typing import Any

import pytest
import time_machine
from django.http import HttpResponseBase
from django.test import Client
from pypdf import PdfReader

from billing import budgets, settlements
from billing.budgets import BudgetWish
from billing.states import BudgetMode, BudgetPeriod
from marketplace.models import Organization
from scheduler.models import Quote, Reservation
from scheduler.states import LeaseStatus, ReservationStatus
from tests.api.test_month_bills import funded
from tests.billing import factories as books
from tests.conftest import ApiClient
from tests.factories import a_key

pytestmark = pytest.mark.django_db
LATER = books.START + dt.timedelta(days=20)
# What the two bills have under one name.
SHARED = (
    "contracted",
    "earned",
    "refunded",
    "fees",
    "credits",
    "list_cost",
    "billed",
    "effective",
    "tax",
)


@pytest.fixture
def reservation(organization: Organization) -> Reservation:
    """Return one of two GPUs for an hour at a surge of a fifth, of which half an hour was delivered."""
    row = books.reservation(buyer=funded(organization), status=ReservationStatus.COMPLETED)
    Quote.objects.update(price_breakdown={"base_rate": "1.960785", "multiplier": "1.20"})
    Reservation.objects.update(name="=night <run>", project="vision", tags={"team": "a"})
    lease = books.lease(of=row, returned_after_seconds=1800)
    for gpu in range(2):
        books.meter(
            of=lease,
            gpu=gpu,
            seconds=900,
            busy=450,
            attached=600,
            energy_millijoules=1_800_000_000,
        )
    settlements.settle_ended(at=LATER)
    row.refresh_from_db()
    return row


def bill_of(api: ApiClient, reservation: Reservation) -> dict[str, Any]:
    answer = api.get(f"/v1/reservations/{reservation.pk}/bill")
    assert answer.status == 200, answer.content
    bill: dict[str, Any] = answer.json
    return bill


def file_of(reservation: Reservation, form: str) -> HttpResponseBase:
    _, secret = a_key(organization=reservation.organization)
    answer = Client().get(
        f"/v1/reservations/{reservation.pk}/bill?format={form}",
        headers={"Authorization": f"Bearer {secret}"},
    )
    assert answer.status_code == 200
    return answer


def row_of(reservation: Reservation) -> dict[str, str]:
    answer = file_of(reservation, "csv")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    (row,) = csv.DictReader(io.StringIO(answer.getvalue().decode()))
    return row


class TestJson:
    def test_says_what_it_cost_and_whose_it_is(
        self, api: ApiClient, reservation: Reservation
    ) -> None:
        bill = bill_of(api, reservation)
        assert bill["final"]
        assert (bill["name"], bill["project"], bill["tags"]) == (
            "=night <run>",
            "vision",
            {"team": "a"},
        )
        assert (bill["gpus"], bill["gpu_model"], bill["bought_by"]) == (2, "h100-sxm-80gb", "test")
        seconds = bill["gpu_seconds"]
        assert (seconds["bought"], seconds["delivered"]) == (7200, 3600)
        assert (seconds["attached"], seconds["busy"]) == (1200, 900)
        amounts = {name: bill[name]["amount_minor"] for name in (*SHARED, "bought", "net")}
        assert (amounts["bought"], amounts["contracted"]) == (471, 471)
        assert amounts["billed"] == amounts["net"] == amounts["effective"] == 236
        # One hour is left of two, at 1.960785.
        assert amounts["list_cost"] == 196
        assert bill["cost_per_attached_gpu_hour"] == "7.080000"
        assert bill["commitments_ahead"] == []
        assert bill["annex"]["focus"][0].startswith("/v1/exports/focus?month=2026-11&version=1.4")

    def test_says_the_same_as_the_bill_of_its_month(
        self, api: ApiClient, reservation: Reservation
    ) -> None:
        bill = bill_of(api, reservation)
        (month,) = api.get("/v1/bills/2026-11").json["reservations"]
        for name in (*SHARED, "meter_coverage", "energy_kwh", "cost_per_busy_gpu_hour"):
            assert bill[name] == month[name], name
        for name in ("bought", "delivered", "attached", "busy", "undelivered", "released"):
            assert bill["gpu_seconds"][name] == month["gpu_seconds"][name], name

    def test_says_what_lies_ahead_and_what_is_left_of_its_budgets(
        self, api: ApiClient, organization: Organization
    ) -> None:
        row = books.reservation(buyer=funded(organization), status=ReservationStatus.SCHEDULED)
        Reservation.objects.update(project="vision")
        budgets.put(
            organization=organization,
            wishes=[
                BudgetWish(
                    project=project,
                    period=BudgetPeriod.MONTH,
                    mode=BudgetMode.HARD,
                    amount_minor=1000,
                )
                for project in ("", "vision", "audio")
            ],
            only_if=None,
            at=books.START,
            actor="test",
        )
        with time_machine.travel(books.START - dt.timedelta(minutes=10), tick=False):
            bill = bill_of(api, row)
        assert not bill["final"]
        assert bill["cost_per_delivered_gpu_hour"] is None
        (ahead,) = bill["commitments_ahead"]
        assert (ahead["month"], ahead["gpu_seconds"]) == ("2026-11", 7200)
        assert [each["project"] for each in bill["budgets"]] == ["", "vision"]


class TestCsv:
    def test_is_a_row_in_the_columns_of_the_month(
        self, api: ApiClient, reservation: Reservation
    ) -> None:
        bill, row = bill_of(api, reservation), row_of(reservation)
        _, secret = a_key(organization=reservation.organization)
        answer = Client().get(
            "/v1/bills/2026-11?format=csv", headers={"Authorization": f"Bearer {secret}"}
        )
        (month,) = csv.DictReader(io.StringIO(answer.getvalue().decode()))
        assert list(row) == list(month)
        assert list(row)[-1] == "list_cost_minor"
        assert row == month
        assert row["name"] == "'=night <run>"
        for name in SHARED:
            assert row[f"{name}_minor"] == str(bill[name]["amount_minor"])

    def test_leaves_out_what_is_not_known_yet(self, organization: Organization) -> None:
        row = books.reservation(buyer=funded(organization))
        books.lease(of=row, status=LeaseStatus.ACTIVE)
        cells = row_of(row)
        assert cells["cost_per_delivered_gpu_hour"] == cells["energy_kwh"] == ""
        assert cells["gpu_seconds_attached"] == cells["gpu_seconds_busy"] == ""


class TestPage:
    def test_needs_nothing_else_and_shows_words_as_words(self, reservation: Reservation) -> None:
        answer = file_of(reservation, "html")
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        text = answer.getvalue().decode()
        assert "<h1>Bill of =night &lt;run&gt;</h1>" in text
        for words in ("1.96 USD", "2.36 USD", "0.33 (33.3 %)", "team: a", "vision", "7.080000"):
            assert words in text, words
        assert "src=" not in text
        assert "href=" not in text

    def test_of_what_runs_says_that_it_is_not_final(self, organization: Organization) -> None:
        row = books.reservation(buyer=funded(organization))
        books.lease(of=row, status=LeaseStatus.ACTIVE)
        text = file_of(row, "html").getvalue().decode()
        assert "not final" in text


class TestPdf:
    def test_says_what_the_json_says(self, api: ApiClient, reservation: Reservation) -> None:
        answer = api.get(f"/v1/reservations/{reservation.pk}/bill", format="pdf")
        assert answer.headers["Content-Type"] == "application/pdf"
        reader = PdfReader(io.BytesIO(answer.content))
        assert len(reader.pages) == 1
        text = reader.pages[0].extract_text()
        for words in ("=night <run>", reservation.pk, "At list price", "1.96", "vision", "Final."):
            assert words in text, words

    def test_that_is_final_is_the_same_bytes_later(
        self, api: ApiClient, reservation: Reservation
    ) -> None:
        path = f"/v1/reservations/{reservation.pk}/bill"
        first = api.get(path, format="pdf")
        with time_machine.travel(dt.datetime.now(tz=dt.UTC) + dt.timedelta(days=1), tick=False):
            assert api.get(path, format="pdf").content == first.content


def test_refuses_a_form_that_there_is_not(api: ApiClient, reservation: Reservation) -> None:
    answer = api.get(f"/v1/reservations/{reservation.pk}/bill", format="xml")
    assert answer.status == 422


@pytest.mark.parametrize("form", ["json", "csv", "html", "pdf"])
def test_of_another_organization_is_not_there(api: ApiClient, form: str) -> None:
    stranger = books.reservation(buyer=books.tenant(funds_minor=471))
    assert api.get(f"/v1/reservations/{stranger.pk}/bill", format=form).status == 404
