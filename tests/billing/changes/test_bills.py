"""What the bill says of changes."""

import pytest

from agents.models import Node
from billing import bills
from scheduler.models import Reservation
from tests.billing.bookings import (
    FUNDS_MINOR,
    LONG_AFTER,
    buy,
    extend,
    finish,
    leave,
    rebook,
    start,
)
from tests.billing.readings import purse
from tests.scheduler.factories import NOW, hours, make_pool, seconds, window_in

pytestmark = pytest.mark.django_db


class TestBill:
    def told(self, reservation: Reservation) -> bills.Bill:
        now = Reservation.objects.get(pk=reservation.pk)
        bill = bills.reservation_bill(reservation=now, at=NOW + LONG_AFTER)
        seconds = bill.gpu_seconds
        assert bill.bought == bill.earned + bill.refunded + bill.fees + bill.open
        assert bill.net == bill.bought - bill.refunded
        assert seconds.bought == (
            seconds.delivered + seconds.undelivered + seconds.released + seconds.open
        )
        return bill

    def test_of_what_was_cancelled_is_the_fee(self) -> None:
        make_pool()
        reservation = buy(gpus=2, window=window_in(48))
        change = leave(reservation)
        bill = self.told(reservation)
        assert bill.final
        assert bill.bought.amount_minor == reservation.total_minor
        assert bill.fees.amount_minor == bill.net.amount_minor == change.fee_minor
        assert bill.gpu_seconds.released == bill.gpu_seconds.bought == 2 * 2 * 3600

    def test_of_what_was_extended_shortened_and_returned_adds_up(self) -> None:
        make_pool()
        reservation = buy(gpus=2, window=window_in(48, length=4))
        added = extend(reservation, by=2)
        given = rebook(reservation, window=window_in(48, length=5))
        now = Reservation.objects.get(pk=reservation.pk)
        Node.objects.update(last_report_at=now.starts_at)
        start(now)
        left_at = now.starts_at + hours(1) - seconds(1)
        rest = leave(now, at=left_at)
        finish(now, at=left_at + seconds(5))
        bill = self.told(now)
        assert bill.final
        assert bill.bought.amount_minor == reservation.total_minor + added.charged_minor
        assert bill.fees.amount_minor == given.fee_minor + rest.fee_minor
        assert bill.gpu_seconds.delivered == 2 * 3600
        assert bill.gpu_seconds.released == 2 * 5 * 3600
        assert bill.net.amount_minor == FUNDS_MINOR - purse(now.organization)
