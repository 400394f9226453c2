"""Projects and tags in the files are those that held when each row was charged, whatever is said later."""

import datetime as dt
import json
from typing import Any

import pytest

from billing import budgets, earnings, focus, invoices, settlements
from billing.focus import Dataset, Version
from marketplace.models import Organization
from scheduler.details import DetailChanges
from scheduler.models import Reservation
from scheduler.states import LeaseStatus
from tests.billing import factories as books
from tests.billing.focus import world

pytestmark = pytest.mark.django_db

CLOSED_AT = dt.datetime(2026, 12, 20, tzinfo=dt.UTC)
# What is final once its month is closed; commitments are told as they stand.
FINAL = [each for each in focus.COLUMNS if each[1] != Dataset.CONTRACT_COMMITMENT]


def relabel(reservation: Reservation, *, at: dt.datetime, **changes: Any) -> None:
    budgets.change_details(
        reservation=reservation, changes=DetailChanges(**changes), at=at, actor="test"
    )


def file(tenant: Organization, version: Version, dataset: Dataset) -> str:
    return "".join(
        focus.lines(
            organization=tenant,
            month="2026-11",
            version=version,
            dataset=dataset,
            at=CLOSED_AT,
        )
    )


def said(row: dict[str, str]) -> tuple[str, dict[str, str]]:
    return row["SubAccountId"], json.loads(row["Tags"])


def test_a_row_has_what_was_said_when_it_was_charged() -> None:
    tenant = books.tenant(funds_minor=world.FUNDS_MINOR)
    row = books.reservation(buyer=tenant)
    relabel(row, at=books.START, project="vision", tags={"team": "a"})
    lease = books.lease(of=row, returned_after_seconds=1800)
    assert lease.closed_at is not None
    relabel(row, at=lease.closed_at, project="language", tags={"team": "b"})
    settlements.settle(lease_id=lease.pk, at=world.LATER)
    relabel(row, at=world.LATER, project="", tags={})

    by_kind = {each["x_EventType"]: said(each) for each in world.rows(tenant)}

    assert by_kind["purchase"] == ("", {})
    assert by_kind["settlement"] == by_kind["credit"] == ("vision", {"team": "a"})


def test_the_lines_of_documents_have_the_project_of_their_charges() -> None:
    tenant = books.tenant(funds_minor=world.FUNDS_MINOR)
    row = books.reservation(buyer=tenant)
    relabel(row, at=books.START, project="vision")
    invoices.issue_month(organization=tenant, month="2026-11", at=CLOSED_AT)
    (line,) = world.rows(tenant, dataset=Dataset.INVOICE_DETAIL)
    (charge,) = world.rows(tenant)
    assert charge["InvoiceDetailId"] == line["InvoiceDetailId"]
    assert charge["SubAccountId"] == ""
    assert "SubAccountId" not in json.loads(line["InvoiceDetailGrain"])


def test_nothing_that_is_said_after_the_close_changes_a_file_of_the_month() -> None:
    tenant = world.lived_in()
    lasting = books.reservation(buyer=tenant, hours=24 * 60)
    lease = books.lease(of=lasting, status=LeaseStatus.ACTIVE)
    relabel(lasting, at=books.START, project="vision", tags={"team": "a"})
    for gpu in range(2):
        for hour in range(3):
            books.meter(of=lease, gpu=gpu, from_second=3600 * hour, busy=1200)
    while earnings.close_due(at=books.START + dt.timedelta(hours=3, minutes=30)):
        pass
    for month in ("2026-10", "2026-11"):
        invoices.issue_month(organization=tenant, month=month, at=CLOSED_AT)
    before = {each: file(tenant, *each) for each in FINAL}

    relabel(lasting, at=CLOSED_AT, name="other", project="other", tags={"other": "x"})
    Reservation.objects.exclude(pk=lasting.pk).update(name="other")
    Organization.objects.filter(pk=tenant.pk).update(name="Another Name Inc.")

    assert {each: file(tenant, *each) for each in FINAL} == before
    hours = [row for row in world.rows(tenant) if row["x_LeaseId"] == lease.pk]
    assert [said(row) for row in hours] == [("vision", {"team": "a"})] * 2


def test_what_is_said_between_the_end_of_a_month_and_its_close_is_of_the_next() -> None:
    tenant = books.tenant(funds_minor=world.FUNDS_MINOR)
    row = books.reservation(buyer=tenant)
    relabel(row, at=CLOSED_AT - dt.timedelta(days=5), project="vision")
    invoices.issue_month(organization=tenant, month="2026-11", at=CLOSED_AT)
    (charge,) = world.rows(tenant)
    assert charge["SubAccountId"] == ""
