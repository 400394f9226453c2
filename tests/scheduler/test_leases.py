"""The life of a lease: what time, receipts and silence make of it."""

import datetime as dt
from collections.abc import Sequence

import pytest

from agents.models import Gpu, Grant
from agents.protocol import DesiredState
from marketplace.core.errors import StateConflict
from scheduler import leases, openings, replacements, reservations
from scheduler.leases import HANDOVER_DEADLINE_SECONDS, RETURN_GRACE_SECONDS
from scheduler.models import Allocation, Lease, LeaseTransition, Reservation
from scheduler.states import LeaseReason, LeaseStatus, ReservationStatus
from tests.scheduler.factories import (
    hours,
    make_lease,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    say_failed,
    say_handed_over,
    say_metered,
    say_returned,
    seconds,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def lease() -> Lease:
    make_pool()
    return make_lease(gpus=2)


def history(lease: Lease) -> list[tuple[str, str]]:
    return list(lease.transitions.values_list("to_status", "reason"))


class TestStart:
    def test_opens_one_lease_and_one_grant_per_node(self) -> None:
        make_pool(nodes=2)
        reservation = make_reservation(gpus=12)

        assert reservations.start_due(at=reservation.starts_at - seconds(1)) == 0
        assert reservations.start_due(at=reservation.starts_at) == 1

        opened = list(reservation.leases.order_by("node_id"))
        assert sorted(len(lease.gpu_uuids) for lease in opened) == [4, 8]
        for lease in opened:
            grant = Grant.objects.get(lease_id=lease.pk)
            assert (grant.node_id, grant.desired_state) == (lease.node_id, DesiredState.RUN)
            assert sorted(grant.gpu_uuids) == sorted(lease.gpu_uuids)
            assert (grant.not_before, grant.not_after) == (lease.starts_at, lease.ends_at)
            assert {a.lease_id for a in lease.allocations.all()} == {lease.pk}

    def test_leaves_what_is_not_paid(self) -> None:
        make_pool()
        reservation = reserve(make_quote())

        assert reservations.start_due(at=reservation.starts_at) == 0

    def test_fails_a_reservation_that_nobody_started_in_its_window(self) -> None:
        make_pool()
        reservation = make_reservation()

        reservations.start_due(at=reservation.ends_at)

        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.FAILED
        assert not Allocation.objects.filter(live=True).exists()

    def test_runs_ends_of_the_same_instant_first(self, lease: Lease) -> None:
        say_handed_over(lease)
        leases.advance(at=lease.starts_at + seconds(5))

        reservations.start_due(at=lease.ends_at)

        lease.refresh_from_db()
        assert lease.status == LeaseStatus.RETURNING


class TestHandOver:
    def test_waits_for_the_receipt(self, lease: Lease) -> None:
        assert leases.advance(at=lease.starts_at + seconds(60)) == 0

    def test_counts_from_the_receipt(self, lease: Lease) -> None:
        say_handed_over(lease, at=lease.starts_at + seconds(7))

        leases.advance(at=lease.starts_at + seconds(9))

        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ACTIVE
        assert lease.handed_over_at == lease.starts_at + seconds(7)
        assert lease.access is not None
        assert lease.access["port"] == 2222

    def test_never_counts_from_before_the_window(self, lease: Lease) -> None:
        say_handed_over(lease, at=lease.starts_at - seconds(2))

        leases.advance(at=lease.starts_at + seconds(1))

        lease.refresh_from_db()
        assert lease.handed_over_at == lease.starts_at

    def test_refuses_without_a_receipt(self, lease: Lease) -> None:
        with pytest.raises(StateConflict):
            leases.hand_over(lease=lease, at=lease.starts_at)

    def test_fails_when_it_took_too_long(self, lease: Lease) -> None:
        deadline = lease.starts_at + seconds(HANDOVER_DEADLINE_SECONDS)
        assert leases.advance(at=deadline - seconds(1)) == 0

        leases.advance(at=deadline)

        lease.refresh_from_db()
        assert history(lease)[-1] == (LeaseStatus.FAILED, LeaseReason.HANDOVER_TIMED_OUT)
        assert lease.closed_at == deadline
        assert not lease.allocations.filter(live=True).exists()
        assert Grant.objects.get(lease_id=lease.pk).desired_state == DesiredState.STOP

    def test_takes_a_receipt_that_comes_with_the_deadline(self, lease: Lease) -> None:
        say_handed_over(lease)

        leases.advance(at=lease.starts_at + seconds(HANDOVER_DEADLINE_SECONDS))

        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ACTIVE

    def test_fails_at_once_when_the_node_gives_up(self, lease: Lease) -> None:
        say_failed(lease)

        leases.advance(at=lease.starts_at + seconds(1))

        assert history(lease)[-1] == (LeaseStatus.FAILED, LeaseReason.HANDOVER_FAILED)
        replacements.replace_due(at=lease.starts_at + seconds(1))
        reservations.finish_due(at=lease.starts_at + seconds(1))
        assert Reservation.objects.get().status == ReservationStatus.FAILED

    def test_fails_at_the_end_of_a_window_shorter_than_the_deadline(self, lease: Lease) -> None:
        Lease.objects.filter(pk=lease.pk).update(
            starts_at=lease.ends_at - seconds(60), created_at=lease.ends_at - seconds(60)
        )

        leases.advance(at=lease.ends_at)

        assert history(lease)[-1] == (LeaseStatus.FAILED, LeaseReason.HANDOVER_TIMED_OUT)


class TestEnd:
    @pytest.fixture
    def active(self, lease: Lease) -> Lease:
        say_handed_over(lease)
        leases.advance(at=lease.starts_at + seconds(5))
        lease.refresh_from_db()
        return lease

    def test_asks_the_node_at_the_end_of_the_window(self, active: Lease) -> None:
        assert leases.advance(at=active.ends_at - seconds(1)) == 0

        leases.advance(at=active.ends_at)

        active.refresh_from_db()
        assert active.status == LeaseStatus.RETURNING
        assert Grant.objects.get(lease_id=active.pk).desired_state == DesiredState.STOP

    def test_refuses_a_lease_that_already_ended(self, active: Lease) -> None:
        stale = Lease.objects.get(pk=active.pk)
        leases.end(lease=active, at=active.ends_at)

        with pytest.raises(StateConflict):
            leases.end(lease=stale, at=active.ends_at)

        assert active.transitions.filter(to_status=LeaseStatus.RETURNING).count() == 1

    def test_is_over_with_the_receipt_of_return(self, active: Lease) -> None:
        say_returned(active, at=active.ends_at + seconds(4))
        after = active.ends_at + seconds(5)

        leases.advance(at=after)

        active.refresh_from_db()
        assert active.status == LeaseStatus.ENDED
        assert active.returned_at == active.ends_at
        assert active.closed_at == after
        assert not active.allocations.filter(live=True).exists()
        assert Gpu.objects.exclude(quarantined_by_market="").count() == 0
        assert reservations.finish_due(at=after) == 1
        assert Reservation.objects.get().status == ReservationStatus.COMPLETED

    def test_sees_at_once_that_the_node_gave_the_gpus_back_unasked(self, active: Lease) -> None:
        early = active.starts_at + hours(1)
        say_returned(active, at=early)

        leases.lose_due(at=early + seconds(1))

        active.refresh_from_db()
        assert history(active)[-1] == (LeaseStatus.INTERRUPTED, LeaseReason.RETURNED_UNASKED)
        assert active.returned_at == early
        assert active.ends_at == early + seconds(1)
        assert Grant.objects.get(lease_id=active.pk).closed_at is not None

    def test_withdraws_gpus_that_did_not_come_back_clean(self, active: Lease) -> None:
        say_returned(active, clean=False)

        leases.advance(at=active.ends_at)

        withdrawn = Gpu.objects.exclude(quarantined_by_market="").values_list("uuid", flat=True)
        assert sorted(withdrawn) == sorted(active.gpu_uuids)

    def test_silence_ends_no_lease_before_its_time(self, active: Lease) -> None:
        assert leases.advance(at=active.ends_at - seconds(1)) == 0

    def test_gives_up_after_the_grace_and_charges_what_is_proved(self, active: Lease) -> None:
        say_metered(active, until=active.starts_at + seconds(600))
        leases.advance(at=active.ends_at)
        limit = active.ends_at + seconds(RETURN_GRACE_SECONDS)
        assert leases.advance(at=limit - seconds(1)) == 0

        leases.advance(at=limit)

        active.refresh_from_db()
        assert history(active)[-1] == (LeaseStatus.ENDED, LeaseReason.RETURN_UNCONFIRMED)
        assert active.returned_at == active.starts_at + seconds(600)
        withdrawn = Gpu.objects.exclude(quarantined_by_market="").values_list("uuid", flat=True)
        assert sorted(withdrawn) == sorted(active.gpu_uuids)

    def test_charges_nothing_where_nothing_was_metered(self, active: Lease) -> None:
        leases.advance(at=active.ends_at)

        leases.advance(at=active.ends_at + seconds(RETURN_GRACE_SECONDS))

        active.refresh_from_db()
        assert active.returned_at == active.handed_over_at

    def test_gives_nodes_their_grace_after_the_market_was_away(self, active: Lease) -> None:
        late = active.ends_at + hours(5)

        leases.advance(at=late)

        active.refresh_from_db()
        assert active.status == LeaseStatus.RETURNING


class TestTicks:
    def test_twice_changes_nothing(self, lease: Lease) -> None:
        say_handed_over(lease)
        say_returned(lease)
        for _ in range(3):
            leases.advance(at=lease.ends_at)
            reservations.finish_due(at=lease.ends_at)
        before = LeaseTransition.objects.count()

        assert leases.advance(at=lease.ends_at) == 0
        assert reservations.finish_due(at=lease.ends_at) == 0
        assert reservations.start_due(at=lease.ends_at) == 0

        assert LeaseTransition.objects.count() == before == 4

    def test_one_bad_row_keeps_nobody_waiting(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_pool()
        first, second = make_reservation(gpus=2), make_reservation(gpus=3)
        open_all = openings.open_all

        def fragile(*, reservations: Sequence[Reservation], at: dt.datetime) -> list[Lease]:
            if first.pk in {row.pk for row in reservations}:
                raise RuntimeError("a bug")
            return open_all(reservations=reservations, at=at)

        monkeypatch.setattr(openings, "open_all", fragile)

        assert reservations.start_due(at=first.starts_at) == 1

        first.refresh_from_db()
        second.refresh_from_db()
        assert first.status == ReservationStatus.SCHEDULED
        assert second.status == ReservationStatus.ACTIVE
