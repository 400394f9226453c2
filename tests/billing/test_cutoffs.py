"""One rule says to which month something belongs: documents, bill, export and the tax that is filed agree."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

from billing import books, earnings, invoices, month_movements, settlements, tax_reports
from billing.focus import Dataset
from marketplace.models import Organization
from scheduler.models import Lease, Reservation
from scheduler.states import LeaseStatus, ReservationStatus
from tests.billing import factories
from tests.billing.focus import world

pytestmark = pytest.mark.django_db

NOVEMBER, DECEMBER = "2026-11", "2026-12"
MIDNIGHT = dt.datetime(2026, 12, 1, tzinfo=dt.UTC)
CLOSED_AT = MIDNIGHT + dt.timedelta(days=3)
JANUARY = dt.datetime(2027, 1, 4, tzinfo=dt.UTC)
TAX_BACK = -44  # on 236 of 471 at 19 %, as a difference of rounded sums


@pytest.fixture(autouse=True)
def patient(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Close months two days after their end, and let a lease end with November."""
    settings.MONTH_CLOSE_DELAY_SECONDS = 2 * 86_400
    monkeypatch.setattr(factories, "START", MIDNIGHT - dt.timedelta(hours=1))


@pytest.fixture
def buyer() -> Organization:
    return factories.taxed(buyer=factories.tenant(funds_minor=10_000))


def half_delivered(buyer: Organization) -> Lease:
    row = factories.reservation(buyer=buyer, status=ReservationStatus.COMPLETED)
    return factories.lease(of=row, returned_after_seconds=1800)


def tax_back(buyer: Organization, month: str) -> dict[str, Decimal | int]:
    """Return what each of those who tell a month say of tax that went back in it."""
    window = month_movements.month_window(month=month)
    moved = month_movements.in_month(organization=buyer, window=window, currency="usd")
    rows = [
        row
        for row in world.rows(buyer, month=month, at=JANUARY)
        if row["ChargeCategory"] == "Tax" and row["BilledCost"].startswith("-")
    ]
    lines = world.rows(buyer, month=month, dataset=Dataset.INVOICE_DETAIL, at=JANUARY)
    of_notes = [
        line
        for line in lines
        if line["ChargeCategory"] == "Tax" and line["BilledCost"].startswith("-")
    ]
    return {
        "bill": -sum(each.tax_refunded for each in moved.values()),
        "export": world.total(rows, "BilledCost") * 100,
        "documents": world.total(of_notes, "BilledCost") * 100,
        "filed": -sum(
            row.tax_refunded for row in tax_reports.month_report(month=month, at=JANUARY)
        ),
    }


def close_both(buyer: Organization) -> None:
    invoices.issue_month(organization=buyer, month=DECEMBER, at=JANUARY)


def all_say(amount: int) -> dict[str, int]:
    return dict.fromkeys(("bill", "export", "documents", "filed"), amount)


def test_what_is_settled_while_its_month_is_open_belongs_to_it(buyer: Organization) -> None:
    lease = half_delivered(buyer)
    settlements.settle(lease_id=lease.pk, at=MIDNIGHT + dt.timedelta(hours=5))
    invoices.issue_month(organization=buyer, month=NOVEMBER, at=CLOSED_AT)
    close_both(buyer)
    assert tax_back(buyer, NOVEMBER) == all_say(TAX_BACK)
    assert tax_back(buyer, DECEMBER) == all_say(0)
    assert books.check(at=JANUARY).ok


def test_what_is_settled_after_its_month_was_closed_belongs_to_the_next(
    buyer: Organization,
) -> None:
    lease = half_delivered(buyer)
    invoices.issue_month(organization=buyer, month=NOVEMBER, at=CLOSED_AT)
    closed = world.rows(buyer, month=NOVEMBER)
    settlements.settle(lease_id=lease.pk, at=CLOSED_AT + dt.timedelta(hours=1))
    close_both(buyer)
    assert tax_back(buyer, NOVEMBER) == all_say(0)
    assert tax_back(buyer, DECEMBER) == all_say(TAX_BACK)
    assert world.rows(buyer, month=NOVEMBER) == closed
    months = [world.rows(buyer, month=month) for month in (NOVEMBER, DECEMBER)]
    assert sum(world.total(rows, "x_DeliveredGpuHours") for rows in months) == 1
    assert books.check(at=JANUARY).ok


def test_an_hour_that_is_closed_after_its_month_was_belongs_to_the_next(
    buyer: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factories, "START", MIDNIGHT - dt.timedelta(hours=3))
    row = factories.reservation(buyer=buyer, hours=6)
    lease = factories.lease(of=row, status=LeaseStatus.ACTIVE)
    for gpu in range(row.gpus):
        for hour in range(6):
            factories.meter(of=lease, gpu=gpu, from_second=3600 * hour)
    assert earnings.close_next(lease_id=lease.pk, at=MIDNIGHT + dt.timedelta(days=1))
    invoices.issue_month(organization=buyer, month=NOVEMBER, at=CLOSED_AT)
    closed = world.rows(buyer, month=NOVEMBER)
    late = CLOSED_AT + dt.timedelta(hours=1)
    while earnings.close_next(lease_id=lease.pk, at=late):
        pass
    assert world.rows(buyer, month=NOVEMBER) == closed
    hours = {
        month: world.total(world.rows(buyer, month=month), "x_DeliveredGpuHours")
        for month in (NOVEMBER, DECEMBER)
    }
    assert hours == {NOVEMBER: 2, DECEMBER: 8}  # the last hour is left to the settlement
    for month in (NOVEMBER, DECEMBER):
        (moved,) = month_movements.in_month(
            organization=buyer,
            window=month_movements.month_window(month=month),
            currency="usd",
        ).values()
        assert (moved.busy + moved.idle) / 3600 == hours[month]
        assert moved.opening + moved.charged == moved.earned + moved.refunded + moved.closing


@pytest.mark.parametrize(
    ("settled_after", "filed"),
    [
        (dt.timedelta(hours=5), MIDNIGHT - dt.timedelta(microseconds=1)),
        (dt.timedelta(days=2), MIDNIGHT),
        (dt.timedelta(days=32), MIDNIGHT),
        (dt.timedelta(days=33), dt.datetime(2027, 1, 1, tzinfo=dt.UTC)),
    ],
)
def test_tax_is_filed_in_the_first_month_that_is_open(
    settled_after: dt.timedelta, filed: dt.datetime
) -> None:
    moment = MIDNIGHT - dt.timedelta(microseconds=1)
    assert month_movements.filed_at(moment=moment, at=MIDNIGHT + settled_after) == filed


def test_names_of_a_closed_month_are_those_of_its_close(buyer: Organization) -> None:
    lease = half_delivered(buyer)
    settlements.settle(lease_id=lease.pk, at=MIDNIGHT + dt.timedelta(hours=5))
    invoices.issue_month(organization=buyer, month=NOVEMBER, at=CLOSED_AT)
    closed = world.rows(buyer, month=NOVEMBER)
    Reservation.objects.update(name="renamed")
    Organization.objects.filter(pk=buyer.pk).update(name="Adaline GmbH")
    buyer.refresh_from_db()
    assert world.rows(buyer, month=NOVEMBER) == closed
    (open_row,) = world.rows(buyer, month=DECEMBER, dataset=Dataset.BILLING_PERIOD)
    assert open_row["BillingPeriodStatus"] == "Open"
