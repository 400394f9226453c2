"""What goes back of purchases that are invoiced at different times is told in parts, and told whole.

What is bought on account is invoiced at once and credited at once; what was paid is invoiced when its month
is closed. A reservation may be both, and what it gives back is one amount.
"""

import datetime as dt
from collections.abc import Callable
from contextlib import AbstractContextManager
from decimal import Decimal

import pytest
from django.db.models import Sum

from billing import books, invoices, refunds, settlements, wallet
from billing.focus import Dataset, Version, lines, manifests
from billing.invoices import credit_on_account, month_close
from billing.models import InvoiceLine, MonthClose, Parking, TaxLine
from billing.month_movements import month_window
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler import reservations
from scheduler.models import Reservation
from tests.billing import bookings, factories
from tests.billing.debtors import a_debtor, buy
from tests.billing.focus import world
from tests.billing.readings import breaches
from tests.scheduler.factories import NOW, make_pool, make_quote, window_in

pytestmark = pytest.mark.django_db

MONTH, NEXT_MONTH = "2026-11", "2026-12"
MONTH_ENDS_AT = month_window(month=MONTH).ends_at
CLOSED_AT = MONTH_ENDS_AT + dt.timedelta(hours=2)
FIVE_MINUTES = dt.timedelta(minutes=5)
BOTH_ORDERS = pytest.mark.parametrize("ways", [("wallet", "invoice"), ("invoice", "wallet")])
TAXED = pytest.mark.parametrize("is_taxed", [False, True])
Unguarded = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def an_hour_passes(unguarded: Unguarded) -> Callable[[], None]:
    """Return a verb that puts all closes an hour after what they told: then the books ask for all of it."""

    def passes() -> None:
        with unguarded():
            for close in MonthClose.objects.all():
                MonthClose.objects.filter(pk=close.pk).update(
                    recorded_at=close.recorded_at + dt.timedelta(seconds=3601)
                )

    return passes


def bought(
    ways: tuple[str, str], *, is_taxed: bool = False, starts_in_hours: float = 24 * 40
) -> Reservation:
    """Return a reservation that was bought in one way and extended in another."""
    make_pool()
    tenant = a_debtor(net_days=14)
    if is_taxed:
        factories.taxed(buyer=tenant)
    wallet.record_deposit(
        organization=tenant,
        amount=Money(1_000_000, "usd"),
        idempotency_key="first",
        at=NOW,
        actor="test",
    )
    quote = make_quote(tenant=tenant, gpus=2, window=window_in(starts_in_hours))
    reservation = buy(quote, payment_method=ways[0])
    bookings.extend(reservation, payment_method=ways[1])
    reservation.refresh_from_db()
    return reservation


def told(tenant: Organization) -> tuple[int, int]:
    """Return what all documents of a tenant come to, before tax and of tax."""
    sums = [
        InvoiceLine.objects.filter(
            invoice__organization=tenant, corrects_line__isnull=is_charge
        ).aggregate(net=Sum("net_minor", default=0), tax=Sum("tax_minor", default=0))
        for is_charge in (True, False)
    ]
    charged, credited = sums
    return charged["net"] - credited["net"], charged["tax"] - credited["tax"]


def tax_kept(reservation: Reservation) -> int:
    sums = TaxLine.objects.filter(reservation_id=reservation.pk).aggregate(
        charged=Sum("tax_charged_minor", default=0), refunded=Sum("tax_refunded_minor", default=0)
    )
    return int(sums["charged"] - sums["refunded"])


def exported(tenant: Organization) -> Decimal:
    """Return what the charges of all months bill for prices and tax; each month's file is sound by itself."""
    rows = [row for month in (MONTH, NEXT_MONTH) for row in world.rows(tenant, month=month)]
    return world.total([row for row in rows if row["ChargeCategory"] != "Credit"], "BilledCost")


def agree(reservation: Reservation, *, kept: int, at: dt.datetime) -> None:
    """Assert that documents, ledger and exports say the same of what is kept, and that nobody is parked."""
    tenant = reservation.organization
    tax = tax_kept(reservation)
    assert told(tenant) == (kept, tax)
    assert exported(tenant) == Decimal(kept + tax).scaleb(-2)
    assert breaches(at=at) == []
    books.run(at=at)
    assert not Parking.objects.exists()


class TestACancellation:
    @BOTH_ORDERS
    @TAXED
    @pytest.mark.parametrize("is_early", [False, True])
    def test_of_a_month_is_told_whole_when_it_is_closed(
        self, ways, is_taxed, is_early, an_hour_passes: Callable[[], None]
    ) -> None:
        reservation = bought(ways, is_taxed=is_taxed)
        left = bookings.leave(reservation)
        if is_early:
            (note,) = credit_on_account(
                organization=reservation.organization, at=NOW + FIVE_MINUTES
            )
            assert note.corrects is not None
            assert note.corrects.due_at is not None
            assert note.total_minor == note.corrects.total_minor
            assert not credit_on_account(
                organization=reservation.organization, at=NOW + FIVE_MINUTES
            )
        invoices.run_due(at=CLOSED_AT)
        an_hour_passes()
        agree(reservation, kept=left.fee_minor, at=CLOSED_AT)
        assert invoices.run_due(at=CLOSED_AT + FIVE_MINUTES) == 0
        seconds = InvoiceLine.objects.filter(corrects_line=None).aggregate(sum=Sum("gpu_seconds"))
        back = InvoiceLine.objects.exclude(corrects_line=None).aggregate(sum=Sum("gpu_seconds"))
        assert back == seconds

    @BOTH_ORDERS
    def test_between_a_month_and_its_close_is_told_whole_when_the_rest_is_invoiced(
        self, ways, an_hour_passes: Callable[[], None], settings
    ) -> None:
        settings.MONTH_CLOSE_DELAY_SECONDS = 2 * 86_400
        reservation = bought(ways)
        gone_at = MONTH_ENDS_AT + dt.timedelta(hours=9)
        left = bookings.leave(reservation, at=gone_at)
        assert invoices.run_due(at=gone_at + FIVE_MINUTES) == 1
        assert told(reservation.organization)[0] == 0
        closed_at = MONTH_ENDS_AT + dt.timedelta(days=2, hours=1)
        # The invoice of what was paid, and at once what goes back of it.
        assert invoices.run_due(at=closed_at) == 2
        assert invoices.run_due(at=closed_at + FIVE_MINUTES) == 0
        an_hour_passes()
        agree(reservation, kept=left.fee_minor, at=closed_at)

    def test_that_an_earlier_close_told_in_part_is_told_whole_by_the_next_run(
        self, monkeypatch: pytest.MonkeyPatch, an_hour_passes: Callable[[], None]
    ) -> None:
        reservation = bought(("wallet", "invoice"))
        tenant = reservation.organization
        left = bookings.leave(reservation)
        credit_on_account(organization=tenant, at=NOW + FIVE_MINUTES)
        with monkeypatch.context() as forgetful:
            forgetful.setattr(month_close, "credit", lambda **_: [])
            invoices.issue_month(organization=tenant, month=MONTH, at=CLOSED_AT)
        an_hour_passes()
        assert [each.split(":")[0] for each in breaches(at=CLOSED_AT)] == ["closed_months_are_told"]
        kept = file_of(tenant, at=CLOSED_AT + dt.timedelta(hours=2))
        assert invoices.run_due(at=CLOSED_AT + dt.timedelta(hours=3)) == 1
        agree(reservation, kept=left.fee_minor, at=CLOSED_AT + dt.timedelta(hours=3))
        # The file of the month that was closed was handed out: it stays as it was.
        assert manifests.count(charges(tenant)).sha256 == kept.sha256


class TestWhatIsNotDelivered:
    @BOTH_ORDERS
    @TAXED
    @pytest.mark.parametrize("is_early", [False, True])
    def test_is_told_whole(
        self, ways, is_taxed, is_early, an_hour_passes: Callable[[], None]
    ) -> None:
        reservation = bought(ways, is_taxed=is_taxed, starts_in_hours=24)
        over_at = reservation.ends_at
        reservations.start_due(at=over_at)
        settlements.settle_ended(at=over_at)
        refunds.open_due(at=over_at)
        if is_early:
            assert invoices.run_due(at=over_at + FIVE_MINUTES) == 1
        invoices.run_due(at=CLOSED_AT)
        an_hour_passes()
        agree(reservation, kept=0, at=CLOSED_AT)


def charges(tenant: Organization):
    return lines(
        organization=tenant,
        month=MONTH,
        version=Version.V1_4,
        dataset=Dataset.COST_AND_USAGE,
        at=CLOSED_AT,
    )


def file_of(tenant: Organization, *, at: dt.datetime) -> manifests.Manifest:
    made = manifests.of(
        organization=tenant,
        month=MONTH,
        version=Version.V1_4,
        dataset=Dataset.COST_AND_USAGE,
        read=lambda: charges(tenant),
        at=at,
    )
    assert made.is_final
    return made
