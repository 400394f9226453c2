"""Limits of tenants: GPU-hours booked ahead, length of a reservation, how far ahead it may end.

The quota looks forward: what counts is what is booked and not yet over, so that it frees up as time passes.
72 GPU-hours are one GPU for 72 hours or four for 18; half-way through, half of them are free again.
"""

import datetime as dt
from dataclasses import dataclass

from django.conf import settings
from django.db import connection, transaction

from marketplace import audit
from marketplace.core.errors import DomainError
from marketplace.core.money import SECONDS_PER_HOUR
from marketplace.core.windows import Window, format_instant
from marketplace.models import Organization
from scheduler.models import Reservation, TenantLimit
from scheduler.states import ReservationStatus

# What is promised or asked for, and not over.
COUNTED = (
    ReservationStatus.PAYMENT_PENDING,
    ReservationStatus.SCHEDULED,
    ReservationStatus.ACTIVE,
)
_LOCK_SPACE = (
    0x51756F74  # namespace of the advisory locks under which a tenant's bookings are counted
)


class LimitExceeded(DomainError):
    code = "limit_exceeded"
    title = "A limit of the organization is reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What holds for one tenant; `None` is no limit."""

    gpu_seconds: int | None
    duration_seconds: int | None
    horizon_days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A tenant's limits and how much of its quota is booked at an instant."""

    limits: Limits
    gpu_seconds_booked: int

    @property
    def gpu_seconds_left(self) -> int | None:
        """Return how much may still be booked, `None` without a quota."""
        quota = self.limits.gpu_seconds
        return None if quota is None else max(0, quota - self.gpu_seconds_booked)


def limits_of(*, organization: Organization) -> Limits:
    """Return what holds for a tenant: its own row, and where that says nothing, the row for everybody."""
    # As text: every purchase asks this, and Django takes longer to write it than PostgreSQL to answer.
    found = TenantLimit.objects.raw(
        "SELECT * FROM scheduler_tenantlimit WHERE organization_id = %s OR organization_id IS NULL",
        [organization.pk],
    )
    rows = {row.organization_id: row for row in found}
    known = [rows[key] for key in (organization.pk, None) if key in rows]
    hours = next((r.gpu_hours_max for r in known if r.gpu_hours_max is not None), None)
    longest = next(
        (r.duration_seconds_max for r in known if r.duration_seconds_max is not None), None
    )
    days = next((r.horizon_days_max for r in known if r.horizon_days_max is not None), None)
    is_exempt = bool(known) and known[0].is_duration_exempt
    return Limits(
        gpu_seconds=None if hours is None else hours * SECONDS_PER_HOUR,
        duration_seconds=None if is_exempt else longest,
        horizon_days=min(settings.HORIZON_DAYS, days or settings.HORIZON_DAYS),
    )


def standing_of(*, organization: Organization, at: dt.datetime) -> Standing:
    """Return a tenant's limits and what it has booked ahead at `at`."""
    return Standing(
        limits=limits_of(organization=organization),
        gpu_seconds_booked=_booked(organization=organization, without=None, at=at),
    )


def check(
    *,
    organization: Organization,
    gpus: int,
    window: Window,
    at: dt.datetime,
    instead_of: Reservation | None = None,
    is_final: bool = True,
) -> None:
    """Refuse a window that would take a tenant over one of its limits.

    `instead_of` is a reservation of the tenant that the window replaces: what is no more than it was before
    is never refused, because a lowered limit takes nothing away. `is_final` says that the caller's
    transaction books it: then the tenant's other bookings wait until it is over, so that two cannot both
    take the last of the quota. Without a quota nobody waits and nothing is counted.

    :raises LimitExceeded: with what the limit is and how much of it is left.
    """
    limits = limits_of(organization=organization)
    if instead_of is None or window.seconds > instead_of.window.seconds:
        _check_length(limits=limits, window=window)
    if instead_of is None or window.ends_at > instead_of.ends_at:
        _check_horizon(limits=limits, window=window, at=at)
    if limits.gpu_seconds is None:
        return
    if is_final:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [_LOCK_SPACE, organization.pk]
            )
    booked = _booked(organization=organization, without=instead_of, at=at)
    wanted = _ahead(gpus=gpus, window=window, at=at)
    left = limits.gpu_seconds - booked
    before = _ahead(gpus=instead_of.gpus, window=instead_of.window, at=at) if instead_of else 0
    if wanted > left and wanted > before:
        raise LimitExceeded(
            f"{hours_text(wanted)} GPU-hours are asked for, and {hours_text(max(0, left))} of "
            f"{hours_text(limits.gpu_seconds)} may still be booked",
            extra={
                "limit": "gpu_hours",
                "limit_gpu_seconds": limits.gpu_seconds,
                "left_gpu_seconds": max(0, left),
            },
        )


@transaction.atomic
def put(*, limit: TenantLimit, at: dt.datetime, actor: str) -> None:
    """Store the limits of a tenant, or of all others, and say in the trail who did."""
    limit.save()
    _note(limit, action="tenant_limit.set", at=at, actor=actor)


@transaction.atomic
def drop(*, limit: TenantLimit, at: dt.datetime, actor: str) -> None:
    """Take a row of limits away: what holds for everybody holds for its tenant again."""
    _note(limit, action="tenant_limit.dropped", at=at, actor=actor)
    limit.delete()


def latest_end(*, reservation: Reservation, at: dt.datetime) -> dt.datetime:
    """Return until when a tenant's limits let a reservation be extended, before or after its own end."""
    organization = reservation.organization
    limits = limits_of(organization=organization)
    latest = at + dt.timedelta(days=limits.horizon_days)
    if limits.duration_seconds is not None:
        latest = min(latest, reservation.starts_at + dt.timedelta(seconds=limits.duration_seconds))
    if limits.gpu_seconds is not None:
        left = limits.gpu_seconds - _booked(organization=organization, without=None, at=at)
        seconds = max(0, left) // reservation.gpus
        latest = min(latest, reservation.ends_at + dt.timedelta(seconds=seconds))
    return latest


def _note(limit: TenantLimit, *, action: str, at: dt.datetime, actor: str) -> None:
    columns = (
        "gpu_hours_max",
        "duration_seconds_max",
        "is_duration_exempt",
        "horizon_days_max",
    )
    audit.record(
        at=at,
        actor=actor,
        action=action,
        object_id=limit.organization_id or "everybody",
        organization=limit.organization,
        detail={name: getattr(limit, name) for name in columns},
    )


def _check_length(*, limits: Limits, window: Window) -> None:
    longest = limits.duration_seconds
    if longest is not None and window.seconds > longest:
        raise LimitExceeded(
            f"a reservation may last {hours_text(longest)} hours, not {hours_text(window.seconds)}",
            extra={
                "limit": "duration",
                "limit_seconds": longest,
                "left_seconds": longest,
            },
        )


def _check_horizon(*, limits: Limits, window: Window, at: dt.datetime) -> None:
    latest = at + dt.timedelta(days=limits.horizon_days)
    if window.ends_at > latest:
        raise LimitExceeded(
            f"a window must end within {limits.horizon_days} days",
            extra={"limit": "horizon", "latest_ends_at": format_instant(latest)},
        )


def _booked(*, organization: Organization, without: Reservation | None, at: dt.datetime) -> int:
    """Return the GPU-seconds that a tenant has booked and that are not over at `at`.

    What waits for the payment of a change counts as the longer of its two windows.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT coalesce(sum(r.gpus * floor(extract(epoch FROM greatest(
                r.ends_at - greatest(r.starts_at, %(at)s),
                q.ends_at - greatest(q.starts_at, %(at)s))))), 0)
              FROM scheduler_reservation r
              LEFT JOIN scheduler_extensionhold h ON h.reservation_id = r.id
                AND h.dropped_at IS NULL AND h.made_at IS NULL
              LEFT JOIN scheduler_changequote q ON q.id = h.quote_id
             WHERE r.organization_id = %(organization)s AND r.status = ANY(%(counted)s)
               AND r.ends_at > %(at)s AND r.id IS DISTINCT FROM %(without)s
            """,
            {
                "at": at,
                "organization": organization.pk,
                "counted": [status.value for status in COUNTED],
                "without": without.pk if without else None,
            },
        )
        (seconds,) = cursor.fetchone()
    return int(seconds)


def _ahead(*, gpus: int, window: Window, at: dt.datetime) -> int:
    left = window.ends_at - max(window.starts_at, at)
    return gpus * max(0, left // dt.timedelta(seconds=1))


def hours_text(seconds: int) -> str:
    """Return seconds as hours, with the minutes where there are some."""
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02}" if minutes else str(hours)
