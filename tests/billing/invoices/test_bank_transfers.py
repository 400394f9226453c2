"""A month in which bank transfers paid is closed like any other: what was paid and what went back is told.

Money that comes in has bought nothing: what is invoiced is the reservation that it pays for, in the month in
which it was paid.
"""

import datetime as dt
from typing import Any

import pytest

from agents.models import Node
from billing import books, changes, invoices
from billing.models import Invoice, Payer
from billing.month_movements import month_window
from billing.states import InvoiceKind
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler import cancellations
from scheduler.models import Reservation
from tests.billing.card_market import BANK, World, fund_cash
from tests.billing.focus import world as files
from tests.scheduler import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def world(provider: Any, clock: Any) -> World:
    return World(provider, clock)


def paid_by_bank(world: World, *, hours_later: int = 1) -> Reservation:
    """Reserve for a transfer, and let it arrive some hours later."""
    reservation: Reservation
    reservation, payment = world.reserve(BANK, starts_in=96)
    world.turn(hours=hours_later)
    wish = {"amount": str(payment.amount_minor), "currency": "usd"}
    fund_cash(world.stand_in, Payer.objects.get().customer_id, wish)
    world.turn()
    reservation.refresh_from_db()
    assert reservation.status == "scheduled"
    return reservation


def market_of_today(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nodes report and quotes be made by the clock of the test, a week after the market's noon."""
    pool, quote = factories.make_pool, factories.make_quote

    def make_pool() -> Organization:
        owner = pool()
        Node.objects.update(last_report_at=world.clock())
        return owner

    window = Window(world.clock() + factories.hours(97), world.clock() + factories.hours(99))
    monkeypatch.setattr(factories, "make_pool", make_pool)
    monkeypatch.setattr(
        factories,
        "make_quote",
        lambda **wish: quote(**{**wish, "window": window, "at": world.clock()}),
    )


def close(reservation: Reservation, *, month: str) -> list[Invoice]:
    return invoices.issue_month(
        organization=reservation.organization, month=month, at=month_window(month=month).ends_at
    )


def month_of(at: dt.datetime) -> str:
    return f"{at:%Y-%m}"


def told(reservation: Reservation, document: Invoice, *, months: list[str]) -> int:
    """Return what the rows of a document in the exports add up to, in minor units."""
    rows = [row for month in months for row in files.rows(reservation.organization, month=month)]
    of_it = [row for row in rows if row["InvoiceId"] == document.number]
    return int(files.total(of_it, "BilledCost") * 100)


def test_what_a_transfer_paid_is_invoiced_as_paid_and_what_goes_back_is_credited(
    world: World,
) -> None:
    reservation = paid_by_bank(world)
    quote = cancellations.quote(
        organization=reservation.organization, reservation_id=reservation.pk, at=world.clock()
    )
    change = changes.cancel(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        at=world.clock(),
        actor="test",
    )
    month = month_of(world.clock())
    invoice, note = close(reservation, month=month)
    assert (invoice.kind, invoice.due_at) == (InvoiceKind.INVOICE, None)
    assert invoice.total_minor == change.refunded_minor + change.fee_minor
    assert (note.corrects_id, note.total_minor) == (invoice.pk, change.refunded_minor)
    assert told(reservation, invoice, months=[month]) == invoice.total_minor
    assert told(reservation, note, months=[month]) == -note.total_minor
    report = books.check(at=world.clock())
    assert report.ok, [check for check in report.checks if not check.ok]


def test_a_transfer_that_arrives_after_the_month_is_invoiced_in_the_month_of_its_arrival(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = month_window(month=month_of(world.clock()))
    world.clock(seconds=int((first.ends_at - world.clock()).total_seconds()) - 3600)
    market_of_today(world, monkeypatch)
    reservation = paid_by_bank(world, hours_later=2)
    assert month_of(world.clock()) != month_of(first.starts_at)
    assert close(reservation, month=month_of(first.starts_at)) == []
    (invoice,) = close(reservation, month=month_of(world.clock()))
    assert invoice.total_minor == reservation.total_minor
    months = [month_of(first.starts_at), month_of(world.clock())]
    assert told(reservation, invoice, months=months[:1]) == 0
    assert told(reservation, invoice, months=months[1:]) == invoice.total_minor
    report = books.check(at=world.clock())
    assert report.ok, [check for check in report.checks if not check.ok]


def test_money_that_waits_for_its_reservation_is_on_no_document(world: World) -> None:
    reservation, payment = world.reserve(BANK, starts_in=96)
    wish = {"amount": str(payment.amount_minor - 1), "currency": "usd"}
    fund_cash(world.stand_in, Payer.objects.get().customer_id, wish)
    world.turn()
    assert close(reservation, month=month_of(world.clock())) == []
    world.turn(hours=13)
    reservation.refresh_from_db()
    assert reservation.status == "expired"
    assert not Invoice.objects.exists()
    report = books.check(at=world.clock())
    assert report.ok, [check for check in report.checks if not check.ok]
