"""The tax of changes, with the real scheduler beneath: a fee is taxed, and refunds take their tax along."""

from typing import Any

import pytest
from django.db import transaction

from billing import accounts, books, ledger, tax, tax_rules
from billing.models import TaxLine
from billing.states import AccountKind, EntryKind
from scheduler.models import Reservation
from tests.billing.bookings import (
    FUNDS_MINOR,
    LONG_AFTER,
    extend,
    finish,
    leave,
    purchase,
    rebook,
    start,
)
from tests.billing.readings import purse
from tests.billing.test_checkout import buyer
from tests.scheduler import factories
from tests.scheduler.factories import NOW, make_pool, seconds, window_in

pytestmark = pytest.mark.django_db


def buy(**wishes: Any) -> Reservation:
    """Let a tenant that is taxed with 19 % buy what is wished from its wallet."""
    tenant = buyer(funds_minor=FUNDS_MINOR)
    tax_rules.publish_rule(
        jurisdiction="DE", name="VAT", rate_basis_points=1900, at=NOW, actor="test"
    )
    tax_rules.set_status(
        organization=tenant, jurisdiction="DE", treatment="standard", at=NOW, actor="test"
    )
    return purchase(factories.make_quote(tenant=tenant, **wishes))


def payable() -> int:
    return ledger.balance(account=accounts.tax_payable(jurisdiction="DE", currency="usd"))


def with_tax(net_minor: int) -> int:
    return net_minor + round(net_minor * 19 / 100)


def assert_books_hold() -> None:
    report = books.check(at=NOW + LONG_AFTER)
    assert report.ok, [check for check in report.checks if not check.ok]


def test_a_cancellation_keeps_the_tax_of_its_fee_and_gives_back_the_rest():
    make_pool()
    reservation = buy(gpus=8, window=window_in(48))
    assert purse(reservation.organization) == FUNDS_MINOR - with_tax(reservation.total_minor)
    change = leave(reservation)
    assert change.fee_minor
    assert purse(reservation.organization) == FUNDS_MINOR - with_tax(change.fee_minor)
    assert payable() == round(change.fee_minor * 19 / 100)
    assert_books_hold()


def test_a_cancellation_that_costs_everything_gives_back_no_tax():
    make_pool()
    reservation = buy(gpus=2, window=window_in(3))
    leave(reservation)
    assert purse(reservation.organization) == FUNDS_MINOR - with_tax(reservation.total_minor)
    assert TaxLine.objects.count() == 1
    assert_books_hold()


def test_an_extension_is_charged_with_its_tax_and_settles_at_that_of_the_whole():
    make_pool()
    reservation = buy(gpus=2, window=window_in(1))
    start(reservation)
    extend(reservation, by=1, at=reservation.starts_at + seconds(60))
    now = Reservation.objects.get(pk=reservation.pk)
    assert purse(reservation.organization) == FUNDS_MINOR - with_tax(now.total_minor)
    assert payable() == round(now.total_minor * 19 / 100)
    finish(now, at=now.ends_at + seconds(4))
    assert payable() == round(now.total_minor * 19 / 100)
    assert_books_hold()


def test_an_extension_that_the_wallet_covers_without_its_tax_alone_is_refused_with_what_is_missing():
    make_pool()
    reservation = buy(gpus=2, window=window_in(24))
    before = purse(reservation.organization)
    added = reservation.total_minor
    drain(reservation, left=added)
    with pytest.raises(ledger.InsufficientFunds) as refused, transaction.atomic():
        extend(reservation)
    missing = with_tax(2 * added) - with_tax(added) - added
    assert refused.value.extra["missing"] == {"amount_minor": missing, "currency": "usd"}
    assert before > added


def test_a_move_to_a_shorter_window_gives_back_the_tax_of_the_difference():
    make_pool()
    reservation = buy(gpus=2, window=window_in(48, length=4))
    change = rebook(reservation, window=window_in(48, length=2))
    kept = reservation.total_minor - change.refunded_minor
    assert change.refunded_minor
    assert purse(reservation.organization) == FUNDS_MINOR - with_tax(kept)
    assert_books_hold()


def test_an_early_return_gives_back_the_tax_of_what_was_not_used():
    make_pool()
    reservation = buy(gpus=2, window=window_in(1, length=4))
    start(reservation)
    at = reservation.starts_at + seconds(5_000)
    change = leave(reservation, at=at)
    finish(reservation, at=at + seconds(30))
    kept = tax.net_kept(reservation=reservation)
    assert kept <= reservation.total_minor - change.refunded_minor
    assert payable() == round(kept * 19 / 100)
    assert_books_hold()


def drain(reservation: Reservation, *, left: int) -> None:
    ledger.post(
        idempotency_key="spent",
        kind=EntryKind.WITHDRAWAL,
        subject_id="spent",
        effective_at=NOW,
        legs=ledger.transfer(
            debited=accounts.wallet(organization=reservation.organization, currency="usd"),
            credited=ledger.AccountRef(AccountKind.BANK, "usd"),
            amount=purse(reservation.organization) - left,
        ),
    )
