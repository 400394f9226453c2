"""The bill of a month: it adds up to the books, and says nothing where nothing is known."""

import csv
import datetime as dt
import io
from typing import Any

import pytest
from django.db import connection
from django.db.models import Sum
from django.test import Client
from django.test.utils import CaptureQueriesContext

from billing import earnings, ledger, month_bills, refunds, settlements, wallet
from billing.models import Settlement
from billing.purchases import reservation_account
from billing.states import AccountKind
from marketplace.api import bill_page
from marketplace.core.money import Money
from marketplace.core.windows import Window
from marketplace.models import Organization
from marketplace.states import Scope
from scheduler.models import Reservation, ReservationTransition
from scheduler.states import LeaseStatus, ReservationStatus
from tests.billing import factories as books
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db
LATER = books.START + dt.timedelta(days=20)
SEPTEMBER, OCTOBER, NOVEMBER, DECEMBER = "2026-09", "2026-10", "2026-11", "2026-12"
# Two hours before the end of October, so that the window of four hours lies in two months.
BOUNDARY = dt.datetime(2026, 10, 31, 22, tzinfo=dt.UTC)


def minor(figures: dict[str, Any], name: str) -> int:
    amount: int = figures[name]["amount_minor"]
    return amount


def adds_up(figures: dict[str, Any]) -> bool:
    """Say whether the identities hold that the contract names."""
    seconds = figures["gpu_seconds"]
    ins = minor(figures, "opening") + minor(figures, "charged")
    outs = sum(minor(figures, name) for name in ("earned", "refunded", "fees", "closing"))
    placed = ("delivered", "undelivered", "released", "closing")
    return (
        ins == outs
        and seconds["opening"] + seconds["bought"] == sum(seconds[name] for name in placed)
        and minor(figures, "billed") == minor(figures, "charged") - minor(figures, "refunded")
        and minor(figures, "effective") == minor(figures, "earned") + minor(figures, "fees")
    )


def month(api: ApiClient, name: str = NOVEMBER) -> dict[str, Any]:
    answer = api.get(f"/v1/bills/{name}")
    assert answer.status == 200, answer.content
    bill: dict[str, Any] = answer.json
    for figures in (bill["total"], *bill["reservations"], *bill["by_project"], *bill["by_tag"]):
        assert adds_up(figures), figures
    return bill


def funded(organization: Organization, *, minor: int = 100_000) -> Organization:
    wallet.record_deposit(
        organization=organization,
        amount=Money(minor, "usd"),
        idempotency_key="funds",
        at=books.START - dt.timedelta(days=10),
        actor="test",
    )
    return organization


@pytest.fixture
def half_delivered(organization: Organization) -> Settlement:
    """Return the settlement of two GPUs for an hour, half of which was delivered."""
    reservation = books.reservation(buyer=funded(organization), status=ReservationStatus.COMPLETED)
    Reservation.objects.filter(pk=reservation.pk).update(
        project="vision", tags={"team": "a", "cost": "9"}
    )
    lease = books.lease(of=reservation, returned_after_seconds=1800)
    for gpu in range(2):
        books.meter(of=lease, gpu=gpu, seconds=900, busy=450, energy_millijoules=1_800_000_000)
    settlements.settle_ended(at=LATER)
    return Settlement.objects.get(lease=lease)


@pytest.fixture
def across_the_boundary(organization: Organization, monkeypatch: Any) -> Reservation:
    """Return a settled reservation of four hours: two in October, two in November."""
    monkeypatch.setattr(books, "START", BOUNDARY)
    reservation = books.reservation(buyer=funded(organization), hours=4)
    lease = books.lease(of=reservation, status=LeaseStatus.ACTIVE)
    books.meter_fully(of=lease)
    at = BOUNDARY + dt.timedelta(hours=8)
    while earnings.close_due(at=at):
        pass
    lease.status, lease.closed_at, lease.returned_at = LeaseStatus.ENDED, at, lease.ends_at
    lease.save()
    Reservation.objects.filter(pk=reservation.pk).update(status=ReservationStatus.COMPLETED)
    settlements.settle_ended(at=LATER)
    return reservation


class TestMonth:
    def test_reconciles_with_the_settlement_and_the_wallet(
        self, api: ApiClient, organization: Organization, half_delivered: Settlement
    ) -> None:
        bill = month(api)
        (row,) = bill["reservations"]
        assert row["reservation_id"] == half_delivered.lease.reservation_id
        assert minor(row, "charged") == minor(row, "contracted") == 471
        assert minor(row, "earned") == half_delivered.earned_minor > 0
        assert minor(row, "refunded") == half_delivered.refunded_minor > 0
        assert minor(row, "credits") == half_delivered.credit_minor > 0
        spent = minor(row, "billed") - minor(row, "credits")
        assert wallet.balance(organization=organization) == Money(100_000 - spent, "usd")
        assert row["gpu_seconds"] == {
            "promised": 7200,
            "opening": 0,
            "bought": 7200,
            "delivered": 3600,
            "attached": None,
            "busy": 900,
            "undelivered": 3600,
            "released": 0,
            "closing": 0,
            "undelivered_by_reason": [{"reason": "unknown", "gpu_seconds": 3600}],
        }
        assert (row["meter_coverage"], row["energy_kwh"]) == ("0.5000", "1.000000")
        total = {name: row[name] for name in bill["total"]}
        assert total == bill["total"]

    def test_is_grouped_by_project_and_by_each_tag(
        self, api: ApiClient, organization: Organization, half_delivered: Settlement
    ) -> None:
        books.reservation(buyer=organization, status=ReservationStatus.SCHEDULED)
        bill = month(api)
        earned = half_delivered.earned_minor
        assert [(each["project"], minor(each, "earned")) for each in bill["by_project"]] == [
            ("", 0),
            ("vision", earned),
        ]
        assert [(each["tag"], each["value"], minor(each, "earned")) for each in bill["by_tag"]] == [
            ("cost", "9", earned),
            ("team", "a", earned),
        ]

    def test_is_divided_by_who_bought_and_says_what_has_no_tag(
        self, api: ApiClient, organization: Organization, half_delivered: Settlement
    ) -> None:
        row = books.reservation(buyer=organization)
        key, _ = a_key(organization=organization)
        ReservationTransition.objects.filter(reservation=row).update(actor=key.pk)
        books.lease(of=row)
        settlements.settle_ended(at=LATER)
        bill = month(api)
        earned = half_delivered.earned_minor
        assert [
            (each["bought_by"], each["bought_by_name"], minor(each, "earned"), each["share"])
            for each in bill["by_buyer"]
        ] == [
            (key.pk, key.name, 471, "0.6662"),
            ("test", "test", earned, "0.3338"),
        ]
        assert (minor(bill["untagged"], "earned"), bill["untagged"]["share"]) == (471, "0.6662")
        named = {each["reservation_id"]: each for each in bill["reservations"]}
        assert named[row.pk]["bought_by_name"] == key.name
        assert named[row.pk]["lease_ids"] == [row.leases.get().pk]

    def test_is_divided_by_any_tag_without_rest(
        self, api: ApiClient, organization: Organization, half_delivered: Settlement
    ) -> None:
        books.reservation(buyer=organization, status=ReservationStatus.SCHEDULED)
        answer = api.get(f"/v1/bills/{NOVEMBER}", group_by="tag:team")
        division = answer.json["allocation"]
        assert division["group_by"] == "tag:team"
        assert [(each["value"], each["name"]) for each in division["groups"]] == [
            ("a", "a"),
            (None, "none"),
        ]
        for name in ("charged", "earned", "refunded", "closing"):
            parts = sum(minor(each, name) for each in division["groups"])
            assert parts == minor(answer.json["total"], name), name
        assert api.get(f"/v1/bills/{NOVEMBER}").json["allocation"] is None

    def test_has_what_a_gpu_hour_cost_in_the_months_before(
        self, api: ApiClient, across_the_boundary: Reservation
    ) -> None:
        trend = month(api)["trend"]
        assert [each["month"] for each in trend] == [SEPTEMBER, OCTOBER, NOVEMBER]
        assert trend[0]["cost_per_delivered_gpu_hour"] is None
        assert trend[1]["cost_per_delivered_gpu_hour"] == "2.352500"
        assert trend[2]["cost_per_attached_gpu_hour"] is None
        assert float(trend[2]["cost_per_busy_gpu_hour"]) > 2.4
        assert month(api, OCTOBER)["trend"][-1]["effective"] == trend[1]["effective"]

    def test_names_where_its_evidence_is(
        self, organization: Organization, half_delivered: Settlement
    ) -> None:
        _, secret = a_key(organization=organization)
        api = ApiClient(secret=secret)
        annex = month(api)["annex"]
        assert len(annex["focus"]) == 5
        for path in annex["focus"]:
            answer = Client().get(path, headers={"Authorization": f"Bearer {secret}"})
            assert answer.status_code == 200, path
        path, _, wanted = annex["utilization"].partition("?")
        name, _, value = wanted.partition("=")
        path = path.format(lease_id=half_delivered.lease_id)
        assert api.get(path, **{name: value}).status == 200

    def test_says_null_where_nothing_was_measured(
        self, api: ApiClient, organization: Organization
    ) -> None:
        books.lease(of=books.reservation(buyer=funded(organization)))
        settlements.settle_ended(at=LATER)
        total = month(api)["total"]
        assert total["gpu_seconds"]["delivered"] == 7200
        assert total["gpu_seconds"]["busy"] is None
        assert total["energy_kwh"] is None
        assert total["cost_per_busy_gpu_hour"] is None
        assert total["meter_coverage"] == "0.0000"

    def test_shows_what_is_given_out_of_goodwill_without_a_reservation(
        self, api: ApiClient, organization: Organization
    ) -> None:
        refunds.give(
            organization=organization,
            subject_id=organization.pk,
            amount=Money(77, "usd"),
            key="sorry",
            at=books.START,
        )
        (row,) = month(api)["reservations"]
        assert (row["reservation_id"], minor(row, "credits")) == (None, 77)

    def test_is_not_final_while_a_lease_of_it_is_open(self, organization: Organization) -> None:
        lease = books.lease(
            of=books.reservation(buyer=funded(organization)), status=LeaseStatus.ACTIVE
        )
        january = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
        for is_final in (False, True):
            bill = month_bills.month_bill(organization=organization, month=NOVEMBER, at=january)
            assert bill.final is is_final
            lease.status, lease.closed_at = LeaseStatus.ENDED, lease.ends_at
            lease.returned_at = lease.ends_at
            lease.save()
            settlements.settle_ended(at=LATER)

    def test_names_what_is_promised_after_it(
        self, api: ApiClient, organization: Organization
    ) -> None:
        reservation = books.reservation(
            buyer=funded(organization), status=ReservationStatus.SCHEDULED
        )
        year_on = dt.timedelta(days=3650)
        Reservation.objects.filter(pk=reservation.pk).update(
            starts_at=reservation.starts_at + year_on,
            ends_at=reservation.ends_at + year_on,
            lots=[
                lot
                | {
                    name: [[s + 315_360_000, e + 315_360_000, r] for s, e, r in lot[name]]
                    for name in ("floors", "tariff")
                }
                for lot in reservation.lots
            ],
        )
        bill = month(api)
        assert bill["commitments_ahead"]["reservations"] == 1
        (ahead,) = bill["commitments_ahead"]["by_month"]
        assert (ahead["month"], ahead["gpu_seconds"]) == ("2036-10", 7200)
        assert minor(ahead, "contracted") == 471
        assert bill["commitments_ahead"]["gpu_seconds"] == 7200
        assert minor(bill["commitments_ahead"], "contracted") == 471
        assert minor(bill["total"], "contracted") == 0
        assert minor(bill["total"], "closing") == 471


class TestMonthsOfOneReservation:
    def test_make_its_settlement_and_its_price(
        self, api: ApiClient, across_the_boundary: Reservation
    ) -> None:
        october, november = month(api, OCTOBER)["total"], month(api, NOVEMBER)["total"]
        settlement = Settlement.objects.get()
        for name, whole in {
            "earned": settlement.earned_minor,
            "contracted": across_the_boundary.total_minor,
            "charged": across_the_boundary.total_minor,
        }.items():
            assert minor(october, name) + minor(november, name) == whole
        # The hour that ends at midnight is October's.
        assert october["gpu_seconds"]["delivered"] == 2 * 7200
        assert november["gpu_seconds"]["delivered"] == 2 * 7200
        assert minor(october, "closing") == minor(november, "opening") > 0

    def test_end_at_what_the_books_have(
        self, api: ApiClient, across_the_boundary: Reservation
    ) -> None:
        total = month(api)["total"]
        deferred = reservation_account(
            kind=AccountKind.DEFERRED, reservation=across_the_boundary, currency="usd"
        )
        assert minor(total, "closing") == ledger.balance(account=deferred) == 0

    def test_include_one_that_lies_before_it_began(
        self, api: ApiClient, across_the_boundary: Reservation
    ) -> None:
        before = month(api, SEPTEMBER)
        assert before["reservations"] == []
        assert minor(before["total"], "closing") == 0


class TestCsv:
    def test_has_the_rows_of_the_bill(self, half_delivered: Settlement) -> None:
        Reservation.objects.update(name="=1+1")
        _, secret = a_key(organization=half_delivered.lease.reservation.organization)
        answer = Client().get(
            f"/v1/bills/{NOVEMBER}?format=csv", headers={"Authorization": f"Bearer {secret}"}
        )
        assert answer.status_code == 200
        assert answer.streaming
        (row,) = csv.DictReader(io.StringIO(answer.getvalue().decode()))
        earned = Settlement.objects.aggregate(sum=Sum("earned_minor"))["sum"]
        assert int(row["earned_minor"]) == earned
        assert row["reservation_id"] == half_delivered.lease.reservation_id
        assert row["gpu_seconds_attached"] == ""
        assert row["name"] == "'=1+1"
        assert row["starts_at"] == "2026-11-02T08:00:00Z"
        assert (row["gpu_seconds_undelivered_unknown"], row["bought_by"]) == ("3600", "test")

    def test_has_a_row_for_each_group(self, half_delivered: Settlement) -> None:
        Reservation.objects.update(tags={"team": "=a"})
        _, secret = a_key(organization=half_delivered.lease.reservation.organization)
        answer = Client().get(
            f"/v1/bills/{NOVEMBER}?format=csv&group_by=tag:team",
            headers={"Authorization": f"Bearer {secret}"},
        )
        (row,) = csv.DictReader(io.StringIO(answer.getvalue().decode()))
        assert (row["group_by"], row["value"], row["share"]) == ("tag:team", "'=a", "1.0000")
        assert int(row["earned_minor"]) == half_delivered.earned_minor


class TestPage:
    def test_shows_the_figures_and_runs_nothing_that_a_tenant_wrote(
        self, half_delivered: Settlement
    ) -> None:
        Reservation.objects.update(name="<script>alert(1)</script>")
        _, secret = a_key(organization=half_delivered.lease.reservation.organization)
        answer = Client().get(
            f"/v1/bills/{NOVEMBER}?format=html", headers={"Authorization": f"Bearer {secret}"}
        )
        text = answer.content.decode()
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "&lt;script&gt;" in text
        assert "<script" not in text
        assert str(Money(half_delivered.earned_minor, "usd")) in text
        assert half_delivered.lease.reservation_id in text
        assert bill_page.NOT_MEASURED in text
        assert "no evidence says why" in text
        assert half_delivered.lease_id in text
        assert "/v1/exports/focus?month=2026-11&amp;version=1.4" in text

    def test_is_divided_as_asked_for(self, half_delivered: Settlement) -> None:
        _, secret = a_key(organization=half_delivered.lease.reservation.organization)
        answer = Client().get(
            f"/v1/bills/{NOVEMBER}?format=html&group_by=tag:team",
            headers={"Authorization": f"Bearer {secret}"},
        )
        text = answer.content.decode()
        assert "By tag team" in text
        assert "By project" not in text


class TestRefusals:
    @pytest.mark.parametrize("wrong", ["2026-13", "2026-1", "november", "2026-11-01", "0000-01"])
    def test_name_the_form_of_a_month(self, api: ApiClient, wrong: str) -> None:
        answer = api.get(f"/v1/bills/{wrong}")
        assert (answer.status, answer.code) == (422, "invalid_value")

    def test_meet_a_month_that_has_not_begun(self, api: ApiClient) -> None:
        assert api.get("/v1/bills/9999-01").code == "invalid_value"

    def test_meet_the_last_month_that_a_calendar_has(self, api: ApiClient) -> None:
        assert api.get("/v1/bills/9999-12").code == "invalid_value"

    def test_meet_another_form(self, api: ApiClient) -> None:
        assert api.get(f"/v1/bills/{NOVEMBER}", format="xml").status == 422

    @pytest.mark.parametrize("wrong", ["tag:", "team", "tag", "tag:" + "k" * 201])
    def test_meet_a_division_that_nobody_knows(self, api: ApiClient, wrong: str) -> None:
        assert api.get(f"/v1/bills/{NOVEMBER}", group_by=wrong).status == 422

    def test_meet_a_key_without_the_scope(self, organization: Organization) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.OWNER_READ])
        assert ApiClient(secret=secret).get(f"/v1/bills/{NOVEMBER}").code == "scope_missing"

    def test_show_a_stranger_nothing(self, half_delivered: Settlement) -> None:
        _, secret = a_key(organization=an_organization())
        bill = month(ApiClient(secret=secret))
        assert bill["reservations"] == []
        assert minor(bill["total"], "charged") == 0


def test_a_bill_of_many_reservations_takes_no_query_more(organization: Organization) -> None:
    funded(organization)
    window = Window(books.START - dt.timedelta(days=1), LATER)

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            month_bills.month_bill(organization=organization, month=NOVEMBER, at=LATER)
        return len(captured)

    counts = []
    for _ in range(2):
        for _ in range(4):
            lease = books.lease(of=books.reservation(buyer=organization))
            books.meter_fully(of=lease)
        settlements.settle_ended(at=LATER)
        counts.append(queries())
    assert len(month_bills.rows_of(organization=organization, window=window)) == 8
    assert counts[0] == counts[1]
