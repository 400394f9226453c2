"""A share of a resale in the files of who left: a credit that adds up to the ledger, on no document."""

import datetime as dt
from decimal import Decimal

import pytest

from billing import invoices, month_movements
from billing.states import EntryKind
from scheduler.models import Reservation
from tests.billing import bookings, readings
from tests.billing.bookings import LONG_AFTER
from tests.billing.focus import structure, world
from tests.billing.focus.test_reconciliation import major
from tests.billing.resales import market as resold
from tests.billing.resales.market import buy, deliver
from tests.scheduler.factories import NOW

pytestmark = pytest.mark.django_db

RELEASED_AT = NOW + LONG_AFTER
MONTHS = ("2026-11", "2026-12", "2027-01")


@pytest.fixture
def sold(left: Reservation) -> Reservation:
    reservation = buy()
    deliver(reservation)
    resold.release()
    return reservation


def rows_of(reservation: Reservation) -> list[dict[str, str]]:
    return [
        row
        for month in MONTHS
        for row in world.rows(reservation.organization, month=month, at=RELEASED_AT)
    ]


def test_is_a_credit_row_of_who_left(left: Reservation, sold: Reservation) -> None:
    (row,) = (row for row in rows_of(left) if row["x_EventType"] == EntryKind.RESALE)
    assert (row["ChargeCategory"], row["ChargeFrequency"]) == ("Credit", "One-Time")
    assert Decimal(row["BilledCost"]) == Decimal(row["EffectiveCost"]) == Decimal("-12.80")
    assert (row["x_ReservationId"], row["x_LeaseId"]) == (left.pk, "")
    assert (row["PricingQuantity"], row["InvoiceId"]) == ("", "")
    assert not structure.breaches(rows_of(left), version="1.4", dataset="cost_and_usage")


def test_is_in_no_row_of_who_bought(left: Reservation, sold: Reservation) -> None:
    assert EntryKind.RESALE not in {row["x_EventType"] for row in rows_of(sold)}


@pytest.mark.parametrize("who", ["left", "sold"])
def test_rows_and_the_bill_of_each_month_and_the_wallet_add_up(
    left: Reservation, sold: Reservation, who: str
) -> None:
    reservation = {"left": left, "sold": sold}[who]
    for month in MONTHS:
        rows = world.rows(reservation.organization, month=month, at=RELEASED_AT)
        moved = month_movements.in_month(
            organization=reservation.organization,
            window=month_movements.month_window(month=month),
            currency="usd",
        ).values()
        billed = sum(each.charged - each.refunded - each.credits for each in moved)
        used = sum(each.earned + each.fees - each.credits for each in moved)
        assert world.total(rows, "BilledCost") == major(billed)
        assert world.total(rows, "EffectiveCost") == major(used)
    spent = bookings.FUNDS_MINOR - readings.purse(reservation.organization)
    assert world.total(rows_of(reservation), "BilledCost") == major(spent)


def test_a_month_that_is_closed_keeps_what_it_said(left: Reservation) -> None:
    organization = left.organization
    closed_at = dt.datetime(2026, 12, 20, tzinfo=dt.UTC)
    invoices.issue_month(organization=organization, month="2026-11", at=closed_at)
    before = world.rows(organization, month="2026-11", at=closed_at)
    deliver(buy())
    resold.release()
    assert world.rows(organization, month="2026-11", at=RELEASED_AT) == before
    assert [
        row["x_EventType"] for row in world.rows(organization, month="2027-01", at=RELEASED_AT)
    ] == ["resale"]


def test_no_document_says_it(left: Reservation, sold: Reservation) -> None:
    at = dt.datetime(2027, 2, 20, tzinfo=dt.UTC)
    documents = [
        document
        for month in MONTHS
        for document in invoices.issue_month(organization=left.organization, month=month, at=at)
    ]
    assert documents
    assert not any(
        line.entry_key.startswith("resale:") for each in documents for line in each.lines.all()
    )
    assert resold.breaches(at=at) == []
