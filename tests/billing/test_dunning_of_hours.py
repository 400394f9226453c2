"""The last step gives back what is not paid, and touches nothing of the same reservation that is."""

import datetime as dt
from typing import Any

import pytest

from billing import changes, dunning, wallet
from billing.dunning import ACTOR
from billing.models import CreditSale, DunningCase
from billing.states import AccountKind
from marketplace.core.money import Money
from marketplace.core.windows import Window
from marketplace.models import Event, Listing, Organization
from scheduler import rebookings
from scheduler.models import Change, Reservation
from scheduler.rebookings import WindowWish
from tests.billing import bookings
from tests.billing.debtors import a_debtor, buy, owed, pay_by_bank, sale_of
from tests.billing.readings import balance, breaches, purse
from tests.scheduler.factories import NOW, hours, make_pool, make_quote, window_in

pytestmark = pytest.mark.django_db

STARTS = 24 * 50  # hours from now: the last step comes after 28 days
FUNDS = 1_000_000
SUSPENDED_AT = NOW + dt.timedelta(days=28)


def a_tenant() -> Organization:
    make_pool()
    tenant = a_debtor(net_days=14)
    wallet.record_deposit(
        organization=tenant,
        amount=Money(FUNDS, "usd"),
        idempotency_key="first",
        at=NOW,
        actor="test",
    )
    return tenant


def bought(*ways: str, length: float = 1) -> Reservation:
    """Return what is bought in the first of some ways, and extended by two hours in each of the others."""
    quote = make_quote(tenant=a_tenant(), gpus=2, window=window_in(STARTS, length=length))
    reservation = buy(quote, payment_method=ways[0])
    for way in ways[1:]:
        bookings.extend(reservation, payment_method=way)
        reservation.refresh_from_db()
    return reservation


def moved(reservation: Reservation, *, starts: float, ends: float) -> Reservation:
    """Give a reservation another window, its hours from now, and owe the difference."""
    bookings.rebook(
        reservation,
        window=Window(NOW + hours(starts), NOW + hours(ends)),
        payment_method="invoice",
    )
    reservation.refresh_from_db()
    return reservation


def dunned(reservation: Reservation) -> Reservation:
    """Let every step be taken, and the daily tick go on for a week after the last one."""
    at = NOW
    while at <= SUSPENDED_AT + dt.timedelta(days=7):
        dunning.advance_due(at=at)
        at += hours(24)
    reservation.refresh_from_db()
    assert breaches(at=at) == []
    return reservation


def window_of(reservation: Reservation) -> tuple[float, float]:
    """Return the window in hours from the start that was bought first."""
    zero = NOW + hours(STARTS)
    return (reservation.starts_at - zero) / hours(1), (reservation.ends_at - zero) / hours(1)


def told(kind: str) -> dict[str, Any]:
    data: dict[str, Any] = Event.objects.get(kind=kind).data
    return data


class TestAnUnpaidExtension:
    def test_of_what_the_wallet_paid_is_given_back_alone(self) -> None:
        reservation = bought("wallet", "invoice")
        paid = FUNDS - purse(reservation.organization)
        dunned(reservation)
        assert (reservation.status, window_of(reservation)) == ("scheduled", (0, 1))
        assert reservation.total_minor == paid
        assert purse(reservation.organization) == FUNDS - paid
        # The fee is of what was given back, and that is all that is owed; it ends nothing more.
        shortened = Change.objects.get(actor=ACTOR)
        extended = Change.objects.exclude(pk=shortened.pk).get()
        assert shortened.refunded_minor + shortened.fee_minor == extended.charged_minor
        assert owed(CreditSale.objects.get()) == shortened.fee_minor > 0
        kept = balance(AccountKind.DEFERRED, reservation.pk)
        assert kept == paid
        data = told("credit.suspended")
        assert data["shortened_reservation_ids"] == [reservation.pk]
        assert data["cancelled_reservation_ids"] == []

    def test_of_an_invoice_that_was_paid_is_given_back_alone(self) -> None:
        reservation = bought("invoice", "invoice")
        first = sale_of(reservation)
        pay_by_bank(first, first.amount_minor)
        dunned(reservation)
        assert (reservation.status, window_of(reservation)) == ("scheduled", (0, 1))

    def test_that_is_paid_in_time_stays(self) -> None:
        reservation = bought("wallet", "invoice")
        sale = CreditSale.objects.get()
        pay_by_bank(sale, sale.amount_minor)
        dunned(reservation)
        assert (reservation.status, window_of(reservation)) == ("scheduled", (0, 3))

    def test_between_hours_that_are_paid_stays_and_is_asked_for(self) -> None:
        reservation = bought("wallet", "invoice", "wallet")
        dunned(reservation)
        assert (reservation.status, window_of(reservation)) == ("scheduled", (0, 5))
        sale = CreditSale.objects.get()
        assert owed(sale) == sale.amount_minor
        case = DunningCase.objects.get()
        assert case.status == "suspended"
        assert case.act_due_at is not None

    def test_after_which_owners_sell_nothing_so_short_stays_and_is_asked_for(self) -> None:
        reservation = bought("wallet", "invoice")
        Listing.objects.update(duration_seconds_min=2 * 3600)
        dunned(reservation)
        assert (reservation.status, window_of(reservation)) == ("scheduled", (0, 3))
        assert not Change.objects.filter(actor=ACTOR).exists()

    def test_is_announced_by_its_hours(self) -> None:
        reservation = bought("wallet", "invoice")
        dunned(reservation)
        data = told("invoice.warned")
        assert data["will_end_reservations"] == 1
        starts_at, ends_at = (NOW + hours(STARTS + each) for each in (1, 3))
        assert data["will_end"] == [
            {
                "reservation_id": reservation.pk,
                "starts_at": f"{starts_at:%Y-%m-%dT%H:%M:%SZ}",
                "ends_at": f"{ends_at:%Y-%m-%dT%H:%M:%SZ}",
            }
        ]
        reminded = told("invoice.reminded")
        assert "will_end" not in reminded


class TestAnUnpaidPurchase:
    def test_before_an_extension_that_is_paid_is_given_back_alone(self) -> None:
        reservation = bought("invoice", "wallet")
        paid = FUNDS - purse(reservation.organization)
        dunned(reservation)
        assert (reservation.status, window_of(reservation)) == ("scheduled", (1, 3))
        assert purse(reservation.organization) == FUNDS - paid
        (threatened,) = told("invoice.warned")["will_end"]
        assert threatened["ends_at"] == f"{NOW + hours(STARTS + 1):%Y-%m-%dT%H:%M:%SZ}"

    def test_with_an_extension_that_is_not_paid_either_is_cancelled_whole(self) -> None:
        reservation = bought("invoice", "invoice")
        dunned(reservation)
        assert reservation.status == "cancelled"
        named = [
            event.data["cancelled_reservation_ids"]
            for event in Event.objects.filter(kind="credit.suspended")
        ]
        assert [reservation.pk] in named

    def test_around_an_extension_that_is_paid_leaves_that(self) -> None:
        reservation = bought("invoice", "wallet", "invoice")
        dunned(reservation)
        assert (reservation.status, window_of(reservation)) == ("scheduled", (1, 3))


class TestAnotherWindow:
    """Hours that were given up for others have paid for these as far as they go."""

    @pytest.mark.parametrize(
        ("starts", "ends", "kept"),
        [
            pytest.param(0, 4, (0, 2), id="longer at its end"),
            pytest.param(-2, 2, (0, 2), id="longer at its start"),
            pytest.param(-2, 4, (0, 2), id="longer at both"),
            pytest.param(1, 5, (1, 3), id="later and longer"),
            pytest.param(-3, 1, (-1, 1), id="earlier and longer"),
            pytest.param(10, 15, (10, 12), id="at another time"),
        ],
    )
    def test_keeps_as_much_as_was_paid(self, starts, ends, kept) -> None:
        reservation = bought("wallet", length=2)
        moved(reservation, starts=STARTS + starts, ends=STARTS + ends)
        assert owed(CreditSale.objects.get()) > 0
        dunned(reservation)
        assert (reservation.status, window_of(reservation)) == ("scheduled", kept)

    def test_that_was_shortened_again_by_its_tenant_keeps_no_hour_that_is_not_paid(self) -> None:
        reservation = bought("wallet", "invoice", length=2)
        quote = rebookings.quote(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            wish=WindowWish(ends_at=reservation.ends_at - hours(1)),
            at=NOW,
        )
        changes.rebook(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            payment_method="wallet",
            at=NOW,
            actor="test",
        )
        dunned(reservation)
        assert (reservation.status, window_of(reservation)) == ("scheduled", (0, 2))
