"""The arrows that are taken because their time has come: expiry, start and end."""

import datetime as dt
from collections.abc import Sequence

import structlog
from django.db import DatabaseError, transaction
from django.db.models import Exists, OuterRef, Q

from marketplace.core.errors import StateConflict
from scheduler import calendar, leases, openings, ticks
from scheduler.models import Lease, Reclaim, Replacement, Reservation, ReservationTransition
from scheduler.reservations.moves import fail_payment, move, tell
from scheduler.states import (
    LEASE_ARROWS,
    RESERVATION_ARROWS,
    LeaseStatus,
    ReservationReason,
    ReservationStatus,
)

log = structlog.get_logger(__name__)

SYSTEM = "scheduler"  # actor of what happens because its time has come
_FINAL_LEASES = [status for status in LeaseStatus if LEASE_ARROWS.is_final(status)]


def expire_unpaid(*, at: dt.datetime) -> int:
    """Take the arrow payment_pending → expired for all whose time to pay is over; return how many."""
    due = Reservation.objects.filter(
        status=ReservationStatus.PAYMENT_PENDING, payment_due_at__lte=at
    ).order_by("payment_due_at", "pk")
    return ticks.drain(due=due, advance=lambda row: _expire(row, at=at), name="expire_unpaid")


def start_due(*, at: dt.datetime) -> int:
    """Start the reservations whose window has begun: one lease and one grant per node; return how many.

    Ends run before starts, so that freed GPUs serve the next lease. One that nobody started before its
    window was over has failed, and so has one that cannot be started for as long as a handover may take.
    One of which a part is unpaid does not start.
    One whose price is still only held has not been paid, and does not begin.
    """
    leases.end_due(at=at)
    scheduled = Reservation.objects.filter(status=ReservationStatus.SCHEDULED)
    unpaid = ticks.drain(
        due=scheduled.filter(is_payment_held=True, starts_at__lte=at).order_by("starts_at", "pk"),
        advance=lambda row: _fail_untaken(row, at=at),
        name="untaken",
    )
    paid = scheduled.filter(is_payment_held=False)
    missed = ticks.drain(
        due=paid.filter(ends_at__lte=at).order_by("starts_at", "pk"),
        advance=lambda row: _fail(row, reason=ReservationReason.NOTHING_DELIVERED, at=at),
        name="miss",
    )
    return (
        unpaid
        + missed
        + ticks.drain(
            due=paid.filter(starts_at__lte=at, ends_at__gt=at, unpaid_minor=0)
            .select_related("organization")
            .order_by("starts_at", "pk"),
            advance=lambda row: _start_or_fail(row, at=at),
            name="start_due",
            together=lambda rows: _start_all(rows, at=at),
        )
    )


def finish_due(*, at: dt.datetime) -> int:
    """Finish the active reservations whose leases are all over and not replaced; return how many.

    Completed when the window is over and at least one lease was handed over.
    Reclaimed, at once, when what was left of it went back to its owner. Failed, at once, when nothing was
    handed over, or when nothing came in the place of what failed.
    """
    open_leases = Lease.objects.filter(reservation=OuterRef("pk")).exclude(status__in=_FINAL_LEASES)
    sought = Replacement.objects.filter(lease__reservation=OuterRef("pk"), closed_at__isnull=True)
    delivered = Lease.objects.filter(reservation=OuterRef("pk"), handed_over_at__isnull=False)
    broken = Lease.objects.filter(
        reservation=OuterRef("pk"), status__in=[LeaseStatus.INTERRUPTED, LeaseStatus.FAILED]
    )
    closed = Reservation.objects.filter(
        ~Exists(open_leases), ~Exists(sought), status=ReservationStatus.ACTIVE
    ).order_by("ends_at", "pk")
    reclaimed = Reclaim.objects.filter(lease__reservation=OuterRef("pk"))
    kept = delivered.filter(reclaim__isnull=True)
    count = ticks.drain(
        due=closed.filter(Exists(reclaimed), Q(ends_at__gt=at) | ~Exists(kept)),
        advance=lambda row: _reclaim(row, at=at),
        name="reclaim",
    )
    count += ticks.drain(
        due=closed.filter(Exists(delivered), ends_at__lte=at),
        advance=lambda row: _complete(row, at=at),
        name="complete",
    )
    count += ticks.drain(
        due=closed.filter(~Exists(delivered)),
        advance=lambda row: _fail(row, reason=ReservationReason.NOTHING_DELIVERED, at=at),
        name="fail",
    )
    return count + ticks.drain(
        due=closed.filter(Exists(delivered), Exists(broken), ends_at__gt=at),
        advance=lambda row: _fail(row, reason=ReservationReason.NOT_REPLACED, at=at),
        name="fail_unreplaced",
    )


def _expire(reservation: Reservation, *, at: dt.datetime) -> None:
    move(
        reservation,
        to=ReservationStatus.EXPIRED,
        reason=ReservationReason.PAYMENT_WINDOW_CLOSED,
        at=at,
        actor=SYSTEM,
    )
    calendar.free_reservation(reservation_id=reservation.pk)


def _fail_untaken(reservation: Reservation, *, at: dt.datetime) -> None:
    """Take the arrow scheduled → payment_failed: whoever was to take the held price has not said so."""
    fail_payment(
        reservation_id=reservation.pk,
        at=at,
        actor=SYSTEM,
        reason=ReservationReason.PAYMENT_NOT_TAKEN,
    )


def _start_or_fail(reservation: Reservation, *, at: dt.datetime) -> None:
    """Take the arrow scheduled → active; where that is impossible for long, scheduled → failed.

    An error of the database is nobody's fault and is tried again until the window is over.
    """
    try:
        with transaction.atomic():
            _start_all([reservation], at=at)
    except DatabaseError:
        raise
    except Exception:
        patience = dt.timedelta(seconds=leases.HANDOVER_DEADLINE_SECONDS)
        if at < reservation.starts_at + patience:
            raise
        log.exception("reservation_cannot_start", reservation_id=reservation.pk)
        reservation.refresh_from_db(fields=["status"])
        _fail(reservation, reason=ReservationReason.NOT_STARTED, at=at)


def _start_all(rows: Sequence[Reservation], *, at: dt.datetime) -> None:
    """Take the arrow scheduled → active for rows that the caller has locked, with few statements."""
    assert RESERVATION_ARROWS.allows(ReservationStatus.SCHEDULED, ReservationStatus.ACTIVE)
    won = Reservation.objects.filter(
        pk__in=[row.pk for row in rows], status=ReservationStatus.SCHEDULED
    ).update(status=ReservationStatus.ACTIVE)
    if won != len(rows):
        raise StateConflict(f"{len(rows) - won} of {len(rows)} reservations moved on")
    for row in rows:
        row.status = ReservationStatus.ACTIVE
    ReservationTransition.objects.bulk_create(
        ReservationTransition(
            reservation=row,
            from_status=ReservationStatus.SCHEDULED,
            to_status=ReservationStatus.ACTIVE,
            reason=ReservationReason.WINDOW_STARTED,
            actor=SYSTEM,
            at=at,
        )
        for row in rows
    )
    for row in rows:
        tell(row, reason=ReservationReason.WINDOW_STARTED, at=at)
    openings.open_all(reservations=rows, at=at)


def _complete(reservation: Reservation, *, at: dt.datetime) -> None:
    """Take the arrow active → completed."""
    move(
        reservation,
        to=ReservationStatus.COMPLETED,
        reason=ReservationReason.WINDOW_ENDED,
        at=at,
        actor=SYSTEM,
    )


def _reclaim(reservation: Reservation, *, at: dt.datetime) -> None:
    """Take the arrow active → reclaimed."""
    move(
        reservation,
        to=ReservationStatus.RECLAIMED,
        reason=ReservationReason.OWNER_RECLAIMED,
        at=at,
        actor=SYSTEM,
    )


def _fail(reservation: Reservation, *, reason: ReservationReason, at: dt.datetime) -> None:
    """Take the arrow scheduled or active → failed: the tenant is released, what is undelivered goes back."""
    move(
        reservation,
        to=ReservationStatus.FAILED,
        reason=reason,
        at=at,
        actor=SYSTEM,
    )
    calendar.free_reservation(reservation_id=reservation.pk)
