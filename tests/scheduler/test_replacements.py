"""Other GPUs for a lease whose own failed: when, where, and what becomes of the old ones."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

from agents import inventory, outages, protocol
from agents.models import Alarm, Gpu, Grant, Node, Outage
from agents.protocol import Cause, DesiredState, Health
from agents.states import AlarmKind
from marketplace.models import Event
from marketplace.states import EventKind, Tier
from scheduler import leases, releases, replacements, reservations
from scheduler.faults import FLAPS_MAX, QUARANTINE_PATIENCE_SECONDS
from scheduler.leases import HANDOVER_DEADLINE_SECONDS
from scheduler.models import Lease, Replacement, Reservation
from scheduler.replacements import CHAIN_MAX, PATIENCE_SECONDS
from scheduler.states import (
    LeaseReason,
    LeaseStatus,
    ReplacementOutcome,
    ReservationReason,
    ReservationStatus,
)
from tests.scheduler.factories import (
    hours,
    make_lease,
    make_listing,
    make_node,
    make_organization,
    make_pool,
    make_reservation,
    say_failed,
    say_handed_over,
    say_returned,
    seconds,
)

pytestmark = pytest.mark.django_db


def tick(at: dt.datetime) -> None:
    """Do what the beats do in one second, with nodes that have just reported."""
    Node.objects.update(last_report_at=at)
    leases.advance(at=at)
    replacements.advance(at=at)
    reservations.start_due(at=at)
    reservations.finish_due(at=at)


def an_active_lease(**changes: Any) -> Lease:
    lease = make_lease(**changes)
    say_handed_over(lease)
    tick(lease.starts_at + seconds(5))
    lease.refresh_from_db()
    assert lease.status == LeaseStatus.ACTIVE
    return lease


def break_gpu(
    lease: Lease, *, at: dt.datetime, health: Health = Health.LOST, cause: Cause = Cause.HARDWARE
) -> Outage:
    gpu = Gpu.objects.get(uuid=lease.gpu_uuids[0])
    Gpu.objects.filter(pk=gpu.pk).update(health=health)
    return Outage.objects.create(
        gpu=gpu, health=health, cause=cause, reason="Xid 79", lease_id=lease.pk, starts_at=at
    )


def mend_gpu(outage: Outage, *, at: dt.datetime) -> None:
    Outage.objects.filter(pk=outage.pk).update(ends_at=at)
    Gpu.objects.filter(pk=outage.gpu_id).update(health=Health.HEALTHY)


def successor(lease: Lease) -> Lease:
    return Lease.objects.get(replaces=lease)


class TestHandover:
    def test_that_never_came_goes_to_another_owners_node(self) -> None:
        make_pool()
        lease = make_lease(gpus=4)
        make_pool()
        deadline = lease.starts_at + seconds(HANDOVER_DEADLINE_SECONDS)

        tick(deadline)

        lease.refresh_from_db()
        new = successor(lease)
        assert (lease.status, new.status) == (LeaseStatus.FAILED, LeaseStatus.PROVISIONING)
        assert new.node.organization_id != lease.node.organization_id
        assert new.epoch == lease.epoch + 1
        assert (lease.ends_at, new.starts_at) == (deadline, deadline)
        assert new.ends_at == new.reservation.ends_at
        assert len(new.gpu_uuids) == 4
        assert new.allocations.get(live=True).period.lower == deadline
        assert Grant.objects.get(lease_id=new.pk).not_before == deadline

    def test_that_was_refused_is_tried_elsewhere_at_once(self) -> None:
        make_pool(nodes=2)
        lease = make_lease(gpus=2)
        say_failed(lease)

        tick(lease.starts_at + seconds(2))

        new = successor(lease)
        assert new.node_id != lease.node_id
        assert new.transitions.get().reason == LeaseReason.REPLACED
        say_handed_over(new, at=new.starts_at + seconds(9))
        tick(new.starts_at + seconds(10))
        new.refresh_from_db()
        assert new.status == LeaseStatus.ACTIVE
        assert new.handed_over_at == new.starts_at + seconds(9)

    def test_that_nobody_else_can_give_releases_the_tenant(self) -> None:
        make_pool()
        lease = make_lease(gpus=8)
        say_failed(lease)

        tick(lease.starts_at + seconds(2))

        reservation = Reservation.objects.get()
        assert reservation.status == ReservationStatus.FAILED
        assert reservation.transitions.last().reason == ReservationReason.NOTHING_DELIVERED  # type: ignore[union-attr]  # there is one
        assert Replacement.objects.get().outcome == ReplacementOutcome.NO_ROOM
        assert not reservation.allocations.filter(live=True).exists()

    def test_is_not_sought_at_a_dearer_owner(self) -> None:
        make_pool()
        lease = make_lease(gpus=2)
        dear = make_organization()
        make_node(owner=dear)
        make_listing(owner=dear, floor_rate=Decimal("2.000001"))
        say_failed(lease)

        tick(lease.starts_at + seconds(2))

        assert Reservation.objects.get().status == ReservationStatus.FAILED

    def test_is_not_tried_for_ever(self) -> None:
        make_pool(nodes=CHAIN_MAX + 3)
        lease = make_lease(gpus=8)
        at = lease.starts_at
        for _ in range(CHAIN_MAX + 3):
            at += seconds(5)
            for row in Lease.objects.filter(status=LeaseStatus.PROVISIONING):
                say_failed(row)
            tick(at)

        assert Lease.objects.count() == CHAIN_MAX + 1
        assert Replacement.objects.latest("pk").outcome == ReplacementOutcome.TOO_MANY
        assert Reservation.objects.get().status == ReservationStatus.FAILED

    def test_that_came_too_late_gives_the_gpus_back_before_anybody_else_gets_them(self) -> None:
        make_pool()
        lease = make_lease(gpus=4)
        deadline = lease.starts_at + seconds(HANDOVER_DEADLINE_SECONDS)
        tick(deadline)
        withdrawn = Gpu.objects.exclude(quarantined_by_market="")
        assert sorted(withdrawn.values_list("uuid", flat=True)) == sorted(lease.gpu_uuids)
        say_handed_over(lease, at=deadline + seconds(1))
        Grant.objects.filter(lease_id=lease.pk).update(reported_state=protocol.LeaseState.ENDED)
        tick(deadline + seconds(2))
        assert withdrawn.exists()

        say_returned(lease, at=deadline + seconds(9))
        tick(deadline + seconds(10))

        assert not withdrawn.exists()
        lease.refresh_from_db()
        assert lease.released_at == deadline + seconds(10)
        assert Grant.objects.get(lease_id=lease.pk).closed_at == deadline + seconds(10)

    def test_that_never_began_frees_the_gpus_with_the_nodes_word(self) -> None:
        make_pool()
        lease = make_lease(gpus=4)
        deadline = lease.starts_at + seconds(HANDOVER_DEADLINE_SECONDS)
        tick(deadline)
        Grant.objects.filter(lease_id=lease.pk).update(reported_state=protocol.LeaseState.ENDED)

        tick(deadline + seconds(5))

        assert not Gpu.objects.exclude(quarantined_by_market="").exists()


class TestFault:
    def test_of_a_lost_gpu_puts_another_node_in_its_place_at_once(self) -> None:
        make_pool(nodes=2)
        lease = an_active_lease(gpus=2)
        at = lease.starts_at + hours(1)
        break_gpu(lease, at=at - seconds(3))

        tick(at)

        lease.refresh_from_db()
        new = successor(lease)
        assert lease.status == LeaseStatus.INTERRUPTED
        assert lease.transitions.last().reason == LeaseReason.NODE_FAULT  # type: ignore[union-attr]  # there is one
        assert (lease.returned_at, lease.ends_at, new.starts_at) == (at, at, at)
        assert new.node_id != lease.node_id
        assert Grant.objects.get(lease_id=lease.pk).desired_state == DesiredState.STOP
        kinds = Event.objects.values_list("kind", flat=True)
        assert {EventKind.LEASE_INTERRUPTED, EventKind.LEASE_REPLACED} <= set(kinds)

    def test_promises_every_gpu_second_of_the_window_once(self) -> None:
        make_pool(nodes=2)
        lease = an_active_lease(gpus=2)
        break_gpu(lease, at=lease.starts_at + hours(1))
        tick(lease.starts_at + hours(1) + seconds(5))

        reservation = Reservation.objects.get()
        bought = sum(row.gpu_seconds_bought for row in reservation.leases.all())
        assert bought == reservation.gpus * reservation.window.seconds

    def test_leaves_the_lease_alone_while_there_is_no_room(self) -> None:
        owner = make_pool()
        lease = an_active_lease(gpus=8)
        at = lease.starts_at + hours(0.5)
        break_gpu(lease, at=at)
        tick(at)
        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ACTIVE
        assert Replacement.objects.get().attempts == 1

        make_node(owner=owner)
        tick(at + seconds(30))
        assert Replacement.objects.get().attempts == 1
        tick(at + seconds(60))

        lease.refresh_from_db()
        assert lease.status == LeaseStatus.INTERRUPTED
        assert successor(lease).starts_at == at + seconds(60)

    def test_that_healed_before_there_was_room_is_forgotten(self) -> None:
        owner = make_pool()
        lease = an_active_lease(gpus=8)
        at = lease.starts_at + hours(0.5)
        outage = break_gpu(lease, at=at)
        tick(at)
        mend_gpu(outage, at=at + seconds(40))
        make_node(owner=owner)

        tick(at + seconds(60))

        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ACTIVE
        assert Replacement.objects.get().outcome == ReplacementOutcome.HEALED

    def test_of_a_quarantine_has_a_minute_to_pass(self) -> None:
        make_pool(nodes=2)
        lease = an_active_lease(gpus=2)
        at = lease.starts_at + hours(1)
        break_gpu(lease, at=at, health=Health.QUARANTINED)

        tick(at + seconds(QUARANTINE_PATIENCE_SECONDS - 1))
        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ACTIVE
        tick(at + seconds(QUARANTINE_PATIENCE_SECONDS))

        lease.refresh_from_db()
        assert lease.status == LeaseStatus.INTERRUPTED

    def test_that_flickers_is_borne_twice_and_not_a_third_time(self) -> None:
        make_pool(nodes=2)
        lease = an_active_lease(gpus=2)
        at = lease.starts_at + hours(1)
        for number in range(FLAPS_MAX):
            lease.refresh_from_db()
            assert lease.status == LeaseStatus.ACTIVE, number
            outage = break_gpu(lease, at=at, health=Health.QUARANTINED)
            tick(at + seconds(20)) if number < FLAPS_MAX - 1 else None
            mend_gpu(outage, at=at + seconds(30))
            at += seconds(120)

        tick(at)

        lease.refresh_from_db()
        assert lease.status == LeaseStatus.INTERRUPTED
        assert Lease.objects.count() == 2
        say_handed_over(successor(lease), at=at + seconds(9))
        for minute in range(1, 20):
            tick(at + seconds(60 * minute))
        assert Lease.objects.count() == 2, "the GPU that flickers is not taken again"

    def test_by_its_own_tenant_is_not_replaced(self) -> None:
        make_pool(nodes=2)
        lease = an_active_lease(gpus=2)
        at = lease.starts_at + hours(1)
        break_gpu(lease, at=at, cause=Cause.TENANT)

        tick(at + seconds(300))

        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ACTIVE

    def test_of_a_reclaimable_lease_is_credited_and_not_replaced(self) -> None:
        owner = make_organization()
        make_node(owner=owner), make_node(owner=owner)
        make_listing(owner=owner, tier=Tier.RECLAIMABLE, reclaim_notice_seconds=3600)
        lease = an_active_lease(gpus=2, tier=Tier.RECLAIMABLE)
        at = lease.starts_at + hours(1)
        break_gpu(lease, at=at)

        tick(at + seconds(300))

        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ACTIVE
        assert not Replacement.objects.exists()

    def test_of_a_gpu_that_left_the_inventory_counts(self) -> None:
        make_pool(nodes=2)
        lease = an_active_lease(gpus=2)
        Gpu.objects.filter(uuid=lease.gpu_uuids[0]).update(present=False)

        tick(lease.starts_at + hours(1))

        lease.refresh_from_db()
        assert lease.status == LeaseStatus.INTERRUPTED

    def test_is_not_what_silence_means(self) -> None:
        make_pool(nodes=2)
        lease = an_active_lease(gpus=2)
        late = lease.ends_at - seconds(1)

        leases.advance(at=late)
        replacements.advance(at=late)

        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ACTIVE
        assert not Replacement.objects.exists()

    def test_of_a_machine_that_restarted_may_be_mended_on_the_same_machine(self) -> None:
        make_pool()
        lease = an_active_lease(gpus=8)
        at = lease.starts_at + hours(1)
        say_returned(lease, at=at)

        tick(at + seconds(2))

        new = successor(lease)
        assert new.node_id == lease.node_id
        assert (lease.epoch, new.epoch) == (1, 2)

    def test_that_nothing_can_mend_releases_the_tenant_within_the_hour(self) -> None:
        make_pool()
        lease = an_active_lease(gpus=8, window=None)
        at = lease.starts_at + seconds(600)
        say_returned(lease, at=at, clean=False)
        tick(at + seconds(2))
        reservation = Reservation.objects.get()
        assert reservation.status == ReservationStatus.ACTIVE

        for minute in range(1, 80):
            tick(at + seconds(60 * minute))

        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.FAILED
        moved = reservation.transitions.get(to_status=ReservationStatus.FAILED)
        assert moved.reason == ReservationReason.NOT_REPLACED
        assert moved.at >= at + seconds(PATIENCE_SECONDS)

    def test_in_a_block_stays_in_the_blocks_fabric(self) -> None:
        owner = make_pool(nodes=2)
        make_node(owner=owner, fabric="ib-2")
        lease = an_active_lease_of_a_block()
        at = lease.starts_at + hours(1)
        break_gpu(lease, at=at)
        tick(at)
        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ACTIVE, "the third node is in another fabric"

        make_node(owner=owner)
        tick(at + seconds(60))

        assert successor(lease).node.fabric == "ib-1"


def an_active_lease_of_a_block() -> Lease:
    """Return one of the two leases of a reservation that fills two nodes of one fabric."""
    reservation = make_reservation(gpus=16, spread="same_fabric")
    reservations.start_due(at=reservation.starts_at)
    for lease in reservation.leases.all():
        say_handed_over(lease)
    tick(reservation.starts_at + seconds(5))
    return reservation.leases.order_by("pk")[0]


class TestOverdue:
    def test_return_raises_an_alarm_until_the_node_speaks(self) -> None:
        make_pool()
        lease = an_active_lease(gpus=2)
        tick(lease.ends_at)
        late = lease.ends_at + seconds(leases.RETURN_GRACE_SECONDS)
        tick(late)

        raised = Alarm.objects.filter(kind=AlarmKind.RETURN_OVERDUE, settled_at__isnull=True)
        assert sorted(raised.values_list("gpu_uuid", flat=True)) == sorted(lease.gpu_uuids)
        sellable = inventory.sellable_gpus(at=late).values_list("uuid", flat=True)
        assert not set(sellable) & set(lease.gpu_uuids)

        say_returned(lease, at=late + hours(3))
        tick(late + hours(3) + seconds(1))

        assert not raised.exists()
        assert not Gpu.objects.exclude(quarantined_by_market="").exists()

    def test_return_is_settled_by_the_owners_word(self) -> None:
        make_pool()
        lease = an_active_lease(gpus=2)
        tick(lease.ends_at)
        late = lease.ends_at + seconds(leases.RETURN_GRACE_SECONDS)
        tick(late)
        node = lease.node
        inventory.drain(node=node, at=late + seconds(1), actor="owner")

        inventory.resume(node=node, at=late + seconds(2), actor="owner")
        tick(late + seconds(3))

        lease.refresh_from_db()
        assert lease.released_at == late + seconds(3)
        assert not Alarm.objects.filter(settled_at__isnull=True).exists()

    def test_return_of_an_interrupted_lease_is_told_once(self) -> None:
        make_pool(nodes=2)
        lease = an_active_lease(gpus=2)
        at = lease.starts_at + hours(1)
        break_gpu(lease, at=at)
        tick(at)
        say_handed_over(successor(lease), at=at + seconds(9))

        for minute in range(1, 30):
            tick(at + seconds(60 * minute))

        assert Alarm.objects.count() == len(lease.gpu_uuids)
        assert releases.release_due(at=at + seconds(3600)) == 0


def test_outages_of_the_old_gpus_are_known_to_the_lease_that_had_them() -> None:
    make_pool(nodes=2)
    lease = an_active_lease(gpus=2)
    at = lease.starts_at + hours(1)
    break_gpu(lease, at=at - seconds(30))

    tick(at)

    told = outages.within(gpu_uuids=lease.gpu_uuids, window=lease.window)
    assert [part.lease_id for part in told] == [lease.pk]
