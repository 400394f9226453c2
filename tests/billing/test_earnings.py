"""Hours of running leases are earned once their evidence is in, and the settlement posts the rest."""

import datetime as dt
from decimal import Decimal

import pytest

from billing import books, earnings, ledger, purchases, settlements
from billing.models import EarnedHour, Entry, Settlement
from billing.states import AccountKind
from marketplace.core.windows import Window
from scheduler.lots import Lot, Lots
from scheduler.models import Lease, Reservation
from scheduler.states import LeaseStatus, ReservationStatus
from scheduler.tariffs import Segment, Tariff
from tests.billing import factories

pytestmark = pytest.mark.django_db

START = factories.START
CLOSE_AFTER = dt.timedelta(seconds=earnings.CLOSE_AFTER_SECONDS)


def hours(number: float) -> dt.timedelta:
    return dt.timedelta(hours=number)


def priced_by_the_hour(*rates: str, gpus: int = 2) -> Reservation:
    """Return a reservation whose hours cost something else each, in dollars per GPU-hour."""
    window = Window(START, START + hours(len(rates)))
    begin = int(START.timestamp())
    tariff = Tariff.of(
        [
            Segment(begin + 3600 * n, begin + 3600 * (n + 1), int(Decimal(rate) * 10**6))
            for n, rate in enumerate(rates)
        ]
    )
    total = tariff.amount(window=window, gpus=gpus, currency="usd").amount_minor
    row = factories.reservation(
        buyer=factories.tenant(funds_minor=total),
        gpus=gpus,
        hours=len(rates),
        rate=tariff.mean_rate,
        total_minor=total,
        paid=False,
    )
    # The owner asked for one dollar: every hour's price is above it.
    lot = Lot(gpus=gpus, floors=Tariff.flat(window=window, rate=Decimal(1)), tariff=tariff)
    Reservation.objects.filter(pk=row.pk).update(lots=Lots((lot,)).as_json())
    row = Reservation.objects.get(pk=row.pk)
    purchases.post(reservation=row, at=START)
    return row


def running(of: Reservation) -> Lease:
    lease = factories.lease(of=of, status=LeaseStatus.ACTIVE, returned_after_seconds=None)
    for gpu in range(of.gpus):
        factories.meter(of=lease, gpu=gpu, seconds=of.window.seconds, busy=60)
    return lease


def end(lease: Lease, *, at: dt.datetime | None = None) -> None:
    instant = at or lease.ends_at
    Lease.objects.filter(pk=lease.pk).update(
        status=LeaseStatus.ENDED, returned_at=instant, closed_at=instant
    )
    Reservation.objects.filter(pk=lease.reservation_id).update(status=ReservationStatus.COMPLETED)


def accrued(lease: Lease) -> int:
    return ledger.balance(account=ledger.AccountRef(AccountKind.OWNER_ACCRUED, "usd", lease.id))


class TestCloseDue:
    def test_earns_each_hour_at_its_own_price(self):
        lease = running(priced_by_the_hour("2.000000", "6.000000", "2.000000"))
        assert earnings.close_due(at=START + hours(1) + CLOSE_AFTER) == 1
        # Two GPUs for an hour at 2.00 are 400 cents: 60 are the fee.
        assert accrued(lease) == 340
        assert earnings.close_due(at=START + hours(2) + CLOSE_AFTER) == 1
        assert accrued(lease) == 340 + 1020
        rows = EarnedHour.objects.values_list("earned_minor", "fee_minor", "owner_minor")
        assert list(rows) == [(400, 60, 340), (1200, 180, 1020)]

    def test_leaves_an_hour_alone_until_its_evidence_had_time_to_come(self):
        running(priced_by_the_hour("2.000000", "2.000000"))
        too_early = START + hours(1) + CLOSE_AFTER - dt.timedelta(seconds=1)
        assert earnings.close_due(at=too_early) == 0

    def test_waits_with_an_hour_without_readings_up_to_its_end(self):
        row = priced_by_the_hour("2.000000", "2.000000", "2.000000")
        lease = factories.lease(of=row, status=LeaseStatus.ACTIVE)
        factories.meter(of=lease, gpu=0, seconds=7200)
        factories.meter(of=lease, gpu=1, seconds=3599)
        assert earnings.close_due(at=START + hours(10)) == 0

    def test_leaves_the_last_hour_to_the_settlement(self):
        lease = running(priced_by_the_hour("2.000000", "2.000000"))
        assert earnings.close_due(at=START + hours(24)) == 1
        assert not earnings.close_next(lease_id=lease.id, at=START + hours(24))

    def test_changes_nothing_when_it_comes_again(self):
        running(priced_by_the_hour("2.000000", "2.000000"))
        at = START + hours(1) + CLOSE_AFTER
        assert (earnings.close_due(at=at), earnings.close_due(at=at)) == (1, 0)
        assert Entry.objects.filter(kind="earning").count() == 1

    def test_earns_nothing_for_an_outage_that_the_tenant_did_not_cause(self):
        lease = running(priced_by_the_hour("2.000000", "2.000000"))
        factories.outage(of=lease, seconds=1800)
        earnings.close_due(at=START + hours(1) + CLOSE_AFTER)
        assert EarnedHour.objects.get().earned_minor == 300

    def test_notes_what_the_readings_said_of_the_hour(self):
        lease = factories.lease(
            of=priced_by_the_hour("2.000000", "2.000000"), status=LeaseStatus.ACTIVE
        )
        factories.meter(
            of=lease, gpu=0, busy=600, attached=1800, energy_millijoules=9, seconds=3600
        )
        factories.meter(of=lease, gpu=1, busy=None, seconds=3600)
        earnings.close_due(at=START + hours(1) + CLOSE_AFTER)
        hour = EarnedHour.objects.get()
        assert (hour.gpu_seconds_metered, hour.gpu_seconds_measured) == (7200, 3600)
        assert (hour.gpu_seconds_attached, hour.energy_millijoules) == (1800, 9)

    def test_notes_nothing_where_nothing_was_measured(self):
        lease = factories.lease(
            of=priced_by_the_hour("2.000000", "2.000000"), status=LeaseStatus.ACTIVE
        )
        for gpu in range(2):
            factories.meter(of=lease, gpu=gpu, busy=None)
        earnings.close_due(at=START + hours(1) + CLOSE_AFTER)
        hour = EarnedHour.objects.get()
        assert (hour.gpu_seconds_measured, hour.gpu_seconds_attached) == (0, None)
        assert hour.energy_millijoules is None

    def test_leaves_the_books_in_order(self):
        running(priced_by_the_hour("2.000001", "6.100007", "2.900003"))
        for hour in (1, 2):
            earnings.close_due(at=START + hours(hour) + CLOSE_AFTER)
            assert books.check(at=START + hours(hour) + CLOSE_AFTER).ok

    def test_does_not_let_a_lease_that_cannot_be_closed_hold_up_the_others(self, caplog):
        broken = running(priced_by_the_hour("2.000000", "2.000000"))
        Reservation.objects.filter(pk=broken.reservation_id).update(gpus=1)
        well = running(priced_by_the_hour("2.000000", "2.000000"))
        assert earnings.close_due(at=START + hours(1) + CLOSE_AFTER) == 1
        assert EarnedHour.objects.get().lease == well
        assert "could not be closed" in caplog.text


class TestSettlementAfterHours:
    def test_comes_to_the_same_as_one_without_closed_hours(self):
        rates = ("2.333333", "7.100007", "2.900003", "1.500000")
        results = []
        for closes in (False, True):
            lease = running(priced_by_the_hour(*rates))
            factories.outage(of=lease, from_second=5000, seconds=777)
            if closes:
                for hour in (1, 2, 3):
                    assert earnings.close_due(at=START + hours(hour) + CLOSE_AFTER) == 1
            end(lease)
            row = settlements.settle(lease_id=lease.id, at=START + hours(30))
            results.append((row.earned_minor, row.fee_minor, row.owner_minor, row.refunded_minor))
            assert accrued(lease) == row.owner_minor - row.credit_of_owner_minor
        assert results[0] == results[1]
        assert books.check(at=START + hours(30)).ok

    def test_takes_back_what_an_hour_earned_and_late_evidence_denies(self):
        lease = running(priced_by_the_hour("2.000000", "2.000000"))
        earnings.close_due(at=START + hours(1) + CLOSE_AFTER)
        assert accrued(lease) == 340
        factories.outage(of=lease, seconds=3600)
        end(lease)
        row = settlements.settle(lease_id=lease.id, at=START + hours(30))
        assert (row.earned_minor, row.owner_minor, row.refunded_minor) == (600, 510, 200)
        assert books.check(at=START + hours(30)).ok

    def test_refunds_an_hour_at_what_that_hour_cost(self):
        lease = running(priced_by_the_hour("2.000000", "6.000000"))
        factories.outage(of=lease, gpu=0, from_second=3600, seconds=3600)
        end(lease)
        row = settlements.settle(lease_id=lease.id, at=START + hours(30))
        assert (row.bought_minor, row.refunded_minor) == (1600, 600)

    def test_never_pays_less_than_the_owners_floor(self):
        # 15 % of 353 round to 53: of 1.5 GPU-hours at a floor of 2.00 nothing may be missing.
        row = factories.reservation(buyer=factories.tenant(funds_minor=471))
        lease = factories.lease(of=row, returned_after_seconds=2701)
        result = settlements.settle(lease_id=lease.id, at=START + hours(30))
        floor = round(2 * 100 * result.gpu_seconds_delivered / 3600)
        assert result.owner_minor >= floor
        assert result.owner_minor + result.fee_minor == result.earned_minor


class TestReplacements:
    def test_divide_the_price_by_the_hours_that_each_lease_had(self):
        row = priced_by_the_hour("2.000000", "6.000000", gpus=1)
        first = factories.lease(of=row, status=LeaseStatus.INTERRUPTED)
        cut = START + dt.timedelta(minutes=50)
        Lease.objects.filter(pk=first.pk).update(ends_at=cut, returned_at=cut, closed_at=cut)
        second = factories.lease(of=row, handed_over_after_seconds=3600)
        Lease.objects.filter(pk=second.pk).update(starts_at=START + hours(1))
        Reservation.objects.filter(pk=row.pk).update(status=ReservationStatus.COMPLETED)
        for lease in (first, second):
            settlements.settle(lease_id=lease.id, at=START + hours(30))
        parts = Settlement.objects.order_by("bought_minor").values_list(
            "bought_minor", "refunded_minor"
        )
        # 50 minutes at 2.00 are 166.67, an hour at 6.00 is 600.
        assert list(parts) == [(167, 0), (600, 0)]
        assert settlements.refund_rest(reservation_id=row.id, at=START + hours(30))
        back = ledger.balance(
            account=ledger.AccountRef(AccountKind.WALLET, "usd", row.organization_id)
        )
        # The ten minutes between the two, 33, and a tenth of them.
        assert back == 33 + 3
        assert books.check(at=START + hours(48)).ok
