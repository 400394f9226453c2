"""A month's figures after what is rare: corrections, cancellations; they still make the wallet's balance."""

import datetime as dt
from typing import Any

import pytest

from agents.protocol import ReceiptKind
from billing import (
    budgets,
    changes,
    checkout,
    corrections,
    month_bills,
    month_movements,
    settlements,
    wallet,
)
from billing.models import Correction, LabelChange, Settlement
from billing.month_movements import Movements
from marketplace.core.money import Money
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler import cancellations
from scheduler.details import DetailChanges, ReservationDetails
from scheduler.models import Reservation
from tests.billing import factories
from tests.scheduler import factories as market

pytestmark = pytest.mark.django_db

ALL_TIME = Window(dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.datetime(2028, 1, 1, tzinfo=dt.UTC))
SETTLED_AT = factories.START + dt.timedelta(hours=2)
REVIEWED_AT = SETTLED_AT + dt.timedelta(hours=1)


def movements(organization: Organization, *, deposited: int) -> Movements:
    """Return what moved for the one reservation, once it makes the wallet's balance."""
    (row,) = month_movements.in_month(
        organization=organization, window=ALL_TIME, currency="usd"
    ).values()
    assert row.opening + row.charged == row.earned + row.refunded + row.fees + row.closing
    assert row.bought == (
        row.busy + row.idle + row.undelivered + row.released + row.closing_seconds
    )
    taxed = row.tax_charged - row.tax_refunded
    spent = row.charged - row.refunded - row.credits + taxed
    assert wallet.balance(organization=organization) == Money(deposited - spent, "usd")
    return row


@pytest.mark.parametrize(
    ("returned_after", "late_outage"),
    [pytest.param(None, True, id="refunds"), pytest.param(1800, False, id="charges again")],
)
@pytest.mark.parametrize(
    ("deposited", "is_taxed"), [(471, False), (900, False), (560, True), (900, True)]
)
def test_a_late_correction_is_in_the_figures(
    *, returned_after: int | None, late_outage: bool, deposited: int, is_taxed: bool
) -> None:
    tenant = factories.tenant(funds_minor=deposited)
    if is_taxed:
        factories.taxed(buyer=tenant)
    lease = factories.lease(
        of=factories.reservation(buyer=tenant), returned_after_seconds=returned_after
    )
    settlements.settle(lease_id=lease.id, at=SETTLED_AT)
    if late_outage:
        factories.outage(of=lease, seconds=1800)
    else:
        factories.receipt(of=lease, kind=ReceiptKind.RETURN)
    assert corrections.review_due(at=REVIEWED_AT) == 1
    change = Correction.objects.get()
    row = movements(tenant, deposited=deposited)
    settlement = Settlement.objects.get()
    assert row.earned == settlement.earned_minor + change.earned_minor
    assert row.refunded == settlement.refunded_minor + change.refunded_minor
    assert row.credits == settlement.credit_minor + change.credit_minor + change.borne_minor


@pytest.mark.parametrize("is_taxed", [False, True])
def test_a_cancellation_is_in_the_figures_with_its_fee(*, is_taxed: bool) -> None:
    at = market.NOW
    market.make_pool()
    tenant = market.make_organization()
    if is_taxed:
        factories.taxed(buyer=tenant)
    wallet.record_deposit(
        organization=tenant, amount=Money(1_000_000, "usd"), idempotency_key="1", at=at, actor="t"
    )
    reservation = checkout.purchase(
        organization=tenant,
        quote_id=market.make_quote(tenant=tenant, at=at).pk,
        payment_method="wallet",
        details=ReservationDetails(),
        at=at,
        actor="test",
    )
    quote = cancellations.quote(organization=tenant, reservation_id=reservation.pk, at=at)
    change = changes.cancel(
        organization=tenant,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        at=at,
        actor="test",
    )
    assert change.fee_minor > 0
    row = movements(tenant, deposited=1_000_000)
    assert (row.refunded, row.fees) == (change.refunded_minor, change.fee_minor)
    assert (row.earned, row.closing, row.closing_seconds) == (0, 0, 0)
    assert row.released == row.bought == change.gpu_seconds_released


class TestLabels:
    """Project and tags hold from the purchase on, and a change of them from its own month on."""

    def changed(self, row: Reservation, *, at: dt.datetime, **labels: Any) -> None:
        budgets.change_details(
            reservation=row, changes=DetailChanges(**labels), at=at, actor="test"
        )

    def labels_in(self, row: Reservation, month: str) -> tuple[str, dict[str, str]]:
        window = month_movements.month_window(month=month)
        rows = month_bills.rows_of(organization=row.organization, window=window)
        (found,) = (each for each in rows if each.reservation == row)
        return found.labels.project, dict(found.labels.tags)

    def test_of_a_month_that_is_over_stay(self) -> None:
        row = factories.reservation(buyer=factories.tenant(funds_minor=1_000_000), hours=900)
        december = dt.datetime(2026, 12, 2, tzinfo=dt.UTC)
        self.changed(row, at=factories.START, project="vision", tags={"team": "a"})
        self.changed(row, at=december, tags={"team": "b"})
        self.changed(row, at=december, project="speech")
        assert self.labels_in(row, "2026-11") == ("vision", {"team": "a"})
        assert self.labels_in(row, "2026-12") == ("speech", {"team": "b"})
        groups = month_bills.month_bill(
            organization=row.organization, month="2026-11", at=december
        ).by_project
        assert [group.value for group in groups] == ["vision"]

    def test_that_are_told_again_leave_no_trace(self) -> None:
        row = factories.reservation(buyer=factories.tenant(funds_minor=1_000))
        self.changed(row, at=factories.START, project="", tags={})
        self.changed(row, at=factories.START, name="other")
        assert not LabelChange.objects.exists()
