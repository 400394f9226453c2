"""Leases: the fact, from the grant to the node until its GPUs are back.

The node's signed receipts decide when a lease began and ended, clipped to what was promised. Silence ends
no lease: only the end of the window does, and what cannot be proved then is not charged.
"""

import datetime as dt
from collections import defaultdict

from django.db import transaction
from django.db.models import Exists, F, Max, OuterRef, Q, QuerySet
from django.db.models.functions import Greatest

from agents import grants, inventory, protocol
from agents.models import Gpu, Grant, MeterReading, Receipt
from marketplace.core.errors import StateConflict
from scheduler import calendar, ticks
from scheduler.models import Allocation, Lease, LeaseTransition, Reservation
from scheduler.states import LEASE_ARROWS, LeaseReason, LeaseStatus

HANDOVER_DEADLINE_SECONDS = 600  # not usable within ten minutes: the tenant is released
RETURN_GRACE_SECONDS = 600  # a node that restarts at the end of a window gets time to say so
SYSTEM = "scheduler"


def advance(*, at: dt.datetime) -> int:
    """Move every lease as far as time and evidence allow; return the number of moves.

    Ends come first: GPUs that come back serve whoever is next.
    """
    return (
        end_due(at=at)
        + take_back_due(at=at)
        + give_up_due(at=at)
        + hand_over_due(at=at)
        + fail_due(at=at)
    )


def open_for(*, reservation: Reservation, at: dt.datetime) -> list[Lease]:
    """Open one lease per node of a reservation and grant its GPUs, within the caller's transaction."""
    places = Allocation.objects.filter(reservation=reservation, live=True).select_related("node")
    nodes = {place.node_id: place.node for place in places}
    slots_of: dict[str, set[int]] = defaultdict(set)
    for place in places:
        slots_of[place.node_id] |= set(range(place.slots.lower, place.slots.upper))
    uuid_of = dict(
        Gpu.objects.filter(slot__in=set().union(*slots_of.values())).values_list("slot", "uuid")
    )
    opened = []
    for node_id in sorted(nodes):
        lease = Lease(
            reservation=reservation,
            node=nodes[node_id],
            status=LEASE_ARROWS.initial[0],
            gpu_uuids=[uuid_of[slot] for slot in sorted(slots_of[node_id])],
            starts_at=reservation.starts_at,
            ends_at=reservation.ends_at,
            created_at=at,
        )
        lease.save(force_insert=True)
        LeaseTransition.objects.create(
            lease=lease,
            from_status="",
            to_status=lease.status,
            reason=LeaseReason.WINDOW_STARTED,
            actor=SYSTEM,
            at=at,
        )
        calendar.bind_to_lease(reservation_id=reservation.pk, node_id=node_id, lease=lease)
        grants.issue(
            node=nodes[node_id],
            lease_id=lease.pk,
            lease_epoch=lease.epoch,
            gpu_uuids=lease.gpu_uuids,
            window=lease.window,
            ssh_public_keys=reservation.ssh_public_keys,
            image=reservation.image,
            at=at,
        )
        opened.append(lease)
    assert sum(len(lease.gpu_uuids) for lease in opened) == reservation.gpus, reservation.pk
    return opened


def hand_over_due(*, at: dt.datetime) -> int:
    """Hand over the leases whose node has sent a receipt of it; return how many."""
    due = _with_receipt(_in(LeaseStatus.PROVISIONING), protocol.ReceiptKind.HANDOVER)
    return ticks.drain(due=due, advance=lambda row: hand_over(lease=row, at=at), name="hand_over")


def fail_due(*, at: dt.datetime) -> int:
    """Fail the leases that their node gave up, or that were not handed over in time; return how many."""
    refused = Grant.objects.filter(
        lease_id=OuterRef("pk"),
        lease_epoch=OuterRef("epoch"),
        reported_state=protocol.LeaseState.FAILED,
    )
    started_by = at - dt.timedelta(seconds=HANDOVER_DEADLINE_SECONDS)
    due = (
        _in(LeaseStatus.PROVISIONING)
        .filter(~Exists(_receipts(protocol.ReceiptKind.HANDOVER)))
        .annotate(waits_since=Greatest(F("starts_at"), F("created_at")))
        .filter(Q(waits_since__lte=started_by) | Q(ends_at__lte=at) | Exists(refused))
    )

    def advance(lease: Lease) -> None:
        if lease.pk in grants.failed(lease_ids=[lease.pk]):
            fail(lease=lease, reason=LeaseReason.HANDOVER_FAILED, at=at)
        else:
            fail(lease=lease, reason=LeaseReason.HANDOVER_TIMED_OUT, at=at)

    return ticks.drain(due=due, advance=advance, name="fail")


def end_due(*, at: dt.datetime) -> int:
    """End the active leases whose window is over; return how many."""
    due = _in(LeaseStatus.ACTIVE).filter(ends_at__lte=at)
    return ticks.drain(due=due, advance=lambda row: end(lease=row, at=at), name="end")


def take_back_due(*, at: dt.datetime) -> int:
    """Take back the GPUs whose return the node has confirmed; return how many leases that ends."""
    due = _with_receipt(_in(LeaseStatus.RETURNING), protocol.ReceiptKind.RETURN)
    return ticks.drain(due=due, advance=lambda row: take_back(lease=row, at=at), name="take_back")


def give_up_due(*, at: dt.datetime) -> int:
    """End the leases whose return nobody confirmed in time; return how many.

    The grace runs from the move to `returning`, not from the end of the window: after an outage of the
    market nodes get their time to report.
    """
    asked_long_ago = LeaseTransition.objects.filter(
        lease=OuterRef("pk"),
        to_status=LeaseStatus.RETURNING,
        at__lte=at - dt.timedelta(seconds=RETURN_GRACE_SECONDS),
    )
    due = _in(LeaseStatus.RETURNING).filter(
        ~Exists(_receipts(protocol.ReceiptKind.RETURN)), Exists(asked_long_ago)
    )
    return ticks.drain(due=due, advance=lambda row: give_up(lease=row, at=at), name="give_up")


@transaction.atomic
def hand_over(*, lease: Lease, at: dt.datetime) -> None:
    """Take the arrow provisioning → active, on the node's receipt.

    The tenant had the GPUs from the receipt's instant on, but not before the window, and not before the
    second in which the market asked for them: a node's clock may be minutes behind.

    :raises StateConflict: when the lease moved on, or there is no receipt.
    """
    receipt = _receipt(lease, protocol.ReceiptKind.HANDOVER)
    _move(lease, to=LeaseStatus.ACTIVE, reason=LeaseReason.HANDED_OVER, at=at)
    asked_at = lease.created_at.replace(microsecond=0)
    lease.handed_over_at = _clip(
        receipt.at, lower=max(lease.starts_at, asked_at), upper=lease.ends_at
    )
    lease.access = receipt.access
    lease.save(update_fields=["handed_over_at", "access"])


@transaction.atomic
def fail(*, lease: Lease, reason: LeaseReason, at: dt.datetime) -> None:
    """Take the arrow provisioning → failed: the tenant never had the GPUs.

    :raises StateConflict: when the lease moved on.
    """
    _move(lease, to=LeaseStatus.FAILED, reason=reason, at=at)
    _close(lease, at=at)


@transaction.atomic
def end(*, lease: Lease, at: dt.datetime) -> None:
    """Take the arrow active → returning, and ask the node for the GPUs.

    :raises StateConflict: when the lease moved on.
    """
    _move(lease, to=LeaseStatus.RETURNING, reason=LeaseReason.WINDOW_ENDED, at=at)
    grants.stop(lease_id=lease.pk, lease_epoch=lease.epoch, at=at)


@transaction.atomic
def leave(*, lease: Lease, ends_at: dt.datetime, at: dt.datetime) -> None:
    """End a lease before its window is over, because the tenant goes; its promise ends at `ends_at`.

    Takes the arrow active → returning and asks the node for the GPUs, or provisioning → failed: the tenant
    never had them. An owner who takes them back gets them sooner.

    :raises StateConflict: when the lease moved on.
    """
    if lease.status == LeaseStatus.ACTIVE:
        _move(lease, to=LeaseStatus.RETURNING, reason=LeaseReason.TENANT_RETURNED, at=at)
    lease.ends_at = min(lease.ends_at, ends_at)
    lease.save(update_fields=["ends_at"])
    if lease.status == LeaseStatus.PROVISIONING:
        fail(lease=lease, reason=LeaseReason.TENANT_RETURNED, at=at)
    else:
        grants.stop(lease_id=lease.pk, lease_epoch=lease.epoch, at=at)


@transaction.atomic
def take_back(*, lease: Lease, at: dt.datetime) -> None:
    """Take the arrow returning → ended, on the node's receipt. GPUs that are not clean are withdrawn.

    :raises StateConflict: when the lease moved on, or there is no receipt.
    """
    receipt = _receipt(lease, protocol.ReceiptKind.RETURN)
    assert lease.handed_over_at is not None, lease.pk
    _move(lease, to=LeaseStatus.ENDED, reason=LeaseReason.RETURNED, at=at)
    lease.returned_at = _clip(receipt.at, lower=lease.handed_over_at, upper=lease.ends_at)
    lease.save(update_fields=["returned_at"])
    _close(lease, at=at)
    if not receipt.is_clean:
        inventory.quarantine(gpu_uuids=lease.gpu_uuids, reason=f"{lease.pk}: not clean", at=at)


@transaction.atomic
def give_up(*, lease: Lease, at: dt.datetime) -> None:
    """Take the arrow returning → ended without a receipt, and withdraw the GPUs from sale.

    The tenant had them for certain as far as the last meter reading goes, at most to the end of the
    window; nothing beyond that is charged.

    :raises StateConflict: when the lease moved on.
    """
    assert lease.handed_over_at is not None, lease.pk
    last = MeterReading.objects.filter(lease_id=lease.pk, lease_epoch=lease.epoch).aggregate(
        at=Max("ends_at")
    )["at"]
    _move(lease, to=LeaseStatus.ENDED, reason=LeaseReason.RETURN_UNCONFIRMED, at=at)
    lease.returned_at = _clip(
        last or lease.handed_over_at, lower=lease.handed_over_at, upper=lease.ends_at
    )
    lease.save(update_fields=["returned_at"])
    _close(lease, at=at)
    inventory.quarantine(
        gpu_uuids=lease.gpu_uuids, reason=f"{lease.pk}: return not confirmed", at=at
    )


def _in(status: LeaseStatus) -> QuerySet[Lease]:
    return Lease.objects.filter(status=status).order_by("ends_at", "pk")


def _receipts(kind: protocol.ReceiptKind) -> QuerySet[Receipt]:
    return Receipt.objects.filter(lease_id=OuterRef("pk"), lease_epoch=OuterRef("epoch"), kind=kind)


def _with_receipt(due: QuerySet[Lease], kind: protocol.ReceiptKind) -> QuerySet[Lease]:
    return due.filter(Exists(_receipts(kind)))


def _receipt(lease: Lease, kind: protocol.ReceiptKind) -> Receipt:
    receipt = grants.receipt(lease_id=lease.pk, lease_epoch=lease.epoch, kind=kind)
    if receipt is None:
        raise StateConflict(f"{lease.pk} has no receipt of its {kind}")
    return receipt


def _clip(instant: dt.datetime, *, lower: dt.datetime, upper: dt.datetime) -> dt.datetime:
    return min(max(instant, lower), upper)


def _close(lease: Lease, *, at: dt.datetime) -> None:
    """Leave the calendar and the node's list of grants, once the status is final."""
    assert LEASE_ARROWS.is_final(LeaseStatus(lease.status)), lease.status
    lease.closed_at = at
    lease.save(update_fields=["closed_at"])
    calendar.free_lease(lease_id=lease.pk)
    grants.close(lease_id=lease.pk, lease_epoch=lease.epoch, at=at)


def _move(lease: Lease, *, to: LeaseStatus, reason: LeaseReason, at: dt.datetime) -> None:
    """Compare and set; the winner writes the transition in the same transaction, the loser raises."""
    came_from = LeaseStatus(lease.status)
    won = LEASE_ARROWS.allows(came_from, to) and Lease.objects.filter(
        pk=lease.pk, status=came_from
    ).update(status=to)
    if not won:
        raise StateConflict(f"{lease.pk} is {came_from} or moved on; it cannot become {to}")
    lease.status = to
    LeaseTransition.objects.create(
        lease=lease, from_status=came_from, to_status=to, reason=reason, actor=SYSTEM, at=at
    )
