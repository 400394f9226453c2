"""The nightly check reads the exports: it holds for all that can happen, and finds what a rule gets wrong."""

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from django.db.models import Value
from django.db.models.functions import Concat

from billing import books, corrections, focus, invoices, settlements
from billing.focus import charges, manifests, shares
from billing.focus import invariants as exports
from billing.models import ExportDigest, InvoiceLine
from marketplace.models import Organization
from tests.billing import factories
from tests.billing.focus import world
from tests.billing.focus.test_reconciliation import extended_and_half_given_back

pytestmark = pytest.mark.django_db

AT = dt.datetime(2026, 12, 20, tzinfo=dt.UTC)


def broken() -> set[str]:
    return {name for name, found in exports.breaches(at=AT).items() if found}


def lived_in_and_closed() -> None:
    tenant = world.lived_in()
    for month in ("2026-10", "2026-11"):
        invoices.issue_month(organization=tenant, month=month, at=AT)


@pytest.mark.parametrize("is_closed", [False, True])
def test_hold_for_everything_that_has_happened(*, is_closed: bool) -> None:
    if is_closed:
        lived_in_and_closed()
    else:
        world.lived_in()
    assert exports.breaches(at=AT) == {name: [] for name in exports.SENTENCES}
    checked = {check.name for check in books.check(at=AT).checks}
    assert checked >= set(exports.SENTENCES)


@pytest.mark.parametrize("currency", ["usd", "jpy", "kwd"])
def test_hold_in_every_currency_with_tax(settings: Any, currency: str) -> None:
    settings.CURRENCY = currency
    tenant = factories.taxed(
        buyer=factories.tenant(funds_minor=world.FUNDS_MINOR, currency=currency)
    )
    world.over_the_end_of_a_month(tenant, currency=currency, rate=Decimal("312.333333"))
    world.half_delivered(tenant, currency=currency)
    invoices.issue_month(organization=tenant, month="2026-11", at=AT)
    assert broken() == set()


def test_hold_where_several_notes_credit_one_refund() -> None:
    tenant = factories.taxed(buyer=factories.tenant(funds_minor=world.FUNDS_MINOR))
    extended_and_half_given_back(tenant)
    assert len(invoices.credit_on_account(organization=tenant, at=AT)) == 2
    assert broken() == set()


@pytest.mark.parametrize(
    ("rule", "wrong", "expected"),
    [
        pytest.param(
            "_purchase",
            lambda row: {**row, "BilledCost": "1.0"},
            {"exports_tell_what_was_charged", "exports_tell_each_line"},
            id="another price",
        ),
        pytest.param(
            "_purchase",
            lambda row: {**row, "EffectiveCost": "1.0"},
            {"exports_tell_what_was_charged"},
            id="effective at once",
        ),
        pytest.param(
            "_purchase",
            lambda row: {**row, "PricingQuantity": "1.0"},
            {"exports_tell_every_hour"},
            id="fewer hours",
        ),
        pytest.param(
            "_returned",
            lambda row: {**row, "InvoiceDetailId": "inl_of_another"},
            {"exports_tell_each_line"},
            id="another line",
        ),
    ],
)
def test_find_a_row_that_says_something_else(
    monkeypatch: pytest.MonkeyPatch, rule: str, wrong: Callable[[Any], Any], expected: set[str]
) -> None:
    lived_in_and_closed()
    right = getattr(charges, rule)
    monkeypatch.setattr(charges, rule, lambda *args, **kwargs: wrong(right(*args, **kwargs)))
    assert broken() == expected


def test_find_a_refund_that_is_told_on_the_first_of_its_notes_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extended_and_half_given_back(factories.tenant(funds_minor=world.FUNDS_MINOR))
    tenant = InvoiceLine.objects.all()[0].invoice.organization
    invoices.credit_on_account(organization=tenant, at=AT)
    right = shares.given_back
    monkeypatch.setattr(
        shares,
        "given_back",
        lambda *, minor, seconds, places: [
            shares.Share(
                minor=minor,
                seconds=seconds,
                place=right(minor=minor, seconds=seconds, places=places)[0].place,
            )
        ],
    )
    assert broken() == {"exports_tell_each_line"}


def test_find_a_row_that_is_more_busy_than_there(monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = factories.tenant(funds_minor=world.FUNDS_MINOR)
    world.over_the_end_of_a_month(tenant)
    right = charges.rows_of
    monkeypatch.setattr(
        charges,
        "rows_of",
        lambda *args, **kwargs: [
            {**row, "x_BusyGpuHours": row["x_BusyGpuHours"] and "99.0"}
            for row in right(*args, **kwargs)
        ],
    )
    assert broken() == {"exports_tell_every_hour"}


def test_look_at_no_more_rows_than_they_may_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "ROWS_MAX", 0)
    for name in ("Perceptron AG", "Adaline GmbH"):
        world.half_delivered(factories.tenant(name=name, funds_minor=1_000))
    found = exports.breaches(at=AT)
    ((said, whose),) = found.pop("exports_are_looked_at")
    assert said.startswith("the exports of 1 tenants from org_")
    assert whose is None
    assert not any(found.values())


def test_let_a_correction_find_more_busy_than_it_delivers() -> None:
    tenant = factories.tenant(funds_minor=world.FUNDS_MINOR)
    lease = factories.lease(of=factories.reservation(buyer=tenant))
    settlements.settle(lease_id=lease.pk, at=world.LATER)
    factories.meter_fully(of=lease)
    assert corrections.review_due(at=world.LATER + dt.timedelta(hours=2)) == 1
    (row,) = (each for each in world.rows(tenant) if each["x_EventType"] == "correction")
    assert (row["x_DeliveredGpuHours"], row["x_UndeliveredReason"]) == ("0.0", "")
    assert Decimal(row["x_BusyGpuHours"]) > 0
    assert broken() == set()


class TestKeptDigests:
    """Of each file of a closed month that was counted, some night looks whether it is still the same."""

    @pytest.fixture(autouse=True)
    def three_nights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(manifests, "CHECKED_EVERY_NIGHTS", 3)

    def kept(self) -> ExportDigest:
        lived_in_and_closed()
        (tenant,) = Organization.objects.filter(month_closes__month="2026-11")
        manifest = self.manifest(tenant)
        assert manifest.is_final
        digest = ExportDigest.objects.get()
        assert (digest.sha256, digest.rows) == (manifest.sha256, manifest.rows)
        return digest

    def manifest(self, tenant: Organization) -> manifests.Manifest:
        key: dict[str, Any] = {
            "organization": tenant,
            "month": "2026-11",
            "version": focus.Version.V1_4,
            "dataset": focus.Dataset.COST_AND_USAGE,
            "at": AT + dt.timedelta(days=1),
        }
        return manifests.of(**key, read=lambda: focus.lines(**key))

    def nights(self) -> list[set[str]]:
        days = range(manifests.CHECKED_EVERY_NIGHTS)
        return [
            {
                name
                for name, found in exports.breaches(at=AT + dt.timedelta(days=day)).items()
                if found
            }
            for day in days
        ]

    def test_hold_while_nothing_changes(self) -> None:
        self.kept()
        assert self.nights() == [set()] * manifests.CHECKED_EVERY_NIGHTS

    def test_find_in_one_night_of_all_a_file_that_says_something_else(self, unguarded: Any) -> None:
        digest = self.kept()
        with unguarded():
            InvoiceLine.objects.filter(invoice__period="2026-11").update(
                entry_key=Concat("id", Value("x"))
            )
        found = self.nights()
        assert sum("exports_stay_as_they_were" in night for night in found) == 1
        text = list(manifests.breaches(at=AT + dt.timedelta(days=found.index(max(found, key=len)))))
        assert digest.sha256[:12] in text[0]

    def test_are_not_of_another_layout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        digest = self.kept()
        monkeypatch.setattr(manifests, "LAYOUT", manifests.LAYOUT + 1)
        self.manifest(digest.organization)
        assert ExportDigest.objects.count() == 2


def test_stop_nobodys_money(monkeypatch: pytest.MonkeyPatch) -> None:
    world.half_delivered(factories.tenant(funds_minor=1_000))
    monkeypatch.setattr(charges, "rows_of", lambda *_, **__: [])
    report = books.check(at=AT)
    assert not report.ok
    assert books.breaches_of(report) == {}
