"""The bill of a reservation as rows, as a page and as a file: what its JSON says."""

import csv
import datetime as dt
import io

import pytest
from django.http import HttpResponse
from django.test import Client
from pypdf import PdfReader

from billing import bills, settlements
from billing.pdf import reservation_bill
from marketplace.models import Organization
from scheduler.models import Lease, Reservation
from scheduler.states import ReservationStatus
from tests.billing import factories as books
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db

LATER = books.START + dt.timedelta(days=20)


@pytest.fixture
def lease(organization: Organization) -> Lease:
    """Return a settled lease of two GPUs for an hour, of which one GPU failed for ten minutes."""
    books.fund(organization, minor=100_000)
    row = books.reservation(buyer=organization, status=ReservationStatus.COMPLETED)
    Reservation.objects.filter(pk=row.pk).update(
        name="<b>run</b>", project="vision", tags={"team": "a"}
    )
    lease = books.lease(of=row)
    books.meter_fully(of=lease)
    books.outage(of=lease, seconds=600)
    settlements.settle_ended(at=LATER)
    return lease


def asked(lease: Lease, form: str) -> HttpResponse:
    _, secret = a_key(organization=lease.reservation.organization)
    answer = Client().get(
        f"/v1/reservations/{lease.reservation_id}/bill?format={form}",
        headers={"Authorization": f"Bearer {secret}"},
    )
    assert answer.status_code == 200, answer.content
    assert isinstance(answer, HttpResponse)
    return answer


def test_rows_are_those_of_the_leases_and_of_the_whole(api: ApiClient, lease: Lease) -> None:
    of_lease, whole = csv.DictReader(io.StringIO(asked(lease, "csv").content.decode()))
    bill = api.get(f"/v1/reservations/{lease.reservation_id}/bill").json
    assert (of_lease["lease_id"], whole["lease_id"]) == (lease.pk, "")
    for row in (of_lease, whole):
        assert int(row["earned_minor"]) == bill["earned"]["amount_minor"] > 0
        assert int(row["refunded_minor"]) == bill["refunded"]["amount_minor"] > 0
        assert row["gpu_seconds_undelivered_gpu_fault"] == row["gpu_seconds_undelivered"] == "600"
        assert row["gpu_seconds_undelivered_unknown"] == "0"
    assert (of_lease["net_minor"], whole["final"]) == ("", "true")
    assert int(whole["net_minor"]) == bill["net"]["amount_minor"]
    assert bill["gpu_seconds"]["undelivered_by_reason"] == [
        {"reason": "gpu_fault", "gpu_seconds": 600}
    ]


def test_the_page_says_why_and_runs_nothing_that_a_tenant_wrote(lease: Lease) -> None:
    answer = asked(lease, "html")
    text = answer.content.decode()
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    for words in ("&lt;b&gt;run&lt;/b&gt;", "a GPU failed", lease.pk, "team: a", "0.17", "Final"):
        assert words in text, words
    assert "<b>run" not in text


def test_the_file_says_the_same(lease: Lease) -> None:
    answer = asked(lease, "pdf")
    assert answer.headers["Content-Type"] == "application/pdf"
    said = PdfReader(io.BytesIO(answer.content)).pages[0].extract_text()
    for words in ("Bill of <b>run</b>", "a GPU failed", "0.17", lease.pk, "Final."):
        assert words in said, words


def test_the_file_of_a_final_bill_is_the_same_bytes_later(lease: Lease) -> None:
    made = []
    for days in (0, 30):
        at = LATER + dt.timedelta(days=days)
        reservation = Reservation.objects.get(pk=lease.reservation_id)
        bill = bills.reservation_bill(reservation=reservation, at=at)
        made.append(reservation_bill(bill=bill, reservation=reservation, documents=[], at=at))
    assert made[0] == made[1]


def test_one_that_has_not_begun_is_a_page_that_says_so(organization: Organization) -> None:
    row = books.reservation(buyer=organization, paid=False)
    bill = bills.reservation_bill(reservation=row, at=books.START)
    content = reservation_bill(bill=bill, reservation=row, documents=[], at=books.START)
    said = PdfReader(io.BytesIO(content)).pages[0].extract_text()
    assert "not final" in said
    assert "Leases" not in said


def test_another_form_is_refused_and_a_stranger_sees_none(api: ApiClient, lease: Lease) -> None:
    address = f"/v1/reservations/{lease.reservation_id}/bill"
    assert api.get(address, format="xml").status == 422
    _, secret = a_key(organization=an_organization())
    for form in ("csv", "html", "pdf"):
        assert ApiClient(secret=secret).get(address, format=form).status == 404
