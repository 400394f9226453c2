import datetime as dt
import threading
from typing import Any

import pytest
from django.db import connection, connections, transaction
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.protocol import Cause
from billing import books, deliveries, ledger, settlements, wallet
from billing.models import Entry, Settlement
from billing.states import AccountKind
from scheduler.models import Lease, Reservation
from scheduler.states import LeaseStatus, ReservationStatus
from tests.billing import factories

pytestmark = pytest.mark.django_db

# Three reports at the slowest pace of a small fleet, 17 s, and ten seconds on their way.
GRACE = dt.timedelta(seconds=3 * 17 + 10)
LATER = factories.START + dt.timedelta(days=1)


def finish(reservation: Reservation, *, status: ReservationStatus) -> None:
    Reservation.objects.filter(pk=reservation.pk).update(status=status)


def held(reservation: Reservation) -> int:
    return wallet.balance(organization=reservation.organization).amount_minor


class TestSettle:
    def test_pays_owner_and_platform_for_a_lease_that_was_delivered_whole(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=10_000))
        lease = factories.lease(of=reservation)
        factories.meter_fully(of=lease, busy_of_each=1200)

        assert settlements.settle_ended(at=lease.closed_at) == 1

        row = Settlement.objects.get()
        # 2 GPU-hours at 2.352942 are 4.705884, which is 471 cents; 15 % of these are 70.65.
        assert (row.bought_minor, row.earned_minor, row.refunded_minor) == (471, 471, 0)
        assert (row.fee_minor, row.owner_minor) == (71, 400)
        assert (row.gpu_seconds_bought, row.gpu_seconds_delivered) == (7200, 7200)
        assert (row.gpu_seconds_busy, row.gpu_seconds_metered) == (2400, 7200)
        assert held(reservation) == 10_000 - 471

    def test_refunds_what_was_not_delivered(self):
        reservation = factories.reservation(
            buyer=factories.tenant(funds_minor=471), gpus=2, total_minor=471
        )
        lease = factories.lease(of=reservation, handed_over_after_seconds=900)
        settlements.settle_ended(at=lease.closed_at + GRACE)
        row = Settlement.objects.get()
        assert row.gpu_seconds_delivered == 2 * 2700
        assert (row.earned_minor, row.refunded_minor, row.credit_minor) == (353, 118, 12)
        assert held(reservation) == 118 + 12

    def test_refunds_everything_of_a_lease_that_never_began(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        lease = factories.lease(
            of=reservation, status=LeaseStatus.FAILED, handed_over_after_seconds=None
        )
        settlements.settle_ended(at=lease.closed_at)
        row = Settlement.objects.get()
        assert (row.gpu_seconds_delivered, row.owner_minor, row.refunded_minor) == (0, 0, 471)
        assert held(reservation) == 471 + 47

    def test_counts_whole_seconds_only(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        lease = factories.lease(of=reservation)
        lease.handed_over_at += dt.timedelta(milliseconds=1)
        lease.save(update_fields=["handed_over_at"])
        assert deliveries.delivery_of(lease=lease).delivered == 2 * 3599

    def test_takes_the_meters_word_where_no_return_was_noted(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        lease = factories.lease(of=reservation, status=LeaseStatus.INTERRUPTED)
        type(lease).objects.filter(pk=lease.pk).update(returned_at=None)
        lease.refresh_from_db()
        factories.meter(of=lease, gpu=0, seconds=600, busy=60)
        factories.meter(of=lease, gpu=1, seconds=300, busy=None)
        delivery = deliveries.delivery_of(lease=lease)
        assert (delivery.delivered, delivery.metered, delivery.busy) == (900, 900, 60)

    def test_never_counts_more_than_was_delivered(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        lease = factories.lease(of=reservation, returned_after_seconds=60)
        factories.meter_fully(of=lease, busy_of_each=3600)
        delivery = deliveries.delivery_of(lease=lease)
        assert (delivery.delivered, delivery.metered, delivery.busy) == (120, 120, 120)

    def test_waits_for_readings_on_their_way_and_no_longer_than_its_grace(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        lease = factories.lease(of=reservation)
        factories.meter(of=lease, gpu=0)
        just_before = lease.closed_at + GRACE - dt.timedelta(seconds=1)
        assert settlements.settle_ended(at=just_before) == 0
        assert settlements.settle_ended(at=lease.closed_at + GRACE) == 1

    def test_leaves_an_open_lease_alone(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        factories.lease(of=reservation, status=LeaseStatus.ACTIVE)
        assert settlements.settle_ended(at=LATER) == 0

    def test_changes_nothing_when_it_comes_again(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        factories.lease(of=reservation)
        assert settlements.settle_ended(at=LATER) == 1
        assert settlements.settle_ended(at=LATER) == 0
        assert Entry.objects.filter(kind="settlement").count() == 1

    def test_ignores_readings_that_come_after_it(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        lease = factories.lease(of=reservation)
        settlements.settle_ended(at=LATER)
        factories.meter_fully(of=lease)
        assert settlements.settle_ended(at=LATER + dt.timedelta(days=1)) == 0
        assert Settlement.objects.get().gpu_seconds_busy == 0

    def test_does_not_let_a_lease_that_cannot_be_settled_hold_up_the_others(self, caplog):
        buyer = factories.tenant(funds_minor=10_000)
        impossible = factories.reservation(buyer=buyer, gpus=1)
        factories.lease(of=impossible, gpus=2)
        sound = factories.lease(of=factories.reservation(buyer=buyer))
        assert settlements.settle_ended(at=LATER) == 1
        assert Settlement.objects.get().lease == sound
        assert "could not be settled" in caplog.text

    def test_shows_its_evidence(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        lease = factories.lease(of=reservation)
        handover = factories.receipt(of=lease, kind=factories.protocol.ReceiptKind.HANDOVER)
        settlements.settle_ended(at=LATER)
        evidence = Settlement.objects.get().evidence
        assert evidence["receipts"]["handover"]["id"] == handover.pk
        assert "return" not in evidence["receipts"]
        assert evidence["lease_status"] == "ended"

    def test_handles_a_price_of_nothing(self):
        reservation = factories.reservation(buyer=factories.tenant(), total_minor=0)
        factories.lease(of=reservation)
        assert settlements.settle_ended(at=LATER) == 1
        assert Settlement.objects.get().bought_minor == 0


class TestPartsOfPrice:
    def test_add_up_to_the_price_in_whatever_order_leases_settle(self):
        reservation = factories.reservation(
            buyer=factories.tenant(funds_minor=1000), gpus=7, total_minor=1000
        )
        leases = [factories.lease(of=reservation, gpus=gpus) for gpus in (1, 2, 4)]
        for lease in reversed(leases):
            settlements.settle(lease_id=lease.id, at=LATER)
        parts = Settlement.objects.order_by("lease_id").values_list("bought_minor", flat=True)
        assert sum(parts) == 1000
        assert sorted(parts) == [143, 286, 571]

    def test_settle_one_node_that_never_delivered_beside_one_that_did(self):
        reservation = factories.reservation(
            buyer=factories.tenant(funds_minor=1001), gpus=4, total_minor=1001
        )
        factories.lease(of=reservation, gpus=2)
        factories.lease(
            of=reservation,
            gpus=2,
            status=LeaseStatus.FAILED,
            handed_over_after_seconds=None,
        )
        finish(reservation, status=ReservationStatus.COMPLETED)
        assert settlements.settle_ended(at=LATER) == 2
        earned, refunded = (
            sum(Settlement.objects.values_list(name, flat=True))
            for name in ("earned_minor", "refunded_minor")
        )
        assert earned + refunded == 1001
        assert held(reservation) == refunded + refunded // 10
        assert books.check(at=LATER).ok


class TestRefundRest:
    def test_returns_the_whole_price_of_a_reservation_that_failed_without_leases(self):
        reservation = factories.reservation(
            buyer=factories.tenant(funds_minor=471), status=ReservationStatus.FAILED
        )
        assert settlements.settle_ended(at=LATER) == 1
        assert held(reservation) == 471 + 47
        assert settlements.settle_ended(at=LATER) == 0
        assert books.check(at=LATER + dt.timedelta(days=1)).ok

    def test_returns_what_no_lease_accounts_for(self):
        reservation = factories.reservation(
            buyer=factories.tenant(funds_minor=999), gpus=3, total_minor=999
        )
        factories.lease(of=reservation, gpus=1)
        assert settlements.settle_ended(at=LATER) == 1
        finish(reservation, status=ReservationStatus.COMPLETED)
        assert settlements.settle_ended(at=LATER) == 1
        assert held(reservation) == 666 + 67

    def test_waits_for_the_last_lease(self):
        reservation = factories.reservation(
            buyer=factories.tenant(funds_minor=471), status=ReservationStatus.FAILED
        )
        factories.lease(of=reservation, gpus=1, status=LeaseStatus.ACTIVE)
        assert not settlements.refund_rest(reservation_id=reservation.id, at=LATER)
        assert settlements.settle_ended(at=LATER) == 0

    def test_leaves_a_running_reservation_alone(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        assert not settlements.refund_rest(reservation_id=reservation.id, at=LATER)

    def test_leaves_an_unpaid_reservation_alone(self):
        reservation = factories.reservation(
            buyer=factories.tenant(), status=ReservationStatus.EXPIRED, paid=False
        )
        assert not settlements.refund_rest(reservation_id=reservation.id, at=LATER)


@pytest.mark.django_db(transaction=True)
class TestParallelWorkers:
    def test_settle_each_lease_once(self):
        buyer = factories.tenant(funds_minor=100_000)
        for _ in range(10):
            factories.lease(of=factories.reservation(buyer=buyer))
        counts: list[int] = []
        ready = threading.Barrier(3)

        def work() -> None:
            try:
                ready.wait()
                counts.append(settlements.settle_ended(at=LATER))
            finally:
                connections["default"].close()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(counts) == 10
        assert Settlement.objects.count() == 10
        assert Entry.objects.filter(kind="settlement").count() == 10
        assert ledger.balance(account=ledger.AccountRef(AccountKind.PLATFORM_FEE, "usd")) == 710
        connection.close()


class TestPoison:
    def test_at_the_head_of_the_queue_holds_up_nobody(self, monkeypatch):
        """The first lease promises more than its reservation bought; one settlement fits into a run."""
        monkeypatch.setattr(settlements, "SETTLEMENTS_PER_RUN_MAX", 1)
        buyer = factories.tenant(funds_minor=10_000)
        sick = factories.lease(of=factories.reservation(buyer=buyer, gpus=2), gpus=3)
        well = factories.lease(of=factories.reservation(buyer=buyer))
        Lease.objects.filter(pk=sick.pk).update(closed_at=well.closed_at - dt.timedelta(hours=1))
        later = well.closed_at + dt.timedelta(hours=1)
        assert settlements.settle_ended(at=later) == 1
        assert Settlement.objects.get().lease == well
        assert settlements.settle_ended(at=later) == 0


class TestOutages:
    def lease(self, **changes: Any) -> Lease:
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        return factories.lease(of=reservation, **changes)

    @pytest.mark.parametrize("cause", [Cause.HARDWARE, Cause.UNKNOWN])
    def test_are_refunded_unless_the_tenant_caused_them(self, cause: Cause):
        lease = self.lease()
        factories.meter_fully(of=lease)
        factories.outage(of=lease, seconds=1800, cause=cause)
        settlements.settle_ended(at=LATER)
        row = Settlement.objects.get()
        assert (row.gpu_seconds_bought, row.gpu_seconds_delivered) == (7200, 5400)
        assert (row.earned_minor, row.owner_minor, row.refunded_minor) == (353, 300, 118)
        # A hardware fault is the owner's, one that nobody explains is the market's.
        of_owner = 12 if cause is Cause.HARDWARE else 0
        assert (row.credit_minor, row.credit_of_owner_minor) == (12, of_owner)
        assert held(lease.reservation) == 118 + 12

    def test_that_the_tenant_caused_leave_the_owner_the_rent(self):
        lease = self.lease()
        factories.meter(of=lease, gpu=0, up=1800)
        factories.meter(of=lease, gpu=1)
        factories.outage(of=lease, from_second=1800, seconds=None, cause=Cause.TENANT)
        settlements.settle_ended(at=LATER)
        row = Settlement.objects.get()
        assert (row.gpu_seconds_delivered, row.owner_minor, row.refunded_minor) == (7200, 400, 0)

    def test_that_an_earlier_tenant_caused_are_refunded_to_the_next_one(self):
        lease = self.lease()
        factories.meter_fully(of=lease)
        factories.outage(of=lease, seconds=1800, cause=Cause.TENANT, lease_id="lse_before")
        assert deliveries.delivery_of(lease=lease).delivered == 5400

    def test_and_meters_that_tell_of_the_same_loss_count_it_once(self):
        lease = self.lease()
        factories.meter(of=lease, gpu=0, up=1800)
        factories.meter(of=lease, gpu=1)
        factories.outage(of=lease, from_second=1800, seconds=None)
        delivery = deliveries.delivery_of(lease=lease)
        assert (delivery.delivered, delivery.metered) == (5400, 5400)

    def test_count_only_while_the_tenant_had_the_gpu(self):
        lease = self.lease(handed_over_after_seconds=600, returned_after_seconds=3000)
        factories.outage(of=lease, from_second=-600, seconds=1500)
        factories.outage(of=lease, gpu=1, from_second=2700, seconds=None)
        assert deliveries.delivery_of(lease=lease).delivered == 2 * 2400 - 300 - 300

    def test_count_where_no_return_was_seen(self):
        lease = self.lease(status=LeaseStatus.INTERRUPTED)
        type(lease).objects.filter(pk=lease.pk).update(returned_at=None)
        lease.refresh_from_db()
        factories.meter(of=lease, gpu=0, seconds=600, busy=60)
        factories.outage(of=lease, from_second=300, seconds=None)
        assert deliveries.delivery_of(lease=lease).delivered == 300

    def test_of_other_gpus_are_nothing_to_a_lease(self):
        lease, other = self.lease(), self.lease()
        factories.outage(of=other)
        assert deliveries.delivery_of(lease=lease).delivered == 7200

    def test_stand_in_the_evidence(self):
        lease = self.lease()
        factories.outage(of=lease, from_second=3000, seconds=None, cause=Cause.TENANT)
        factories.outage(of=lease, gpu=1, from_second=600, seconds=60)
        settlements.settle_ended(at=LATER)
        evidence = Settlement.objects.get().evidence
        assert evidence["outage_count"] == 2
        assert evidence["outages"][0] == {
            "gpu_uuid": lease.gpu_uuids[0],
            "starts_at": "2026-11-02T08:50:00+00:00",
            "ends_at": "2026-11-02T09:00:00+00:00",
            "health": "lost",
            "cause": "tenant",
            "reason": "it was lost",
            "refunded": False,
        }
        assert evidence["outages"][1]["refunded"] is True

    def test_leave_the_books_in_order(self):
        lease = self.lease()
        factories.outage(of=lease, seconds=1234)
        settlements.settle_ended(at=LATER)
        assert books.check(at=LATER).ok

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_and_meters_divide_what_was_bought_without_rest(self, data: st.DataObject):
        savepoint = transaction.savepoint()
        lease = self.lease()
        bounds = st.tuples(st.integers(0, 3599), st.integers(1, 3600))
        for gpu in range(2):
            for start, length in data.draw(st.lists(bounds, max_size=3)):
                up = data.draw(st.integers(0, length))
                factories.meter(of=lease, gpu=gpu, from_second=start, seconds=length, up=up)
        before = deliveries.delivery_of(lease=lease).delivered
        cuts = sorted(data.draw(st.lists(st.integers(-60, 3660), max_size=8, unique=True)))
        causes = []
        for start, end in zip(cuts[::2], cuts[1::2], strict=False):
            causes.append(data.draw(st.sampled_from(Cause)))
            factories.outage(of=lease, from_second=start, seconds=end - start, cause=causes[-1])
        delivery = deliveries.delivery_of(lease=lease)
        assert 0 <= delivery.metered <= delivery.delivered <= delivery.bought == 7200
        assert delivery.busy <= delivery.delivered
        if set(causes) <= {Cause.TENANT}:
            assert delivery.delivered >= before
        if Cause.TENANT not in causes:
            assert delivery.delivered <= before
        settlements.settle_ended(at=LATER)
        assert books.check(at=LATER).ok
        transaction.savepoint_rollback(savepoint)
