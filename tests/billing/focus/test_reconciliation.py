"""The files add up to the ledger: to the minor unit, in every month and currency."""

import datetime as dt
from decimal import Decimal

import pytest
from django.db.models import Sum

from agents.protocol import ReceiptKind
from billing import (
    changes,
    corrections,
    focus,
    invoices,
    month_movements,
    promotions,
    purchases,
    refunds,
    settlements,
    wallet,
)
from billing.focus import Dataset
from billing.models import Posting
from billing.states import AccountKind, EntryKind, InvoiceKind
from marketplace.core.money import Money, currency_exponent
from marketplace.models import Organization
from scheduler.models import Reservation
from scheduler.states import ChangeKind, ReservationStatus
from tests.billing import factories as books
from tests.billing.focus import structure, world

pytestmark = pytest.mark.django_db


def major(minor: int, currency: str = "usd") -> Decimal:
    return Decimal(minor).scaleb(-currency_exponent(currency))


def months_add_up(tenant: Organization, *, currency: str = "usd") -> list[dict[str, str]]:
    """Return the rows of all months, each of which equals what the postings of the month moved."""
    every = []
    for month in world.MONTHS:
        rows = world.rows(tenant, month=month)
        books_of_month = month_movements.in_month(
            organization=tenant,
            window=month_movements.month_window(month=month),
            currency=currency,
        ).values()
        billed = sum(each.charged - each.refunded - each.credits for each in books_of_month)
        used = sum(each.earned + each.fees - each.credits for each in books_of_month)
        taxed = sum(each.tax_charged - each.tax_refunded for each in books_of_month)
        of_tax = [row for row in rows if row["ChargeCategory"] == "Tax"]
        assert world.total(of_tax, "BilledCost") == major(taxed, currency), month
        billed, used = billed + taxed, used + taxed
        assert world.total(rows, "BilledCost") == major(billed, currency), month
        assert world.total(rows, "EffectiveCost") == major(used, currency), month
        assert {row["BillingCurrency"] for row in rows} <= {currency.upper()}
        hours = {
            "x_BoughtGpuHours": "bought",
            "x_UndeliveredGpuHours": "undelivered",
            "x_ReleasedGpuHours": "released",
        }
        for column, name in hours.items():
            seconds = sum(getattr(each, name) for each in books_of_month)
            assert world.total(rows, column) * 3600 == seconds, (month, column)
        delivered = sum(each.busy + each.idle for each in books_of_month)
        assert world.total(rows, "x_DeliveredGpuHours") * 3600 == delivered, month
        every += rows
    return every


def test_each_month_is_what_the_postings_of_the_month_moved() -> None:
    tenant = world.lived_in()
    rows = months_add_up(tenant)
    kinds = {row["x_EventType"] for row in rows}
    assert kinds >= {
        EntryKind.PURCHASE,
        EntryKind.EARNING,
        EntryKind.SETTLEMENT,
        EntryKind.CORRECTION,
        EntryKind.CREDIT,
        EntryKind.CHANGE,
        EntryKind.GOODWILL,
    }
    spent = world.FUNDS_MINOR - wallet.balance(organization=tenant).amount_minor
    assert world.total(rows, "BilledCost") == major(spent)


@pytest.mark.parametrize(
    ("currency", "rate"), [("jpy", Decimal("312.500000")), ("kwd", Decimal("2.352942"))]
)
def test_currencies_without_cents_and_with_mills_add_up(
    settings, currency: str, rate: Decimal
) -> None:
    settings.CURRENCY = currency
    tenant = books.tenant(funds_minor=world.FUNDS_MINOR, currency=currency)
    world.over_the_end_of_a_month(tenant, currency=currency, rate=rate)
    world.half_delivered(tenant, currency=currency)
    rows = months_add_up(tenant, currency=currency)
    assert any(row["CapacityReservationStatus"] == "Unused" for row in rows)


def test_taxes_are_rows_of_their_own_and_add_up() -> None:
    tenant = books.taxed(buyer=books.tenant(funds_minor=world.FUNDS_MINOR))
    world.half_delivered(tenant)
    world.corrected(tenant)
    rows = months_add_up(tenant)
    taxes = [row for row in rows if row["ChargeCategory"] == "Tax"]
    assert {row["BilledCost"].startswith("-") for row in taxes} == {True, False}
    spent = world.FUNDS_MINOR - wallet.balance(organization=tenant).amount_minor
    assert world.total(rows, "BilledCost") == major(spent)


def test_a_correction_found_a_month_later_is_in_the_month_of_its_finding() -> None:
    tenant = books.tenant(funds_minor=world.FUNDS_MINOR)
    lease = world.corrected(tenant, at=dt.datetime(2026, 12, 1, 3, tzinfo=dt.UTC))
    months_add_up(tenant)
    november = world.rows(tenant, month="2026-11")
    december = world.rows(tenant, month="2026-12")
    assert {row["x_EventType"] for row in november} == {"purchase", "settlement"}
    usage = december[0]
    assert usage["ChargeClass"] == "Correction"
    assert (usage["ChargeCategory"], usage["x_LeaseId"]) == ("Usage", lease.pk)
    assert Decimal(usage["PricingQuantity"]) == Decimal("-0.5")
    assert Decimal(usage["BilledCost"]) == Decimal(usage["EffectiveCost"]) < 0
    assert [row["ChargeCategory"] for row in december[1:]] == ["Credit"]


@pytest.mark.parametrize("deposited", [471, 900])
def test_what_a_late_receipt_charges_again_is_what_the_wallet_could_pay(deposited: int) -> None:
    tenant = books.tenant(funds_minor=deposited)
    lease = books.lease(of=books.reservation(buyer=tenant), returned_after_seconds=1800)
    settled_at = books.START + dt.timedelta(hours=2)
    settlements.settle(lease_id=lease.pk, at=settled_at)
    books.receipt(of=lease, kind=ReceiptKind.RETURN)
    assert corrections.review_due(at=settled_at + dt.timedelta(hours=1)) == 1
    rows = months_add_up(tenant)
    (correction,) = (row for row in rows if row["x_EventType"] == EntryKind.CORRECTION)
    assert Decimal(correction["BilledCost"]) > 0
    spent = deposited - wallet.balance(organization=tenant).amount_minor
    assert world.total(rows, "BilledCost") == world.total(rows, "EffectiveCost") == major(spent)


def test_a_promotion_lowers_what_is_billed_and_not_the_price() -> None:
    tenant = books.tenant(funds_minor=1000)
    reservation = books.reservation(buyer=tenant, paid=False)
    books.promotion(buyer=tenant, minor=100)
    promotions.spend(reservation=reservation, amount_minor=471, key=reservation.pk, at=books.START)
    purchases.post(reservation=reservation, at=books.START)
    rows = world.rows(tenant)
    by_category = {row["ChargeCategory"]: Decimal(row["BilledCost"]) for row in rows}
    assert by_category == {"Purchase": Decimal("4.71"), "Credit": Decimal("-1.00")}
    assert wallet.balance(organization=tenant) == Money(1000 - 371, "usd")


def test_a_promotion_that_comes_back_is_billed_no_longer_as_a_credit() -> None:
    tenant = books.tenant(funds_minor=371)
    row = books.reservation(buyer=tenant, paid=False, status=ReservationStatus.FAILED)
    books.promotion(buyer=tenant, minor=100)
    promotions.spend(reservation=row, amount_minor=471, key=row.pk, at=books.START)
    purchases.post(reservation=row, at=books.START)
    settlements.refund_rest(reservation_id=row.pk, at=books.START + dt.timedelta(days=1))
    refunds.open_due(at=books.START + dt.timedelta(days=1))
    rows = [each for each in world.rows(tenant) if each["ChargeCategory"] == "Credit"]
    # The two of the promotion cancel out; the market's own credit for what was not delivered stays.
    texts = [each for each in rows if each["ChargeDescription"].startswith("Promotional")]
    assert sum(Decimal(each["BilledCost"]) for each in texts) == 0
    assert len(texts) == 2


def test_the_hours_of_a_lease_are_its_earned_postings() -> None:
    tenant = books.tenant(funds_minor=world.FUNDS_MINOR)
    world.over_the_end_of_a_month(tenant)
    used = sum(
        world.total(world.rows(tenant, month=month), "EffectiveCost") for month in world.MONTHS
    )
    earned = Posting.objects.filter(
        account__kind__in=[AccountKind.OWNER_ACCRUED, AccountKind.PLATFORM_FEE],
        entry__kind__in=[EntryKind.EARNING, EntryKind.SETTLEMENT],
    ).aggregate(sum=Sum("amount"))["sum"]
    assert used == major(earned) > 0


def test_another_tenants_entries_are_in_no_file() -> None:
    world.lived_in()
    stranger = books.tenant(name="Somebody else", funds_minor=100)
    for month in world.MONTHS:
        for version, dataset in focus.COLUMNS:
            found = world.rows(stranger, month=month, version=version, dataset=dataset)
            assert found == [] or dataset == focus.Dataset.BILLING_PERIOD


@pytest.mark.parametrize("is_taxed", [False, True])
def test_the_charges_of_a_document_are_its_total(*, is_taxed: bool) -> None:
    tenant = books.tenant(funds_minor=world.FUNDS_MINOR)
    if is_taxed:
        books.taxed(buyer=tenant)
    world.half_delivered(tenant)
    world.corrected(tenant)
    at = dt.datetime(2026, 12, 20, tzinfo=dt.UTC)
    documents = invoices.issue_month(organization=tenant, month="2026-11", at=at)
    assert {document.kind for document in documents} == set(InvoiceKind.values)
    rows = [row for month in world.MONTHS for row in world.rows(tenant, month=month)]
    lines = world.rows(tenant, dataset=Dataset.INVOICE_DETAIL)
    for document in documents:
        sign = 1 if document.kind == InvoiceKind.INVOICE else -1
        for found in (rows, lines):
            of_document = [row for row in found if row["InvoiceId"] == document.number]
            billed = world.total(of_document, "BilledCost")
            assert billed == sign * major(document.total_minor)
    assert {row["InvoiceDetailId"] for row in rows} - {""} == {
        row["InvoiceDetailId"] for row in lines
    }
    assert all(row["InvoiceId"] for row in rows if row["ChargeCategory"] in {"Purchase", "Tax"})
    for found, name in ((rows, "cost_and_usage"), (lines, "invoice_detail")):
        assert not structure.breaches(found, version="1.4", dataset=name)


@pytest.mark.parametrize("is_taxed", [False, True])
def test_what_several_notes_credit_is_told_on_each_of_them(*, is_taxed: bool) -> None:
    tenant = books.tenant(funds_minor=world.FUNDS_MINOR)
    if is_taxed:
        books.taxed(buyer=tenant)
    reservation = extended_and_half_given_back(tenant)
    at = dt.datetime(2026, 12, 20, tzinfo=dt.UTC)
    of_both = invoices.credit_on_account(organization=tenant, at=at)
    assert [note.corrects.total_minor for note in of_both if note.corrects] == sorted(
        (note.corrects.total_minor for note in of_both if note.corrects), reverse=True
    )
    assert len(of_both) == 2
    rows = months_add_up(tenant)
    lines = world.rows(tenant, month="2026-12", dataset=Dataset.INVOICE_DETAIL)
    for note in of_both:
        of_note = [row for row in rows if row["InvoiceId"] == note.number]
        assert world.total(of_note, "BilledCost") == -major(note.total_minor)
        assert {row["InvoiceDetailId"] for row in of_note} == {
            line["InvoiceDetailId"] for line in lines if line["InvoiceId"] == note.number
        }
    back = [row for row in rows if row["x_UndeliveredGpuHours"] not in {"", "0.0"}]
    assert {row["x_LedgerEntryId"] for row in back} == {back[0]["x_LedgerEntryId"]}
    assert world.total(back, "PricingQuantity") == -world.total(back, "x_UndeliveredGpuHours")
    assert {row["x_ReservationId"] for row in back} == {reservation.pk}
    assert not structure.breaches(rows, version="1.4", dataset="cost_and_usage")


def extended_and_half_given_back(tenant: Organization) -> Reservation:
    """Buy an hour of two GPUs and a cheap second one, on an invoice each; deliver half an hour."""
    reservation = books.reservation(buyer=tenant, status=ReservationStatus.COMPLETED)
    due_at = books.START + dt.timedelta(days=30)
    invoices.issue_for_purchase(reservation=reservation, due_at=due_at, at=books.START)
    extension = books.change(of=reservation, kind=ChangeKind.EXTENSION, charged=100, added=2 * 3600)
    changes.post(change=extension)
    invoices.issue_for_change(change=extension, due_at=due_at, at=books.START)
    lease = books.lease(of=reservation, returned_after_seconds=1800)
    settlements.settle(lease_id=lease.pk, at=books.START + dt.timedelta(hours=4))
    return reservation
