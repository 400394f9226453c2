"""Leases: the fact, from the grant to the node until its GPUs are back.

The node's signed receipts decide when a lease began and ended, clipped to what was promised. Silence ends
no lease: only the end of the window does, and it proves nothing of the time before.
"""

import datetime as dt

from django.db import transaction
from django.db.models import Exists, F, Max, OuterRef, Q, QuerySet
from django.db.models.functions import Greatest

from agents import grants, inventory, protocol
from agents.models import Grant, MeterReading, Receipt
from marketplace import events
from marketplace.core.errors import StateConflict
from marketplace.core.windows import grid_ceiling
from marketplace.states import EventKind, Tier
from scheduler import calendar, releases, ticks
from scheduler.models import Lease, LeaseTransition, Reclaim, Replacement, Reservation
from scheduler.states import LEASE_ARROWS, LeaseReason, LeaseStatus

HANDOVER_DEADLINE_SECONDS = (
    600  # not usable within ten minutes: other GPUs, or the tenant is released
)
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
        + releases.release_due(at=at)
    )


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


def lose_due(*, at: dt.datetime) -> int:
    """Interrupt the running leases whose node gave the GPUs back unasked; return how many.

    A machine that was restarted says so: its tenant has nothing any more. This looks at every lease that
    runs, so it is no part of `advance`, which runs each second.
    """
    running = _in(LeaseStatus.ACTIVE, LeaseStatus.RECLAIMING).filter(
        ends_at__gt=at, reclaim__stopped_at__isnull=True
    )
    due = _with_receipt(running, protocol.ReceiptKind.RETURN)
    return ticks.drain(due=due, advance=lambda row: lose(lease=row, at=at), name="lose")


def take_back_due(*, at: dt.datetime) -> int:
    """Take back the GPUs whose return the node has confirmed; return how many leases that ends."""
    asked = _in(LeaseStatus.RETURNING, LeaseStatus.RECLAIMING).exclude(
        status=LeaseStatus.RECLAIMING, reclaim__stopped_at__isnull=True
    )
    due = _with_receipt(asked, protocol.ReceiptKind.RETURN)
    return ticks.drain(due=due, advance=lambda row: take_back(lease=row, at=at), name="take_back")


def give_up_due(*, at: dt.datetime) -> int:
    """End the leases whose return nobody confirmed in time; return how many.

    The grace runs from when the node was asked, not from the end of the window: after an outage of the
    market nodes get their time to report.
    """
    asked_long_ago = LeaseTransition.objects.filter(
        lease=OuterRef("pk"),
        to_status=LeaseStatus.RETURNING,
        at__lte=at - dt.timedelta(seconds=RETURN_GRACE_SECONDS),
    )
    since = at - dt.timedelta(seconds=RETURN_GRACE_SECONDS)
    due = _in(LeaseStatus.RETURNING, LeaseStatus.RECLAIMING).filter(
        Exists(asked_long_ago) | Q(reclaim__stopped_at__lte=since),
        ~Exists(_receipts(protocol.ReceiptKind.RETURN)),
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
    """Take the arrow provisioning → failed: the tenant never had the GPUs, and is owed others.

    A node that refused has cleaned up, or does so before anybody else gets the GPUs. Of one that said
    nothing, nobody knows: its GPUs are withdrawn until it speaks.

    :raises StateConflict: when the lease moved on.
    """
    is_owed_others = lease.ends_at > at and reason in (
        LeaseReason.HANDOVER_FAILED,
        LeaseReason.HANDOVER_TIMED_OUT,
    )
    _move(lease, to=LeaseStatus.FAILED, reason=reason, at=at)
    _cut(lease, at=at)
    _close(lease, at=at, is_released=reason is LeaseReason.HANDOVER_FAILED)
    if is_owed_others:
        Replacement.objects.create(lease=lease, opened_at=at, due_at=at)


@transaction.atomic
def reclaim(*, lease: Lease, ends_at: dt.datetime, at: dt.datetime, actor: str) -> None:
    """Take the arrow active → reclaiming: the owner's notice runs, and the promise ends with it.

    :raises StateConflict: when the lease moved on.
    """
    _move(lease, to=LeaseStatus.RECLAIMING, reason=LeaseReason.OWNER_RECLAIMED, at=at, actor=actor)
    lease.ends_at = ends_at
    lease.save(update_fields=["ends_at"])


@transaction.atomic
def interrupt(*, lease: Lease, reason: LeaseReason, at: dt.datetime) -> None:
    """Take the arrow active → interrupted: the GPUs failed, and others take their place from now on.

    The old ones are withdrawn until their node has given them back clean.

    :raises StateConflict: when the lease moved on.
    """
    _move(lease, to=LeaseStatus.INTERRUPTED, reason=reason, at=at)
    _cut(lease, at=at)
    lease.returned_at = lease.ends_at
    lease.save(update_fields=["returned_at"])
    _close(lease, at=at, is_released=False)
    _tell_of_interruption(lease, reason=reason, at=at)


@transaction.atomic
def lose(*, lease: Lease, at: dt.datetime) -> None:
    """Take the arrow active or reclaiming → interrupted, on a receipt of a return that nobody asked for.

    The tenant had the GPUs until then; a firm one is owed others.

    :raises StateConflict: when the lease moved on, or there is no receipt.
    """
    receipt = _receipt(lease, protocol.ReceiptKind.RETURN)
    assert lease.handed_over_at is not None, lease.pk
    _move(lease, to=LeaseStatus.INTERRUPTED, reason=LeaseReason.RETURNED_UNASKED, at=at)
    _cut(lease, at=at)
    lease.returned_at = _clip(receipt.at, lower=lease.handed_over_at, upper=lease.ends_at)
    lease.save(update_fields=["returned_at"])
    _close(lease, at=at, is_released=True)
    if not receipt.is_clean:
        inventory.quarantine(gpu_uuids=lease.gpu_uuids, reason=f"{lease.pk}: not clean", at=at)
    _tell_of_interruption(lease, reason=LeaseReason.RETURNED_UNASKED, at=at)
    if lease.reservation.tier == Tier.FIRM:
        Replacement.objects.create(lease=lease, opened_at=at, due_at=at)


@transaction.atomic
def end(*, lease: Lease, at: dt.datetime) -> None:
    """Take the arrow active → returning, and ask the node for the GPUs.

    :raises StateConflict: when the lease moved on.
    """
    _move(lease, to=LeaseStatus.RETURNING, reason=LeaseReason.WINDOW_ENDED, at=at)
    grants.stop(lease_id=lease.pk, lease_epoch=lease.epoch, at=at)


@transaction.atomic
def prolong(*, reservation: Reservation, at: dt.datetime) -> None:
    """Let the open leases of a reservation end when it does, and tell their nodes."""
    open_leases = Lease.objects.filter(
        reservation=reservation, status__in=[LeaseStatus.PROVISIONING, LeaseStatus.ACTIVE]
    )
    for lease in open_leases.order_by("pk").select_for_update(no_key=True):
        lease.ends_at = reservation.ends_at
        lease.save(update_fields=["ends_at"])
        grants.change_end(
            lease_id=lease.pk, lease_epoch=lease.epoch, not_after=reservation.ends_at, at=at
        )


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
        Reclaim.objects.filter(lease=lease, stopped_at__isnull=True).update(stopped_at=at)
        grants.stop(lease_id=lease.pk, lease_epoch=lease.epoch, at=at)


@transaction.atomic
def take_back(*, lease: Lease, at: dt.datetime) -> None:
    """Take the arrow returning or reclaiming → ended, on the node's receipt.

    GPUs that are not clean are withdrawn.

    :raises StateConflict: when the lease moved on, or there is no receipt.
    """
    receipt = _receipt(lease, protocol.ReceiptKind.RETURN)
    assert lease.handed_over_at is not None, lease.pk
    _move(lease, to=LeaseStatus.ENDED, reason=LeaseReason.RETURNED, at=at)
    lease.returned_at = _clip(receipt.at, lower=lease.handed_over_at, upper=lease.ends_at)
    lease.save(update_fields=["returned_at"])
    _close(lease, at=at, is_released=True)
    if not receipt.is_clean:
        inventory.quarantine(gpu_uuids=lease.gpu_uuids, reason=f"{lease.pk}: not clean", at=at)


@transaction.atomic
def give_up(*, lease: Lease, at: dt.datetime) -> None:
    """Take the arrow returning or reclaiming → ended without a receipt, and withdraw the GPUs from sale.

    The tenant had them for certain as far as the last meter reading goes, at most to the end of the
    window; what lies beyond is neither charged nor refunded until something tells.

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
    _close(lease, at=at, is_released=False)
    releases.note_overdue(lease=lease, at=at)


def _in(*statuses: LeaseStatus) -> QuerySet[Lease]:
    return Lease.objects.filter(status__in=statuses).order_by("ends_at", "pk")


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


def _tell_of_interruption(lease: Lease, *, reason: LeaseReason, at: dt.datetime) -> None:
    events.record(
        organization=lease.reservation.organization,
        kind=EventKind.LEASE_INTERRUPTED,
        object_id=lease.pk,
        data={"reservation_id": lease.reservation_id, "reason": reason},
        at=at,
        key=f"{lease.pk}:interrupted",
    )


def _cut(lease: Lease, *, at: dt.datetime) -> None:
    """Let a lease's promise end at the next whole second: what is left is another lease's, or given back."""
    earliest = lease.starts_at + dt.timedelta(seconds=1)
    lease.ends_at = min(lease.ends_at, max(grid_ceiling(at, grid_seconds=1), earliest))
    lease.save(update_fields=["ends_at"])


def _close(lease: Lease, *, at: dt.datetime, is_released: bool) -> None:
    """Leave the calendar, once the status is final, and the node's list of grants, once it is done."""
    assert LEASE_ARROWS.is_final(LeaseStatus(lease.status)), lease.status
    lease.closed_at = at
    lease.released_at = at if is_released else None
    lease.save(update_fields=["closed_at", "released_at"])
    calendar.free_lease(lease_id=lease.pk, at=at)
    if is_released:
        grants.close(lease_id=lease.pk, lease_epoch=lease.epoch, at=at)
    else:
        releases.withdraw(lease=lease, at=at)


def _move(
    lease: Lease, *, to: LeaseStatus, reason: LeaseReason, at: dt.datetime, actor: str = SYSTEM
) -> None:
    """Compare and set; the winner writes the transition in the same transaction, the loser raises."""
    came_from = LeaseStatus(lease.status)
    won = LEASE_ARROWS.allows(came_from, to) and Lease.objects.filter(
        pk=lease.pk, status=came_from
    ).update(status=to)
    if not won:
        raise StateConflict(f"{lease.pk} is {came_from} or moved on; it cannot become {to}")
    lease.status = to
    LeaseTransition.objects.create(
        lease=lease, from_status=came_from, to_status=to, reason=reason, actor=actor, at=at
    )
