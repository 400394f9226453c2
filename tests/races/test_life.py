"""Rivals change one reservation at the same instant: exactly one legal outcome, no overlap, nothing orphaned.

Each test runs under several seeds, which decide who is sent off first; whoever comes through must be the one
that the tables of arrows and the calendar tell of afterwards.
"""

import datetime as dt
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from django.db import connection

from agents.models import Gpu, Grant, Node, Outage
from agents.protocol import Cause, DesiredState, Health
from agents.states import NodeStatus
from marketplace.core.errors import DomainError
from marketplace.models import Event
from marketplace.states import EventKind, Tier
from scheduler import (
    cancellations,
    drains,
    leases,
    reclaims,
    relocations,
    replacements,
    reservations,
    warnings,
)
from scheduler.models import (
    Allocation,
    Lease,
    LeaseTransition,
    Reclaim,
    Relocation,
    Reservation,
    ReservationTransition,
)
from scheduler.states import LEASE_ARROWS, LeaseStatus, RelocationReason, ReservationStatus
from tests.races.test_last_gpus import at_once, buying
from tests.scheduler.factories import (
    NOW,
    hours,
    make_lease,
    make_listing,
    make_node,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    say_failed,
    say_handed_over,
    say_returned,
    seconds,
    window_in,
)

SEEDS = range(3)

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(180),
    pytest.mark.parametrize("seed", SEEDS),
]


def shuffled(actions: Sequence[Callable[[], str]], *, seed: int) -> list[Callable[[], str]]:
    order = list(actions)
    random.Random(seed).shuffle(order)
    return order


def outcome(action: Callable[[], object]) -> Callable[[], str]:
    """Return an action that says how it ended."""

    def run() -> str:
        try:
            return f"{action()}"
        except DomainError as refusal:
            return refusal.code

    return run


def assert_sound() -> None:
    """No GPU twice; every live promise has its GPUs once; arrows are taken once each."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM scheduler_allocation a JOIN scheduler_allocation b ON a.id < b.id"
            " WHERE a.live AND b.live AND a.slots && b.slots AND a.period && b.period"
        )
        assert cursor.fetchone() == (0,)
    for reservation in Reservation.objects.all():
        held = sum(
            place.slots.upper - place.slots.lower
            for place in reservation.allocations.filter(live=True)
        )
        if reservation.status in (ReservationStatus.PAYMENT_PENDING, ReservationStatus.SCHEDULED):
            assert held == reservation.gpus
        open_leases = [
            lease
            for lease in reservation.leases.all()
            if not LEASE_ARROWS.is_final(LeaseStatus(lease.status))
        ]
        if reservation.status == ReservationStatus.ACTIVE:
            assert held == sum(len(lease.gpu_uuids) for lease in open_leases)
        promised = sum(lease.gpu_seconds_bought for lease in reservation.leases.all())
        assert promised <= reservation.gpus * reservation.window.seconds
    for model, key in ((LeaseTransition, "lease"), (ReservationTransition, "reservation")):
        moves = Counter(model.objects.values_list(key, "from_status", "to_status"))
        assert set(moves.values()) <= {1}, moves


def an_active_lease(*, tier: Tier = Tier.FIRM, length: float = 2) -> Lease:
    lease = make_lease(gpus=2, tier=tier, window=window_in(24, length=length))
    say_handed_over(lease)
    leases.advance(at=lease.starts_at + seconds(5))
    Node.objects.update(last_report_at=lease.starts_at + seconds(5))
    lease.refresh_from_db()
    return lease


def test_a_relocation_and_a_start_leave_the_lease_where_the_calendar_says(seed: int) -> None:
    make_pool(nodes=2)
    reservation = make_reservation(gpus=2)
    node_id = reservation.allocations.get().node_id
    at = reservation.starts_at
    Node.objects.update(last_report_at=at)

    def relocate() -> object:
        return relocations.move(
            reservation_id=reservation.pk,
            node_id=node_id,
            reason=RelocationReason.NODE_DRAINED,
            at=at,
            actor="test",
        )

    at_once(
        shuffled(
            [outcome(relocate)] * 3 + [outcome(lambda: reservations.start_due(at=at))] * 3,
            seed=seed,
        )
    )
    reservations.start_due(at=at)

    lease = Lease.objects.get()
    place = Allocation.objects.get(live=True)
    assert (place.lease_id, place.node_id) == (lease.pk, lease.node_id)
    slots = range(place.slots.lower, place.slots.upper)
    uuids = Gpu.objects.filter(slot__in=slots).values_list("uuid", flat=True)
    assert sorted(uuids) == sorted(lease.gpu_uuids)
    assert Relocation.objects.count() == (lease.node_id != node_id)
    assert Grant.objects.count() == 1
    assert_sound()


def test_a_drain_and_buyers_leave_no_window_unkept_and_unsaid(seed: int) -> None:
    make_pool(gpus=8)
    node = Node.objects.get()
    make_pool(gpus=8)
    tenant = make_organization()
    buyers = [buying(make_quote(tenant=tenant)) for _ in range(6)]
    drained: list[drains.Drained] = []

    def drain() -> str:
        drained.append(drains.drain(node=Node.objects.get(pk=node.pk), at=NOW, actor="owner"))
        return "drained"

    outcomes = at_once(shuffled([*buyers, drain], seed=seed))
    drains.sweep(at=NOW)

    assert outcomes == {"sold": 6, "drained": 1}
    assert Node.objects.get(pk=node.pk).status == NodeStatus.DRAINING
    assert not Allocation.objects.filter(live=True, node=node).exists()
    assert_sound()


def test_a_lease_is_reclaimed_once_or_ends_by_itself(seed: int) -> None:
    owner = make_organization()
    make_node(owner=owner)
    make_listing(owner=owner, tier=Tier.RECLAIMABLE, reclaim_notice_seconds=3600)
    lease = an_active_lease(tier=Tier.RECLAIMABLE, length=10)
    at = lease.starts_at + hours(1)
    say_returned(lease, at=at)

    def reclaim() -> object:
        reclaims.reclaim(owner=owner, lease_id=lease.pk, at=at, actor="owner")
        return "reclaimed"

    outcomes = at_once(
        shuffled([outcome(reclaim)] * 4 + [outcome(lambda: leases.lose_due(at=at))] * 2, seed=seed)
    )

    assert Reclaim.objects.count() == outcomes["reclaimed"] <= 1
    told = Event.objects.filter(kind=EventKind.LEASE_RECLAIM_ANNOUNCED)
    assert told.count() == outcomes["reclaimed"]
    leases.lose_due(at=at)
    lease.refresh_from_db()
    assert lease.status == LeaseStatus.INTERRUPTED
    assert_sound()


def test_a_deadline_is_enforced_once(seed: int) -> None:
    owner = make_organization()
    make_node(owner=owner)
    make_listing(owner=owner, tier=Tier.RECLAIMABLE, reclaim_notice_seconds=3600)
    lease = an_active_lease(tier=Tier.RECLAIMABLE, length=10)
    made = reclaims.reclaim(
        owner=owner, lease_id=lease.pk, at=lease.starts_at + hours(1), actor="owner"
    )

    outcomes = at_once(
        shuffled([outcome(lambda: reclaims.enforce_due(at=made.due_at))] * 4, seed=seed)
    )

    assert outcomes["1"] == 1
    assert_sound()


def test_ticks_side_by_side_put_one_lease_in_the_place_of_one(seed: int) -> None:
    make_pool(nodes=4)
    lease = an_active_lease()
    at = lease.starts_at + hours(1)
    Node.objects.update(last_report_at=at)
    gpu = Gpu.objects.get(uuid=lease.gpu_uuids[0])
    Outage.objects.create(
        gpu=gpu,
        health=Health.LOST,
        cause=Cause.HARDWARE,
        reason="Xid 79",
        lease_id=lease.pk,
        starts_at=at,
    )

    at_once(shuffled([outcome(lambda: replacements.advance(at=at))] * 4, seed=seed))
    replacements.advance(at=at)

    assert Lease.objects.filter(replaces=lease).count() == 1
    assert_sound()


def test_a_replacement_and_the_end_of_the_window_never_both_win(seed: int) -> None:
    make_pool(nodes=3)
    lease = an_active_lease()
    at = lease.ends_at - seconds(700)
    Node.objects.update(last_report_at=at)
    Gpu.objects.filter(uuid=lease.gpu_uuids[0]).update(present=False)
    replacements.seek_due(at=at)

    at_once(
        shuffled(
            [outcome(lambda: replacements.replace_due(at=at))] * 2
            + [outcome(lambda: leases.end_due(at=lease.ends_at))] * 2,
            seed=seed,
        )
    )

    lease.refresh_from_db()
    replaced = Lease.objects.filter(replaces=lease).exists()
    assert lease.status == (LeaseStatus.INTERRUPTED if replaced else LeaseStatus.RETURNING)
    assert_sound()


def test_failed_handovers_of_a_whole_block_are_each_replaced_once(seed: int) -> None:
    make_pool(nodes=2)
    reservation = make_reservation(gpus=16, spread="same_fabric")
    reservations.start_due(at=reservation.starts_at)
    make_pool(nodes=3)
    at = reservation.starts_at + seconds(5)
    Node.objects.update(last_report_at=at)
    for lease in Lease.objects.all():
        say_failed(lease)

    def tick() -> object:
        leases.advance(at=at)
        replacements.replace_due(at=at)
        return reservations.finish_due(at=at)

    at_once(shuffled([outcome(tick)] * 4, seed=seed))
    tick()

    placed = Lease.objects.filter(replaces__isnull=False)
    assert placed.values("replaces").distinct().count() == placed.count() == 2
    fabrics = {lease.node.organization_id for lease in placed.select_related("node")}
    assert len(fabrics) == 1, "both halves of the block stand in one fabric"
    assert_sound()


def test_a_warning_is_told_once(seed: int) -> None:
    make_pool()
    lease = an_active_lease()
    at = lease.ends_at - seconds(1_800)

    outcomes = at_once(shuffled([outcome(lambda: warnings.warn_due(at=at))] * 4, seed=seed))

    assert outcomes["1"] == 1
    assert Event.objects.filter(kind=EventKind.RESERVATION_END_ANNOUNCED).count() == 1


def leaving(reservation: Reservation, *, at: dt.datetime) -> Callable[[], str]:
    """Return an action that leaves a reservation on the terms of a quote made beforehand."""
    quote = cancellations.quote(
        organization=reservation.organization, reservation_id=reservation.pk, at=at
    )

    def leave() -> object:
        cancellations.cancel(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            at=at,
            actor="tenant",
        )
        return "left"

    return outcome(leave)


def test_a_cancellation_and_a_start_never_both_win(seed: int) -> None:
    make_pool()
    reservation = make_reservation(gpus=2)
    at = reservation.starts_at

    outcomes = at_once(
        shuffled(
            [leaving(reservation, at=at - seconds(1))] * 2
            + [outcome(lambda: reservations.start_due(at=at))] * 2,
            seed=seed,
        )
    )
    reservations.start_due(at=at)

    reservation.refresh_from_db()
    if outcomes["left"]:
        assert outcomes["left"] == 1
        assert reservation.status in (ReservationStatus.CANCELLED, ReservationStatus.ACTIVE)
    else:
        assert reservation.status == ReservationStatus.ACTIVE
    is_cancelled = reservation.status == ReservationStatus.CANCELLED
    assert Grant.objects.exists() == (not is_cancelled)
    assert Allocation.objects.filter(live=True).exists() == (not is_cancelled)
    assert_sound()


def test_a_tenant_that_leaves_and_an_owner_that_reclaims_end_the_lease_once(seed: int) -> None:
    owner = make_organization()
    make_node(owner=owner)
    make_listing(owner=owner, tier=Tier.RECLAIMABLE, reclaim_notice_seconds=3600)
    lease = an_active_lease(tier=Tier.RECLAIMABLE, length=10)
    at = lease.starts_at + hours(1)

    def reclaim() -> object:
        reclaims.reclaim(owner=owner, lease_id=lease.pk, at=at, actor="owner")
        return "reclaimed"

    outcomes = at_once(
        shuffled([leaving(lease.reservation, at=at)] * 2 + [outcome(reclaim)] * 2, seed=seed)
    )

    assert outcomes["left"] <= 1
    assert Reclaim.objects.count() == outcomes["reclaimed"] <= 1
    assert outcomes["left"] + outcomes["reclaimed"] >= 1
    if outcomes["left"]:
        assert Grant.objects.get().desired_state == DesiredState.STOP
    say_returned(lease, at=at + seconds(9))
    for later in (seconds(10), hours(2)):
        reclaims.enforce_due(at=at + later)
        leases.advance(at=at + later)
        reservations.finish_due(at=at + later)
    lease.refresh_from_db()
    assert LEASE_ARROWS.is_final(LeaseStatus(lease.status))
    assert_sound()
