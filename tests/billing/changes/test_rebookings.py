"""Another window, for less, for more and for the same."""

import pytest
from django.db import transaction

from billing import parking
from billing.ledger import InsufficientFunds
from billing.models import Entry, FeeShare
from billing.states import AccountKind, EntryKind
from scheduler.models import Allocation, Change, Reservation
from tests.billing.bookings import FUNDS_MINOR, buy, extend, gpu_seconds, leave, rebook
from tests.billing.readings import balance, breaches, purse
from tests.scheduler.factories import NOW, make_pool, window_in

pytestmark = pytest.mark.django_db


class TestRebooking:
    def test_to_a_shorter_window_refunds_less_the_fee(self) -> None:
        owner = make_pool()
        reservation = buy(gpus=2, window=window_in(48, length=4))
        change = rebook(reservation, window=window_in(48, length=3))
        now = Reservation.objects.get(pk=reservation.pk)
        assert change.fee_minor > 0
        assert FeeShare.objects.get().owner == owner
        assert balance(AccountKind.DEFERRED, now.pk) == now.total_minor
        assert purse(now.organization) == FUNDS_MINOR - now.total_minor - change.fee_minor
        assert gpu_seconds(AccountKind.U_OPEN, of=now) == 2 * 3 * 3600
        assert gpu_seconds(AccountKind.U_RELEASED, of=now) == 2 * 3600
        assert breaches(at=NOW) == []

    def test_to_a_longer_window_charges_the_difference(self) -> None:
        make_pool()
        reservation = buy(gpus=2, window=window_in(48, length=4))
        change = rebook(reservation, window=window_in(47, length=7))
        now = Reservation.objects.get(pk=reservation.pk)
        assert change.charged_minor == now.total_minor - reservation.total_minor > 0
        assert purse(now.organization) == FUNDS_MINOR - now.total_minor
        assert gpu_seconds(AccountKind.U_OPEN, of=now) == 2 * 7 * 3600
        assert breaches(at=NOW) == []

    def test_moves_no_money_where_the_price_is_the_same(self) -> None:
        make_pool()
        reservation = buy(gpus=2, window=window_in(48, length=4))
        rebook(reservation, window=window_in(80, length=4))
        entry = Entry.objects.get(kind=EntryKind.CHANGE)
        assert {p.account.kind for p in entry.postings.select_related("account")} == {
            AccountKind.U_BOUGHT,
            AccountKind.U_RELEASED,
        }
        assert breaches(at=NOW) == []

    def test_that_cannot_be_paid_leaves_the_old_window(self) -> None:
        make_pool()
        reservation = buy(gpus=8, window=window_in(48, length=4))
        with pytest.raises(InsufficientFunds), transaction.atomic():
            rebook(reservation, window=window_in(48, length=24 * 150))
        now = Reservation.objects.get(pk=reservation.pk)
        assert (now.window, now.total_minor) == (reservation.window, reservation.total_minor)
        place = Allocation.objects.get(reservation=reservation, live=True)
        assert place.period.upper == reservation.ends_at
        assert breaches(at=NOW) == []

    def test_is_stopped_while_the_tenants_money_is_parked(self) -> None:
        make_pool()
        reservation = buy(window=window_in(48, length=4))
        parking.park(breaches={reservation.organization.pk: "a check"}, at=NOW)
        for change in (
            lambda: rebook(reservation, window=window_in(48, length=3)),
            lambda: extend(reservation),
            lambda: leave(reservation),
        ):
            with pytest.raises(parking.MoneyParked), transaction.atomic():
                change()
        assert not Change.objects.exists()
