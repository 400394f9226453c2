"""Reclaim: an owner takes a reclaimable lease back, after the notice that was promised when it was sold.

The deadline is a row with a due date, so the lease ends though nobody calls again. Before it the owner
cannot end the lease; the tenant can leave at once. The full price runs as long as the GPUs are there.
Nothing that is reclaimed is extended.
"""

import datetime as dt

from django.conf import settings
from django.db import transaction

from agents import grants
from marketplace import audit, events
from marketplace.core.errors import DomainError, NotFound, StateConflict
from marketplace.core.windows import Window, format_instant, grid_ceiling
from marketplace.models import Organization
from marketplace.states import EventKind, Tier
from scheduler import compensation, leases, ticks
from scheduler.lots import Lots
from scheduler.models import Lease, Reclaim, Reservation
from scheduler.states import LeaseStatus

REMINDER_SECONDS = 1_800  # as before the end of any reservation


class NotReclaimable(DomainError):
    """A firm lease cannot be taken back."""

    code = "not_reclaimable"
    title = "The lease cannot be reclaimed"


class ReclaimTooLate(DomainError):
    """The lease ends before the notice would be over."""

    code = "reclaim_too_late"
    title = "The lease ends before the notice is over"


@transaction.atomic
def reclaim(*, owner: Organization, lease_id: str, at: dt.datetime, actor: str) -> Reclaim:
    """Start the clock of the notice; the tenant is told, once, and the deadline ends the lease.

    :raises NotFound: when the lease is on none of the owner's nodes.
    :raises NotReclaimable: when it is firm.
    :raises StateConflict: when it is not running, or was reclaimed before.
    :raises ReclaimTooLate: when it ends by itself before the notice is over.
    """
    found = Lease.objects.on_nodes_of(owner).filter(pk=lease_id).first()
    if found is None:
        raise NotFound(f"no lease {lease_id}")
    # Everybody who changes what a reservation has locks it first.
    reservation = (
        Reservation.objects.select_for_update(no_key=True, of=("self",))
        .select_related("organization")
        .get(pk=found.reservation_id)
    )
    lease = Lease.objects.select_related("node").get(pk=found.pk)
    if reservation.tier != Tier.RECLAIMABLE:
        raise NotReclaimable(f"{lease.pk} is firm until {format_instant(lease.ends_at)}")
    if lease.status == LeaseStatus.RECLAIMING:
        raise StateConflict(
            f"{lease.pk} is being reclaimed since before: it ends at {format_instant(lease.ends_at)}"
        )
    if lease.status != LeaseStatus.ACTIVE:
        raise StateConflict(f"{lease.pk} is {lease.status}: only a running lease can be reclaimed")
    notice = dt.timedelta(seconds=reservation.reclaim_notice_seconds)
    due_at = grid_ceiling(at, grid_seconds=1) + notice
    if due_at >= lease.ends_at:
        raise ReclaimTooLate(f"{lease.pk} ends at {format_instant(lease.ends_at)} by itself")
    remaining = compensation.remaining_value(
        lots=Lots.from_json(reservation.lots),
        numbers=lease.lot_numbers,
        rest=Window(due_at, lease.ends_at),
        currency=reservation.currency,
    )
    made = Reclaim.objects.create(
        lease=lease,
        notice_at=at,
        due_at=due_at,
        promised_until=lease.ends_at,
        remaining_minor=remaining.amount_minor,
        compensation_minor=compensation.compensation_for(
            remaining=remaining, basis_points=settings.RECLAIM_COMPENSATION_BASIS_POINTS
        ).amount_minor,
        currency=reservation.currency,
        actor=actor,
    )
    leases.reclaim(lease=lease, ends_at=due_at, at=at, actor=actor)
    audit.record(
        at=at,
        actor=actor,
        action="lease.reclaimed",
        object_id=lease.pk,
        organization=owner,
        detail={"due_at": format_instant(due_at)},
    )
    _tell(made, reservation=reservation, kind=EventKind.LEASE_RECLAIM_ANNOUNCED, at=at)
    return made


def advance(*, at: dt.datetime) -> int:
    """Remind tenants of what ends soon, and end what is due; return the number of moves."""
    return remind_due(at=at) + enforce_due(at=at)


def enforce_due(*, at: dt.datetime) -> int:
    """Ask the nodes for the GPUs of leases whose notice is over, or whose tenant left; return how many."""
    due = Reclaim.objects.filter(
        stopped_at__isnull=True, lease__status=LeaseStatus.RECLAIMING, lease__ends_at__lte=at
    ).order_by("due_at", "pk")

    def stop(row: Reclaim) -> None:
        grants.stop(lease_id=row.lease_id, lease_epoch=row.lease.epoch, at=at)
        row.stopped_at = at
        row.save(update_fields=["stopped_at"])

    return ticks.drain(due=due.select_related("lease"), advance=stop, name="enforce_reclaim")


def remind_due(*, at: dt.datetime) -> int:
    """Tell the tenants whose notice is nearly over; return how many."""
    due = (
        Reclaim.objects.filter(
            reminded_at__isnull=True,
            stopped_at__isnull=True,
            due_at__lte=at + dt.timedelta(seconds=REMINDER_SECONDS),
            due_at__gt=at,
            lease__status=LeaseStatus.RECLAIMING,
        )
        .select_related("lease__reservation__organization")
        .order_by("due_at", "pk")
    )

    def remind(row: Reclaim) -> None:
        _tell(row, reservation=row.lease.reservation, kind=EventKind.LEASE_END_ANNOUNCED, at=at)
        row.reminded_at = at
        row.save(update_fields=["reminded_at"])

    return ticks.drain(due=due, advance=remind, name="remind_of_reclaim")


def _tell(row: Reclaim, *, reservation: Reservation, kind: EventKind, at: dt.datetime) -> None:
    events.record(
        organization=reservation.organization,
        kind=kind,
        object_id=row.lease_id,
        data={
            "reservation_id": reservation.pk,
            "due_at": format_instant(row.due_at),
            "compensation": {
                "amount_minor": row.compensation_minor,
                "currency": row.currency,
            },
        },
        at=at,
        key=f"{row.lease_id}:{kind}",
    )
