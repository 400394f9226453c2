"""Every file has the columns, types and values that FOCUS asks for, and datasets agree with each other."""

import datetime as dt
from decimal import Decimal

import pytest

from billing import focus, invoices
from billing.focus import Dataset, Version
from billing.models import Deposit, MonthClose
from tests.billing import factories as books
from tests.billing.focus import structure, world

pytestmark = pytest.mark.django_db


@pytest.fixture
def tenant():
    return world.lived_in()


def test_every_dataset_of_every_version_is_checked() -> None:
    files = {(version.value, dataset.value) for version, dataset in focus.COLUMNS}
    assert files == structure.COLUMNS.keys()


def test_the_files_of_a_tenant_to_whom_everything_happened_are_sound(tenant) -> None:
    MonthClose.objects.create(organization=tenant, month="2026-10", closed_at=world.LATER)
    for version, dataset in focus.COLUMNS:
        found = []
        for month in ("2026-10", "2026-11"):
            rows = world.rows(tenant, month=month, version=version, dataset=dataset)
            assert not structure.breaches(rows, version=version.value, dataset=dataset.value)
            found += rows
        assert found, (version, dataset)


UNSOUND = {
    "BilledCost": "1",
    "BillingCurrency": "usd",
    "ChargeCategory": "Bought",
    "ChargePeriodEnd": "2020-01-01T00:00:00Z",
    "CapacityReservationStatus": "",
    "ListCost": "17.0",
    "ContractApplied": '{"Elements": [{}]}',
    "ConsumedUnit": "",
    "ServiceSubcategory": "GPUs",
}


def test_the_check_sees_a_row_that_is_not_sound(tenant) -> None:
    rows = world.rows(tenant, month="2026-10")
    sound = next(row for row in rows if row["ChargeCategory"] == "Usage")
    for column, value in UNSOUND.items():
        row = {**sound, column: value}
        assert structure.breaches([row], version="1.4", dataset="cost_and_usage"), column


def test_both_versions_tell_the_same_money(tenant) -> None:
    for column in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"):
        totals = {world.total(world.rows(tenant, version=version), column) for version in Version}
        assert len(totals) == 1


def test_what_is_applied_to_a_commitment_is_in_the_file_of_commitments(tenant) -> None:
    for month in ("2026-10", "2026-11"):
        commitments = {
            row["ContractCommitmentId"]: row
            for row in world.rows(tenant, month=month, dataset=Dataset.CONTRACT_COMMITMENT)
        }
        charges = [row for row in world.rows(tenant, month=month) if row["ContractApplied"]]
        assert {row["x_ReservationId"] for row in charges} <= commitments.keys()
        for row in charges:
            scope = commitments[row["x_ReservationId"]]["ContractCommitmentApplicability"]
            assert f'"{row["CapacityReservationId"]}"' in scope


def test_a_commitment_tells_its_life_and_its_present_window(tenant) -> None:
    rows = world.rows(tenant, dataset=Dataset.CONTRACT_COMMITMENT)
    by_status = {row["x_ReservationStatus"]: row for row in rows}
    assert by_status["cancelled"]["ContractCommitmentLifecycleStatus"] == "Canceled"
    assert by_status["completed"]["ContractCommitmentLifecycleStatus"] == "Expired"
    extended = by_status["scheduled"]
    assert extended["ContractCommitmentLifecycleStatus"] == "Pending"
    assert extended["ContractCommitmentDurationType"] == "4 Hours"


def test_a_commitment_that_is_paid_in_two_parts_says_so_and_which_part_came_first(tenant) -> None:
    plan = Deposit.objects.get()
    rows = world.rows(tenant, dataset=Dataset.CONTRACT_COMMITMENT)
    by_id = {row["ContractCommitmentId"]: row for row in rows}
    names = ("PaymentModel", "PaymentInterval", "PaymentUpfrontPercentage")
    told = {
        key: tuple(row[f"ContractCommitment{name}"] for name in names) for key, row in by_id.items()
    }
    assert told.pop(plan.pk) == ("Partial Upfront", "Custom", "0.2123")
    assert set(told.values()) == {("All Upfront", "One-Time", "1.0")}
    charges = [row for row in world.rows(tenant) if row["x_ReservationId"] == plan.pk]
    assert [(row["x_EventType"], row["BilledCost"], row["PricingQuantity"]) for row in charges] == [
        ("purchase", "1.0", "2.0"),
        ("balance", "3.71", "0.0"),
    ]


def test_a_line_of_an_invoice_is_the_charge_that_names_it(tenant) -> None:
    lines = world.rows(tenant, dataset=Dataset.INVOICE_DETAIL)
    charges = [row for row in world.rows(tenant) if row["InvoiceId"]]
    assert len(lines) == len(charges) == 1
    for name in ("InvoiceId", "InvoiceDetailId", "BilledCost", "BillingCurrency"):
        assert lines[0][name] == charges[0][name]
    assert lines[0]["PaymentTerms"] == "Net 20 days"


def test_a_tax_is_a_row_of_its_own_in_charges_and_in_lines() -> None:
    buyer = books.taxed(buyer=books.tenant(funds_minor=1000))
    reservation = books.reservation(buyer=buyer)
    invoices.issue_for_purchase(
        reservation=reservation, due_at=world.LATER, at=books.START - dt.timedelta(minutes=30)
    )
    charges = world.rows(buyer)
    assert [(row["ChargeCategory"], Decimal(row["BilledCost"])) for row in charges] == [
        ("Purchase", Decimal("4.71")),
        ("Tax", Decimal("0.89")),
    ]
    assert charges[1]["EffectiveCost"] == charges[1]["BilledCost"]
    assert not structure.breaches(charges, version="1.4", dataset="cost_and_usage")
    lines = world.rows(buyer, dataset=Dataset.INVOICE_DETAIL)
    assert world.total(lines, "BilledCost") <= world.total(charges, "BilledCost")
    assert {row["InvoiceDetailId"] for row in lines} <= {row["InvoiceDetailId"] for row in charges}


def test_a_month_is_open_until_its_documents_are_issued(tenant) -> None:
    (row,) = world.rows(tenant, month="2026-10", dataset=Dataset.BILLING_PERIOD)
    assert row["BillingPeriodStatus"] == "Open"
    MonthClose.objects.create(organization=tenant, month="2026-10", closed_at=world.LATER)
    (row,) = world.rows(tenant, month="2026-10", dataset=Dataset.BILLING_PERIOD)
    assert row["BillingPeriodStatus"] == "Closed"
    assert row["BillingPeriodLastUpdated"] == "2026-11-22T12:00:00Z"
