"""A tenant to whom everything has happened that a file can tell, and its files as rows."""

import csv
import datetime as dt
import io
from decimal import Decimal

from agents.models import Node
from billing import (
    changes,
    checkout,
    corrections,
    earnings,
    focus,
    invoices,
    promotions,
    purchases,
    refunds,
    settlements,
    wallet,
)
from billing.focus import Dataset, Version
from billing.models import Deposit
from billing.provider_states import DepositStatus
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler import cancellations, extensions
from scheduler.details import ReservationDetails
from scheduler.models import Lease, Reservation
from scheduler.states import LeaseStatus, ReservationStatus
from tests.billing import factories as books
from tests.scheduler import factories as market

FUNDS_MINOR = 5_000_000
DEPOSIT_MINOR = 100
MONTHS = ("2026-09", "2026-10", "2026-11", "2026-12")
# Two hours before the end of October: a window of four hours lies in two months.
BOUNDARY = dt.datetime(2026, 10, 31, 22, tzinfo=dt.UTC)
LATER = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


def rows(
    organization: Organization,
    *,
    month: str = "2026-11",
    version: Version = Version.V1_4,
    dataset: Dataset = Dataset.COST_AND_USAGE,
    at: dt.datetime = LATER,
) -> list[dict[str, str]]:
    text = "".join(
        focus.lines(organization=organization, month=month, version=version, dataset=dataset, at=at)
    )
    return list(csv.DictReader(io.StringIO(text)))


def total(found: list[dict[str, str]], column: str) -> Decimal:
    return sum((Decimal(row[column]) for row in found if row[column]), Decimal(0))


def lived_in() -> Organization:
    """Return a tenant with a row of every kind, in October and November."""
    tenant = market.make_organization(is_owner=False)
    wallet.record_deposit(
        organization=tenant,
        amount=Money(FUNDS_MINOR, "usd"),
        idempotency_key="funds",
        at=BOUNDARY - dt.timedelta(days=10),
        actor="test",
    )
    over_the_end_of_a_month(tenant)
    half_delivered(tenant)
    late_and_lossy(tenant)
    in_two_parts(tenant)
    promoted(tenant)
    on_account = corrected(tenant).reservation
    invoices.issue_for_purchase(
        reservation=on_account, due_at=LATER, at=books.START - dt.timedelta(minutes=30)
    )
    market.make_pool()
    extended(tenant)
    cancelled(tenant)
    refunds.give(
        organization=tenant,
        subject_id=tenant.pk,
        amount=Money(77, "usd"),
        key="sorry",
        at=books.START,
    )
    return tenant


def over_the_end_of_a_month(
    tenant: Organization, *, currency: str = "usd", rate: Decimal = books.RATE
) -> Reservation:
    """Let four hours run over midnight; of each hour a part is attached and a smaller one busy."""
    start, books.START = books.START, BOUNDARY
    try:
        reservation = books.reservation(buyer=tenant, hours=4, currency=currency, rate=rate)
        lease = books.lease(of=reservation, status=LeaseStatus.ACTIVE)
        for gpu in range(2):
            for hour in range(4):
                books.meter(
                    of=lease,
                    gpu=gpu,
                    from_second=3600 * hour,
                    busy=1200,
                    attached=2400,
                    energy_millijoules=1_800_000_000,
                )
    finally:
        books.START = start
    Reservation.objects.filter(pk=reservation.pk).update(
        name="=1+1", project="vision", tags={"team": "a", "cost": "9"}
    )
    at = BOUNDARY + dt.timedelta(hours=8)
    while earnings.close_due(at=at):
        pass
    end(lease, at=at)
    return reservation


def half_delivered(tenant: Organization, *, currency: str = "usd") -> Lease:
    """Deliver half an hour of one, without a word of what it was used for."""
    reservation = books.reservation(
        buyer=tenant, status=ReservationStatus.COMPLETED, currency=currency
    )
    lease = books.lease(of=reservation, returned_after_seconds=1800)
    settlements.settle_ended(at=LATER)
    return lease


def late_and_lossy(tenant: Organization) -> Lease:
    """Hand two GPUs over late, and lose one of them for a quarter of an hour: refunded for two reasons."""
    reservation = books.reservation(buyer=tenant, status=ReservationStatus.COMPLETED)
    lease = books.lease(of=reservation, handed_over_after_seconds=450)
    books.meter_fully(of=lease)
    books.outage(of=lease, from_second=1200, seconds=900)
    settlements.settle(lease_id=lease.pk, at=LATER)
    return lease


def in_two_parts(tenant: Organization, *, balance_at: dt.datetime = books.START) -> Reservation:
    """Buy an hour of two GPUs for 4.71 with a deposit of 1.00, and pay the balance."""
    row = books.reservation(buyer=tenant, paid=False)
    row.unpaid_minor = row.total_minor - DEPOSIT_MINOR
    Deposit.objects.create(
        reservation=row,
        status=DepositStatus.PAID,
        net_minor=DEPOSIT_MINOR,
        gross_minor=DEPOSIT_MINOR,
        balance_net_minor=row.unpaid_minor,
        balance_gross_minor=row.unpaid_minor,
        currency=row.currency,
        balance_due_at=balance_at,
        created_at=row.created_at,
        closed_at=balance_at,
    )
    purchases.post(reservation=row, at=row.created_at)
    purchases.post_balance(reservation=row, net_minor=row.unpaid_minor, at=balance_at)
    return row


def promoted(tenant: Organization) -> Reservation:
    """Buy for 4.71, of which a promotion pays 1.00."""
    row = books.reservation(buyer=tenant, paid=False)
    books.promotion(buyer=tenant, minor=100)
    promotions.spend(reservation=row, amount_minor=row.total_minor, key=row.pk, at=row.created_at)
    purchases.post(reservation=row, at=row.created_at)
    return row


def corrected(tenant: Organization, *, at: dt.datetime | None = None) -> Lease:
    """Settle a lease in full, then find that half an hour of one of its GPUs was lost."""
    reservation = books.reservation(buyer=tenant, status=ReservationStatus.COMPLETED)
    lease = books.lease(of=reservation)
    settled_at = books.START + dt.timedelta(hours=2)
    settlements.settle_ended(at=settled_at)
    books.outage(of=lease, seconds=1800)
    corrections.review_due(at=at or settled_at + dt.timedelta(hours=2))
    return lease


def extended(tenant: Organization) -> Reservation:
    reservation = bought(tenant)
    Node.objects.update(last_report_at=market.NOW)
    quote = extensions.quote(
        organization=tenant,
        reservation_id=reservation.pk,
        ends_at=reservation.ends_at + market.hours(2),
        max_rate=None,
        at=market.NOW,
    )
    changes.extend(
        organization=tenant,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        payment_method="wallet",
        at=market.NOW,
        actor="test",
    )
    return reservation


def cancelled(tenant: Organization, *, at: dt.datetime = market.NOW) -> Reservation:
    reservation = bought(tenant)
    quote = cancellations.quote(organization=tenant, reservation_id=reservation.pk, at=at)
    change = changes.cancel(
        organization=tenant,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        at=at,
        actor="test",
    )
    assert change.fee_minor > 0
    return reservation


def bought(tenant: Organization) -> Reservation:
    return checkout.purchase(
        organization=tenant,
        quote_id=market.make_quote(tenant=tenant, at=market.NOW).pk,
        payment_method="wallet",
        details=ReservationDetails(),
        at=market.NOW,
        actor="test",
    )


def end(lease: Lease, *, at: dt.datetime) -> None:
    lease.status, lease.closed_at, lease.returned_at = LeaseStatus.ENDED, at, lease.ends_at
    lease.save()
    Reservation.objects.filter(pk=lease.reservation_id).update(status=ReservationStatus.COMPLETED)
    settlements.settle_ended(at=at + dt.timedelta(days=1))
