"""Months that are closed, and what was half delivered in them."""

import datetime as dt

from billing import (
    books,
    invoices,
    settlements,
)
from billing.models import Invoice, Settlement
from scheduler.states import ReservationStatus
from tests.billing import factories

OCTOBER, NOVEMBER, DECEMBER = "2026-10", "2026-11", "2026-12"
CLOSED_AT = dt.datetime(2026, 12, 1, 2, tzinfo=dt.UTC)
SETTLED_AT = factories.START + dt.timedelta(hours=2)
DUE = factories.START + dt.timedelta(days=30)
KILLED = 137


def close(buyer, *, month: str = NOVEMBER, at: dt.datetime = CLOSED_AT) -> list[Invoice]:
    return invoices.issue_month(organization=buyer, month=month, at=at)


def sound(*, at: dt.datetime = CLOSED_AT) -> None:
    """Check the books, and nothing but what concerns documents and tax where a fixture cut corners."""
    report = books.check(at=at)
    assert report.ok, [check for check in report.checks if not check.ok]


def half_delivered(buyer) -> Settlement:
    """Settle two GPUs for an hour, half of which was delivered: 471 were paid."""
    row = factories.reservation(buyer=buyer, status=ReservationStatus.COMPLETED)
    lease = factories.lease(of=row, returned_after_seconds=1800)
    settlements.settle(lease_id=lease.id, at=SETTLED_AT)
    return Settlement.objects.get(lease=lease)
