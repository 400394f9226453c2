"""The file of 1.2 passes the official validator, but for the defects that it is known to have."""

import csv
import datetime as dt
import io
from pathlib import Path
from typing import Any

import pytest

from billing import focus, invoices
from billing.focus import Dataset, Version
from billing.models import Deposit, Promotion
from tests.billing.focus import validator, world

pytestmark = [
    pytest.mark.slow,
    pytest.mark.django_db,
    pytest.mark.timeout(validator.INSTALL_LIMIT_SECONDS + 300),
]

# Of the 578 rules of 1.2 the rest is not for machines, or about features that this market does not have.
PASSED_AT_LEAST = 290
MONTHS = ("2026-10", "2026-11")
CLOSED_AT = dt.datetime(2026, 12, 20, tzinfo=dt.UTC)
EVERY_DEFECT = {*validator.DEFECTS, *validator.DEFECTS_OF_MIXED_FILES}


@pytest.fixture(autouse=True)
def installed() -> None:
    python = validator.find_python()
    if python is None:
        pytest.skip("there is no Python 3.12 here, and focus-validator 2.2.1 runs on no other")
    validator.install(python)


@pytest.fixture
def texts() -> dict[str, str]:
    """Return the files of a tenant to whom everything has happened, by month; both months are closed."""
    tenant = world.lived_in()
    assert Deposit.objects.exists()
    assert Promotion.objects.exists()
    for month in MONTHS:
        invoices.issue_month(organization=tenant, month=month, at=CLOSED_AT)
    return {
        month: "".join(
            focus.lines(
                organization=tenant,
                month=month,
                version=Version.V1_2,
                dataset=Dataset.COST_AND_USAGE,
                at=world.LATER,
            )
        )
        for month in MONTHS
    }


def judged(text: str, file: Path) -> tuple[set[str], int]:
    file.write_text(text, newline="", encoding="utf-8")
    return validator.failed_rules(file)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def without(text: str, *, keep) -> str:
    """Return a file with the rows alone that are to be kept."""
    found = io.StringIO()
    rows = rows_of(text)
    writer = csv.DictWriter(found, rows[0], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(row for row in rows if keep(row))
    return found.getvalue()


def test_finds_nothing_but_its_own_defects(texts: dict[str, str], tmp_path: Path) -> None:
    broken = set()
    for month, text in texts.items():
        failed, passed = judged(text, tmp_path / f"{month}.csv")
        assert failed <= EVERY_DEFECT, month
        assert passed >= PASSED_AT_LEAST
        broken |= failed
    # A defect that is mended leaves the list: it would hide one of ours.
    assert broken == EVERY_DEFECT


def test_fails_the_five_alone_where_every_row_stands_on_a_document(
    texts: dict[str, str], tmp_path: Path
) -> None:
    text = without(texts["2026-11"], keep=lambda row: row["InvoiceId"])
    assert {row["ChargeCategory"] for row in rows_of(text)} == {"Purchase", "Usage"}
    failed, _ = judged(text, tmp_path / "documents.csv")
    assert failed == set(validator.DEFECTS)


def test_asks_a_file_without_documents_for_numbers(texts: dict[str, str], tmp_path: Path) -> None:
    text = without(texts["2026-11"], keep=lambda row: not row["InvoiceId"])
    failed, _ = judged(text, tmp_path / "no-documents.csv")
    assert failed == {*validator.DEFECTS, "InvoiceId-C-005-C"} - {"InvoiceId-C-004-C"}


def test_sees_a_broken_file(texts: dict[str, str], tmp_path: Path) -> None:
    text = texts["2026-11"].replace(",USD,", ",dollars,")
    failed, _ = judged(text, tmp_path / "broken.csv")
    assert "BillingCurrency-C-003-M" in failed


class TestDefects:
    """Each is one by the words of its own rule, which the rows keep."""

    @pytest.mark.parametrize(
        ("rule", "needs_null"), [("InvoiceId-C-004-C", True), ("InvoiceId-C-005-C", False)]
    )
    def test_a_rule_of_documents_has_lost_what_its_words_say_of_when(
        self, rule: str, *, needs_null: bool
    ) -> None:
        asked = validator.rule(rule)
        assert " when the charge is " in asked["MustSatisfy"]
        assert asked["Condition"] == {}
        check = "CheckValue" if needs_null else "CheckNotValue"
        assert asked["Requirement"] == {
            "CheckFunction": check,
            "ColumnName": "InvoiceId",
            "Value": None,
        }

    def test_the_rules_above_them_have_nothing_else_that_fails(self) -> None:
        either = validator.rule("InvoiceId-C-003-C")["Requirement"]
        assert either["CheckFunction"] == "OR"
        assert parts(either) == ["InvoiceId-C-004-C", "InvoiceId-C-005-C"]
        assert "InvoiceId-C-003-C" in parts(validator.rule("InvoiceId-C-000-O")["Requirement"])
        both = validator.rule("CapacityReservationStatus-C-002-C")["Requirement"]
        assert both["CheckFunction"] == "AND"
        assert parts(both) == [
            "CapacityReservationStatus-C-003-C",
            "CapacityReservationStatus-C-004-C",
        ]
        root = validator.rule("CapacityReservationStatus-C-000-C")["Requirement"]
        assert "CapacityReservationStatus-C-002-C" in parts(root)

    @pytest.mark.parametrize("number", ["003", "004"])
    def test_each_row_keeps_what_the_rule_of_reservations_asks_under_its_condition(
        self, number: str, texts: dict[str, str]
    ) -> None:
        asked = validator.rule(f"CapacityReservationStatus-C-{number}-C")
        rows = [row for text in texts.values() for row in rows_of(text)]
        of_these = [row for row in rows if holds(asked["Condition"], row)]
        assert 0 < len(of_these) < len(rows)
        assert all(holds(asked["Requirement"], row) for row in of_these)
        assert not all(holds(asked["Requirement"], row) for row in rows)

    def test_a_row_has_no_number_only_where_it_bills_nothing_or_is_a_credit(
        self, texts: dict[str, str]
    ) -> None:
        rows = [row for text in texts.values() for row in rows_of(text)]
        on_none = [row for row in rows if not row["InvoiceId"]]
        assert {row["ChargeCategory"] for row in on_none} == {"Usage", "Credit"}
        assert {row["BilledCost"] for row in on_none if row["ChargeCategory"] == "Usage"} == {"0.0"}


def parts(requirement) -> list[str]:
    return [item["ModelRuleId"] for item in requirement["Items"]]


def holds(check: dict[str, Any], row: dict[str, str]) -> bool:
    """Say whether a row is as a check of the model asks; an empty cell is null."""
    if "AND" in check:
        inner = check["AND"]
        return all(holds(each, row) for each in (inner if isinstance(inner, list) else [inner]))
    is_equal = (row[check["ColumnName"]] or None) == check["Value"]
    return is_equal is (check["CheckFunction"] == "CheckValue")
