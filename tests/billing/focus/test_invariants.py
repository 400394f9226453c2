"""The nightly check reads the exports: it holds for all that can happen, and finds what a rule gets wrong."""

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from billing import books, invoices
from billing.focus import charges, shares
from billing.focus import invariants as exports
from billing.models import InvoiceLine
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


def test_look_at_no_more_rows_than_they_may(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exports, "ROWS_MAX", 0)
    for name in ("Perceptron AG", "Adaline GmbH"):
        world.half_delivered(factories.tenant(name=name, funds_minor=1_000))
    assert broken() == set()
    assert "were not looked at" in caplog.text


def test_stop_nobodys_money(monkeypatch: pytest.MonkeyPatch) -> None:
    world.half_delivered(factories.tenant(funds_minor=1_000))
    monkeypatch.setattr(charges, "rows_of", lambda *_, **__: [])
    report = books.check(at=AT)
    assert not report.ok
    assert books.breaches_of(report) == {}
