import datetime as dt

import pytest

from agents.protocol import ReceiptKind
from billing import bills, corrections, settlements
from billing.bills import Bill, GpuSeconds
from billing.states import UndeliveredReason
from marketplace.core.money import Money
from scheduler.models import Reservation
from scheduler.states import LeaseStatus, ReservationStatus
from tests.billing import factories

pytestmark = pytest.mark.django_db

LATER = factories.START + dt.timedelta(days=1)


def usd(minor: int) -> Money:
    return Money(minor, "usd")


def bill_of(reservation: Reservation, *, at: dt.datetime = LATER) -> Bill:
    reservation.refresh_from_db()
    bill = bills.reservation_bill(reservation=reservation, at=at)
    seconds = bill.gpu_seconds
    assert seconds.bought == seconds.delivered + seconds.undelivered + seconds.open
    assert seconds.delivered == seconds.busy + seconds.idle
    assert bill.bought == bill.earned + bill.refunded + bill.open
    assert bill.net == bill.bought - bill.refunded
    return bill


class TestFinalBill:
    def test_adds_up(self):
        reservation = factories.reservation(
            buyer=factories.tenant(funds_minor=471), status=ReservationStatus.COMPLETED
        )
        lease = factories.lease(of=reservation, handed_over_after_seconds=900)
        for gpu in range(2):
            factories.meter(
                of=lease,
                gpu=gpu,
                from_second=900,
                seconds=2700,
                busy=1350,
                energy_millijoules=1_800_000_000,
            )
        settlements.settle_ended(at=LATER)
        bill = bill_of(reservation)
        assert bill.final
        assert bill.gpu_seconds == GpuSeconds(
            bought=7200,
            delivered=5400,
            busy=2700,
            idle=2700,
            undelivered=1800,
            open=0,
            undelivered_by_reason={UndeliveredReason.HANDOVER: 1800},
        )
        assert (bill.earned, bill.refunded, bill.net) == (usd(353), usd(118), usd(353))
        assert bill.rate == "2.352942"
        assert bill.cost_per_delivered_gpu_hour == "2.353333"
        assert bill.cost_per_busy_gpu_hour == "4.706667"
        assert (bill.meter_coverage, bill.energy_kwh) == ("1.0000", "1.000000")
        assert [line.lease_id for line in bill.lines] == [lease.id]
        assert bill.simulated

    def test_says_nothing_where_nothing_was_measured(self):
        reservation = factories.reservation(
            buyer=factories.tenant(funds_minor=471), status=ReservationStatus.FAILED
        )
        factories.lease(of=reservation, status=LeaseStatus.FAILED, handed_over_after_seconds=None)
        settlements.settle_ended(at=LATER)
        bill = bill_of(reservation)
        assert bill.final
        assert bill.refunded == usd(471)
        assert bill.cost_per_delivered_gpu_hour is None
        assert bill.cost_per_busy_gpu_hour is None
        assert bill.meter_coverage is None
        assert bill.energy_kwh is None

    def test_shows_the_refund_of_what_never_had_a_lease(self):
        reservation = factories.reservation(
            buyer=factories.tenant(funds_minor=471), status=ReservationStatus.FAILED
        )
        assert not bill_of(reservation).final
        settlements.settle_ended(at=LATER)
        bill = bill_of(reservation)
        assert bill.final
        assert bill.gpu_seconds.undelivered == 7200
        assert (bill.refunded, bill.net) == (usd(471), usd(0))

    def test_is_empty_for_what_was_never_paid(self):
        reservation = factories.reservation(
            buyer=factories.tenant(), status=ReservationStatus.EXPIRED, paid=False
        )
        bill = bill_of(reservation)
        assert bill.final
        assert (bill.gpu_seconds.bought, bill.bought, bill.net) == (0, usd(0), usd(0))


class TestBillSoFar:
    def test_is_all_open_before_the_start(self):
        reservation = factories.reservation(
            buyer=factories.tenant(funds_minor=471), status=ReservationStatus.SCHEDULED
        )
        bill = bill_of(reservation, at=factories.START)
        assert not bill.final
        assert (bill.gpu_seconds.open, bill.open) == (7200, usd(471))
        assert bill.net == usd(471)

    def test_shows_what_runs(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        lease = factories.lease(of=reservation, status=LeaseStatus.ACTIVE)
        factories.meter(of=lease, seconds=600, busy=300)
        bill = bill_of(reservation, at=factories.START + dt.timedelta(minutes=20))
        assert not bill.final
        assert bill.gpu_seconds == GpuSeconds(
            bought=7200, delivered=2400, busy=300, idle=2100, undelivered=0, open=4800
        )
        assert bill.meter_coverage == "0.2500"
        assert bill.cost_per_delivered_gpu_hour is None

    def test_mixes_settled_and_running_leases(self):
        reservation = factories.reservation(
            buyer=factories.tenant(funds_minor=1000), gpus=4, total_minor=1000
        )
        factories.lease(of=reservation, gpus=2, handed_over_after_seconds=1800)
        factories.lease(of=reservation, gpus=2, status=LeaseStatus.ACTIVE)
        settlements.settle_ended(at=LATER)
        bill = bill_of(reservation, at=factories.START + dt.timedelta(minutes=30))
        assert (bill.earned, bill.refunded, bill.open) == (usd(250), usd(250), usd(500))
        assert bill.gpu_seconds.undelivered == 3600
        assert [line.settled for line in bill.lines] == [True, False]

    def test_is_open_for_what_waits_for_payment(self):
        reservation = factories.reservation(
            buyer=factories.tenant(), status=ReservationStatus.PAYMENT_PENDING, paid=False
        )
        bill = bill_of(reservation)
        assert not bill.final
        assert bill.open == usd(471)


def test_a_bill_measures_by_what_came_after_the_settlement():
    reservation = factories.reservation(
        buyer=factories.tenant(funds_minor=471), status=ReservationStatus.COMPLETED
    )
    lease = factories.lease(of=reservation, returned_after_seconds=1800)
    for gpu in range(2):
        factories.meter(of=lease, gpu=gpu, seconds=1800, energy_millijoules=1_800_000_000)
    settlement = settlements.settle(lease_id=lease.id, at=LATER)
    assert settlement is not None
    assert (bill_of(reservation).meter_coverage, bill_of(reservation).energy_kwh) == (
        "1.0000",
        "1.000000",
    )

    factories.receipt(of=lease, kind=ReceiptKind.RETURN)
    corrections.review(settlement_id=settlement.pk, at=LATER + dt.timedelta(hours=1))
    assert bill_of(reservation).meter_coverage == "0.5000"
    for gpu in range(2):
        factories.meter(
            of=lease, gpu=gpu, from_second=1800, seconds=1800, energy_millijoules=1_800_000_000
        )
    corrections.review(settlement_id=settlement.pk, at=LATER + dt.timedelta(hours=6))

    bill = bill_of(reservation)
    assert bill.gpu_seconds.delivered == 7200
    assert (bill.meter_coverage, bill.energy_kwh) == ("1.0000", "2.000000")
