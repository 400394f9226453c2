"""A credit for what was bought on account and is not paid lowers what is owed; only the rest can be spent."""

import datetime as dt

import pytest

from billing import corrections, invoices, refunds, settlements
from billing.models import Entry, Invoice, Posting, Settlement
from billing.states import AccountKind, EntryKind, InvoiceKind
from scheduler import leases, reservations
from scheduler.models import Lease, Reservation
from tests.billing import factories as books_factories
from tests.billing.debtors import a_debtor, buy, owed, pay_by_bank, sale_of
from tests.billing.readings import balance, breaches, purse
from tests.scheduler import factories
from tests.scheduler.factories import make_pool, make_quote, seconds, window_in

pytestmark = pytest.mark.django_db

LONG_AFTER = dt.timedelta(days=60)


def delivered(reservation: Reservation) -> Lease:
    """Let a reservation be delivered by its one lease, and end."""
    reservations.start_due(at=reservation.starts_at)
    lease = Lease.objects.get(reservation=reservation)
    factories.say_handed_over(lease)
    leases.advance(at=reservation.starts_at + seconds(5))
    leases.advance(at=reservation.ends_at)
    factories.say_returned(lease)
    closed_at = reservation.ends_at + seconds(5)
    leases.advance(at=closed_at)
    reservations.finish_due(at=closed_at)
    lease.refresh_from_db()
    return lease


def settled(reservation: Reservation) -> Settlement:
    settlements.settle_ended(at=reservation.ends_at + LONG_AFTER)
    return Settlement.objects.get(lease__reservation=reservation)


@pytest.fixture
def reservation() -> Reservation:
    """Return what was bought on account: half an hour of it was not delivered, by one GPU's outage."""
    make_pool()
    made = buy(make_quote(tenant=a_debtor(), gpus=8, window=window_in(48)))
    books_factories.outage(of=delivered(made), seconds=1800)
    return made


def test_an_unpaid_invoice_is_owed_by_so_much_less(reservation: Reservation) -> None:
    sale = sale_of(reservation)
    before = owed(sale)
    row = settled(reservation)
    assert row.credit_minor > 0
    assert owed(sale) == before - row.credit_minor
    assert purse(reservation.organization) == 0
    refunds.open_due(at=reservation.ends_at + LONG_AFTER)
    refunded = row.refunded_minor
    assert owed(sale) == before - refunded - row.credit_minor
    assert breaches(at=reservation.ends_at + 2 * LONG_AFTER) == []


def test_it_stands_apart_from_the_entry_that_gave_it(reservation: Reservation) -> None:
    row = settled(reservation)
    offset = Entry.objects.get(kind=EntryKind.OFFSET)
    legs = Posting.objects.filter(entry=offset).values_list("account__kind", "side", "amount")
    assert set(legs) == {
        (AccountKind.WALLET, "debit", row.credit_minor),
        (AccountKind.RECEIVABLE, "credit", row.credit_minor),
    }
    given = Entry.objects.get(kind=EntryKind.CREDIT)
    assert given.subject_id == row.lease_id


def test_the_price_and_its_tax_stay_so_no_credit_note_names_it(reservation: Reservation) -> None:
    row = settled(reservation)
    at = reservation.ends_at + LONG_AFTER
    refunds.open_due(at=at)
    invoices.credit_on_account(organization=reservation.organization, at=at)
    (note,) = Invoice.objects.filter(kind=InvoiceKind.CREDIT_NOTE)
    assert note.net_minor == row.refunded_minor


def test_of_a_paid_invoice_it_is_the_tenants_to_spend(reservation: Reservation) -> None:
    sale = sale_of(reservation)
    pay_by_bank(sale, owed(sale))
    row = settled(reservation)
    assert purse(reservation.organization) == row.credit_minor
    assert not Entry.objects.filter(kind=EntryKind.OFFSET).exists()


def test_of_an_invoice_that_is_open_by_less_the_rest_is_the_tenants(
    reservation: Reservation,
) -> None:
    sale = sale_of(reservation)
    pay_by_bank(sale, owed(sale) - 1)
    row = settled(reservation)
    assert owed(sale) == 0
    assert purse(reservation.organization) == row.credit_minor - 1
    assert breaches(at=reservation.ends_at + 2 * LONG_AFTER) == []


def test_what_is_owed_for_something_else_is_left_alone(reservation: Reservation) -> None:
    sale = sale_of(reservation)
    pay_by_bank(sale, owed(sale))
    other = sale_of(buy(make_quote(tenant=reservation.organization, window=window_in(96))))
    row = settled(reservation)
    assert owed(other) == other.amount_minor
    assert purse(reservation.organization) == row.credit_minor


def test_a_credit_that_comes_late_lowers_it_as_well() -> None:
    make_pool()
    made = buy(make_quote(tenant=a_debtor(), gpus=8, window=window_in(48)))
    lease = delivered(made)
    row = settled(made)
    assert row.credit_minor == 0
    before = owed(sale_of(made))
    books_factories.outage(of=lease, seconds=1800)
    assert row.review_due_at is not None
    correction = corrections.review(settlement_id=row.pk, at=row.review_due_at)
    assert correction is not None
    assert correction.credit_minor > 0
    assert owed(sale_of(made)) == before - correction.credit_minor
    assert purse(made.organization) == 0
    assert breaches(at=row.review_due_at + LONG_AFTER) == []


def test_what_no_lease_accounts_for_is_credited_likewise() -> None:
    make_pool()
    made = buy(make_quote(tenant=a_debtor(), window=window_in(48)))
    reservations.start_due(at=made.ends_at)
    settlements.settle_ended(at=made.ends_at)
    credit = round(made.total_minor / 10)
    assert owed(sale_of(made)) == made.total_minor - credit
    for _ in range(2):
        refunds.open_due(at=made.ends_at)
    # All of it was given back, so the credit is the tenant's in the end.
    assert owed(sale_of(made)) == 0
    assert purse(made.organization) == credit
    assert balance(AccountKind.REFUND_PAYABLE, made.pk) == 0
    assert breaches(at=made.ends_at + LONG_AFTER) == []
