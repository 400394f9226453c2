"""Warnings before the end: half an hour, or what the tenant chose, told once for each end.

What is due follows from the end as it is now, so that an extension or a shortening needs no word to this
module: a later end is a new one, and is told again.
"""

import datetime as dt

from django.db import connection, transaction

from marketplace import events
from marketplace.core.windows import format_instant
from marketplace.states import EventKind
from scheduler.details import WARNING_SECONDS_MAX
from scheduler.models import EndWarning, Reservation
from scheduler.ticks import BATCH, BATCHES_MAX

# Only active reservations whose end is near are looked at: the index of what is due to end serves it.
_DUE = """
    SELECT r.id FROM scheduler_reservation r
    WHERE r.status = 'active' AND r.ends_at > %(at)s AND r.ends_at <= %(horizon)s
      AND EXISTS (
        SELECT FROM unnest(r.warn_before_seconds) AS notice (seconds)
        WHERE r.ends_at - notice.seconds * interval '1 second' <= %(at)s
          AND NOT EXISTS (
            SELECT FROM scheduler_endwarning w
            WHERE w.reservation_id = r.id AND w.notice_seconds = notice.seconds
              AND w.ends_at = r.ends_at))
    ORDER BY r.ends_at, r.id
    LIMIT %(batch)s
    FOR NO KEY UPDATE OF r SKIP LOCKED
"""


def warn_due(*, at: dt.datetime) -> int:
    """Warn the tenants whose reservations end soon; return how many were told.

    Notices that are due together, as after a start late in the window, are told in one event.
    """
    told = 0
    for _ in range(BATCHES_MAX):
        with transaction.atomic():
            rows = _claim(at=at)
            for row in rows:
                _warn(row, at=at)
        told += len(rows)
        if len(rows) < BATCH:
            break
    return told


def _claim(*, at: dt.datetime) -> list[Reservation]:
    horizon = at + dt.timedelta(seconds=WARNING_SECONDS_MAX)
    with connection.cursor() as cursor:
        cursor.execute(_DUE, {"at": at, "horizon": horizon, "batch": BATCH})
        ids = [pk for (pk,) in cursor.fetchall()]
    return list(Reservation.objects.filter(pk__in=ids).select_related("organization"))


def _warn(reservation: Reservation, *, at: dt.datetime) -> None:
    left = reservation.ends_at - at
    due = [s for s in reservation.warn_before_seconds if dt.timedelta(seconds=s) >= left]
    EndWarning.objects.bulk_create(
        [
            EndWarning(
                reservation=reservation,
                notice_seconds=seconds,
                ends_at=reservation.ends_at,
                told_at=at,
            )
            for seconds in due
        ],
        ignore_conflicts=True,
    )
    ends_at = format_instant(reservation.ends_at)
    events.record(
        organization=reservation.organization,
        kind=EventKind.RESERVATION_END_ANNOUNCED,
        object_id=reservation.pk,
        data={"ends_at": ends_at, "seconds_left": left // dt.timedelta(seconds=1)},
        at=at,
        key=f"{reservation.pk}:ends:{ends_at}:{min(due)}",
    )
