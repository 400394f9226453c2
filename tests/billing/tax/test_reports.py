"""What is filed of a month follows from its lines, and what is over stays as it was filed."""

import csv
import datetime as dt
import io
import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from billing import accounts, ledger, settlements, tax_reports
from marketplace.core.errors import InvalidValue
from marketplace.models import Organization
from tests.billing import factories

pytestmark = pytest.mark.django_db

NOVEMBER = "2026-11"
LATER = factories.START + dt.timedelta(days=2)
DECEMBER_FIRST = dt.datetime(2026, 12, 1, tzinfo=dt.UTC)


def a_tenant(name: str, **taxes: Any) -> Organization:
    row = factories.tenant(name=name, funds_minor=10_000)
    return factories.taxed(buyer=row, **taxes) if taxes else row


@pytest.fixture
def market() -> None:
    """Sell to tenants of several places: 471 each, a quarter of one undelivered."""
    for name, taxes in (
        ("nobody", {}),
        ("german", {"basis_points": 1900, "place": "DE"}),
        ("another german", {"basis_points": 1900, "place": "DE"}),
        ("finn", {"basis_points": 2550, "place": "FI"}),
        ("frenchman", {"treatment": "reverse_charge", "place": "FR"}),
        ("university", {"treatment": "exempt", "place": "DE"}),
    ):
        row = factories.reservation(buyer=a_tenant(name, **taxes))
        is_short = name == "german"
        factories.lease(of=row, returned_after_seconds=2700 if is_short else 3600)
    settlements.settle_ended(at=LATER)


def report(month: str = NOVEMBER) -> list[tax_reports.TaxRow]:
    return tax_reports.month_report(month=month, at=DECEMBER_FIRST)


@pytest.mark.usefixtures("market")
class TestReport:
    def test_adds_up_by_place_rate_and_treatment(self):
        rows = [(r.jurisdiction, r.treatment, r.rate_basis_points, r.net, r.tax) for r in report()]
        assert rows == [
            ("DE", "exempt", 0, 471, 0),
            ("DE", "standard", 1900, 471 + 353, 89 + 67),
            ("FI", "standard", 2550, 471, 120),
            ("FR", "reverse_charge", 0, 471, 0),
        ]

    def test_says_what_was_charged_and_what_went_back(self):
        row = next(r for r in report() if (r.jurisdiction, r.treatment) == ("DE", "standard"))
        assert (row.net_charged, row.net_refunded) == (942, 118)
        assert (row.tax_charged, row.tax_refunded, row.due) == (178, 22, 156)

    def test_names_a_customer_where_it_accounts_for_the_tax_and_nowhere_else(self):
        assert {r.tax_id for r in report() if r.treatment == "reverse_charge"} == {"DE123456789"}
        assert {r.tax_id for r in report() if r.treatment != "reverse_charge"} == {""}

    def test_is_what_the_books_owe(self):
        for place in ("DE", "FI", "FR"):
            owed = ledger.balance(account=accounts.tax_payable(jurisdiction=place, currency="usd"))
            assert owed == sum(row.due for row in report() if row.jurisdiction == place)

    def test_of_another_month_has_nothing(self):
        assert report("2026-10") == report("2026-12") == []

    def test_as_csv_and_json_says_the_same(self):
        texts = {}
        for form in ("csv", "json"):
            out = io.StringIO()
            call_command("tax_report", NOVEMBER, format=form, stdout=out)
            texts[form] = out.getvalue()
        from_json = [{k: str(v) for k, v in row.items()} for row in json.loads(texts["json"])]
        assert list(csv.DictReader(io.StringIO(texts["csv"]))) == from_json
        assert len(from_json) == 4


def test_a_refund_that_is_settled_in_a_later_month_is_filed_in_that_one():
    row = factories.reservation(buyer=a_tenant("german", basis_points=1900))
    lease = factories.lease(of=row, returned_after_seconds=2700)
    before = report()
    settlements.settle(lease_id=lease.pk, at=DECEMBER_FIRST + dt.timedelta(hours=1))
    assert report() == before
    assert before[0].tax == 89
    (december,) = report("2026-12")
    assert (december.net, december.tax) == (-118, -22)


@pytest.mark.parametrize("month", ["2026-13", "november", "2027-01"])
def test_a_month_that_is_none_or_has_not_begun_is_refused(month):
    with pytest.raises(InvalidValue):
        report(month)
    with pytest.raises(CommandError):
        call_command("tax_report", "2026-13")
