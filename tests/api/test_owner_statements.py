"""An owner's month over HTTP: as JSON, as rows that add up, and as a file; of tenants nothing is told."""

import csv
import datetime as dt
import io
from typing import Any

import pytest
from django.test import Client
from reportlab.pdfgen.textobject import PDFTextObject

from billing import payouts, releases, settlements
from billing.models import Payout
from marketplace.models import Organization
from marketplace.states import Scope
from scheduler.models import Lease, Reservation
from tests.billing import factories as books
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db

NOVEMBER = "/v1/owner/statements/2026-11"
RELEASED = books.START + dt.timedelta(days=20)
WORKLOAD = {"name": "secret-llm", "project": "moonshot", "tags": {"team": "red-team"}}


@pytest.fixture(autouse=True)
def _clock(time_machine) -> None:
    time_machine.move_to(books.START + dt.timedelta(days=60), tick=False)


@pytest.fixture
def lease(organization: Organization) -> Lease:
    """Return a lease that was settled, released and sent; a GPU of it was out for a while."""
    tenant = books.tenant(funds_minor=100_000)
    row = books.reservation(buyer=tenant)
    Reservation.objects.filter(pk=row.pk).update(**WORKLOAD)
    made = books.lease(of=row, on=books.node(of=organization))
    books.outage(of=made, seconds=1800)
    settlements.settle_ended(at=books.START + dt.timedelta(days=1))
    releases.release_due(at=RELEASED)
    payouts.send(payout_id=Payout.objects.get().pk, at=RELEASED, actor="test")
    return made


def as_csv(organization: Organization) -> str:
    _, secret = a_key(organization=organization)
    answer = Client().get(f"{NOVEMBER}?format=csv", headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 200
    return answer.content.decode()


def minor(money: dict[str, Any]) -> int:
    return int(money["amount_minor"])


class TestTheAnswer:
    def test_leads_from_balance_to_balance(self, api: ApiClient, lease: Lease) -> None:
        told = api.get(NOVEMBER).json
        (line,) = told["leases"]
        (sent,) = told["lines"]
        (move,) = told["moves"]
        assert line["lease_id"] == move["lease_id"] == lease.pk
        assert minor(line["price"]) - minor(line["fee"]) == minor(line["earned"])
        assert minor(line["sla_share"]) < 0
        assert minor(line["net"]) == -minor(sent["amount"]) == minor(move["payable"])
        assert sent["kind"] == "transfer"
        assert minor(told["opening"]["total"]) == minor(told["closing"]["total"]) == 0
        assert sum(minor(each["amount"]) for each in told["totals"]) == 0
        assert told["final"] is True

    def test_shows_the_evidence_of_a_lease(self, api: ApiClient, lease: Lease) -> None:
        shown = api.get(NOVEMBER).json["leases"][0]["evidence"]
        assert shown["gpu_seconds_delivered"] == 7200 - 1800
        (outage,) = shown["outages"]
        assert (outage["gpu_uuid"], outage["refunded"]) == (lease.gpu_uuids[0], True)

    @pytest.mark.parametrize("form", ["json", "csv", "pdf"])
    def test_tells_nothing_of_the_tenant(
        self,
        api: ApiClient,
        organization: Organization,
        lease: Lease,
        form: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        drawn: list[str] = []
        real = PDFTextObject._formatText

        def keep(self: PDFTextObject, text: object) -> object:
            drawn.append(str(text))
            return real(self, text)

        monkeypatch.setattr(PDFTextObject, "_formatText", keep)
        if form == "csv":
            said = as_csv(organization)
        else:
            answer = api.get(NOVEMBER, format=form)
            said = " ".join(drawn) if form == "pdf" else answer.content.decode()
        assert lease.pk in said
        reservation = lease.reservation
        for secret in (
            *("secret-llm", "moonshot", "red-team"),
            *(reservation.organization.name, reservation.organization_id, reservation.pk),
        ):
            assert secret not in said

    def test_is_nothing_for_a_stranger(self, lease: Lease) -> None:
        _, secret = a_key(organization=an_organization())
        told = ApiClient(secret=secret).get(NOVEMBER).json
        assert (told["leases"], told["lines"], told["moves"]) == ([], [], [])

    def test_needs_the_scope(self, organization: Organization) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.OWNER_WRITE])
        assert ApiClient(secret=secret).get(NOVEMBER).code == "scope_missing"

    @pytest.mark.parametrize("month", ["2026-13", "november", "2026-1", "2027-06"])
    def test_refuses_what_is_no_month_that_has_begun(self, api: ApiClient, month: str) -> None:
        assert api.get(f"/v1/owner/statements/{month}").status == 422


class TestTheFiles:
    def test_has_rows_that_add_up_to_the_change_of_the_balance(
        self, organization: Organization, lease: Lease
    ) -> None:
        opening, *lines, closing = csv.DictReader(io.StringIO(as_csv(organization)))
        change = int(closing["balance_minor"]) - int(opening["balance_minor"])
        assert sum(int(row["amount_minor"]) for row in lines) == change
        assert [row["line"] for row in lines] == ["earned", "sla_share", "transfer"]
        assert lines[0]["gpu_seconds_undelivered"] == "1800"

    def test_is_the_same_file_for_the_same_final_month(self, api: ApiClient, lease: Lease) -> None:
        first, again = (api.get(NOVEMBER, format="pdf") for _ in range(2))
        assert first.content.startswith(b"%PDF-")
        assert first.headers["ETag"] == again.headers["ETag"]


class TestTheTenantsEvidence:
    def test_is_its_own_leases(self, lease: Lease) -> None:
        path = f"/v1/leases/{lease.pk}"
        _, secret = a_key(organization=lease.reservation.organization)
        shown = ApiClient(secret=secret).get(path).json["settlement"]
        assert shown["gpu_seconds_bought"] == 7200
        assert shown["outage_count"] == 1
        _, other = a_key(organization=an_organization())
        assert ApiClient(secret=other).get(path).status == 404

    def test_is_null_before_the_settlement(self) -> None:
        tenant = books.tenant(funds_minor=100_000)
        running = books.lease(of=books.reservation(buyer=tenant))
        _, secret = a_key(organization=tenant)
        assert ApiClient(secret=secret).get(f"/v1/leases/{running.pk}").json["settlement"] is None
