"""The listener to locks: it hears who breaks the order, and nobody who keeps it."""

import pytest
from django.db import transaction

from billing import ledger, receivables, wallet
from marketplace.models import Organization
from scheduler import changes
from scheduler.models import Reservation
from tests import lock_order
from tests.billing.bookings import a_tenant
from tests.races.test_changes import buy
from tests.scheduler.factories import make_pool

pytestmark = pytest.mark.django_db


@pytest.fixture
def reservation() -> Reservation:
    make_pool()
    return buy(a_tenant())


def lock_wallet(of: Organization) -> None:
    ledger.locked_balance(account=wallet.account(organization=of, currency="usd"))


def lock_reservation(row: Reservation) -> None:
    changes.locked(organization=row.organization, reservation_id=row.pk)


class TestListener:
    def test_hears_a_purchase_in_its_order(self) -> None:
        make_pool()
        tenant = a_tenant()
        with lock_order.listening() as listener:
            buy(tenant)
        assert listener.seen >= {"wallet", "GPUs", "other accounts"}
        assert not listener.breaches

    def test_hears_a_reservation_after_the_wallet(self, reservation: Reservation) -> None:
        with lock_order.listening() as listener, transaction.atomic():
            lock_wallet(reservation.organization)
            lock_reservation(reservation)
        (breach,) = listener.breaches
        assert f"reservation', key='{reservation.pk}'" in breach

    def test_hears_nothing_where_the_row_was_held_before(self, reservation: Reservation) -> None:
        with lock_order.listening() as listener, transaction.atomic():
            lock_reservation(reservation)
            receivables.lock_refund(reservation=reservation)
            lock_reservation(reservation)
        assert not listener.breaches

    def test_hears_nothing_of_another_transaction(self, reservation: Reservation) -> None:
        with lock_order.listening() as listener:
            with transaction.atomic():
                lock_wallet(reservation.organization)
            with transaction.atomic():
                lock_reservation(reservation)
        assert not listener.breaches

    def test_hears_nothing_of_what_was_undone(self, reservation: Reservation) -> None:
        with lock_order.listening() as listener, transaction.atomic():
            with transaction.atomic():
                lock_wallet(reservation.organization)
                transaction.set_rollback(True)
            lock_reservation(reservation)
        assert not listener.breaches
