"""Leases that run and have no work: their tenant is told once a stretch, and how to give the rest back.

A GPU has work while a process holds its memory; whether a kernel runs says less, since a job may wait for its
data. What no meter measured is not idle: too little known, and nothing is told.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

from django.db import transaction

from agents import meter_sums
from agents.meter_sums import Attachment
from billing.bills import ratio
from billing.models import IdleStretch
from billing.promised import Promise
from marketplace import events
from marketplace.core.money import Money, share_of
from marketplace.core.windows import Window, format_instant, grid_ceiling
from marketplace.states import EventKind
from scheduler.models import Lease
from scheduler.states import LeaseStatus

LOOK_BACK_SECONDS = 2 * 3600  # shorter is a pause between two jobs
ATTACHED_SHARE_MIN = Fraction(1, 5)  # of GPU time: below, four of five GPUs could go
KNOWN_SHARE_MIN = Fraction(
    9, 10
)  # of GPU time with a measurement; late minutes must not be idle ones
LEFT_SECONDS_MIN = 3600  # what ends within the hour is not worth a message
LEASES_PER_READ = 200  # some 200,000 readings of a minute in one sum
SHARE_QUANTUM = Decimal("0.0001")


def watch(*, at: dt.datetime) -> int:
    """Tell of each running lease that has had no work for `LOOK_BACK_SECONDS`; return how many are news.

    A stretch ends when work is seen again. Safe to run twice, late or side by side.
    """
    window = Window(at - dt.timedelta(seconds=LOOK_BACK_SECONDS), at)
    found = 0
    for leases in _running(window=window):
        sums = meter_sums.attachment_by_lease(lease_ids=[each.pk for each in leases], window=window)
        for lease in leases:
            attachment = sums.get(lease.pk)
            if attachment is None or not _is_known(lease, attachment):
                continue
            if attachment.share < ATTACHED_SHARE_MIN:
                found += _tell(lease, attachment=attachment, at=at)
            else:
                IdleStretch.objects.filter(lease=lease, over_at=None).update(over_at=at)
    return found


def _running(*, window: Window) -> Iterator[Sequence[Lease]]:
    """Yield the leases that ran for the whole window and have time left, some at a time."""
    left = window.ends_at + dt.timedelta(seconds=LEFT_SECONDS_MIN)
    due = (
        Lease.objects.filter(
            status=LeaseStatus.ACTIVE, handed_over_at__lte=window.starts_at, ends_at__gte=left
        )
        .select_related("reservation__organization")
        .order_by("pk")
    )
    last = ""
    while leases := list(due.filter(pk__gt=last)[:LEASES_PER_READ]):
        yield leases
        last = leases[-1].pk


def _is_known(lease: Lease, attachment: Attachment) -> bool:
    whole = len(lease.gpu_uuids) * LOOK_BACK_SECONDS
    return attachment.known_seconds >= KNOWN_SHARE_MIN * whole


@transaction.atomic
def _tell(lease: Lease, *, attachment: Attachment, at: dt.datetime) -> bool:
    # Where a stretch is open the constraint lets no other one in.
    IdleStretch.objects.bulk_create([IdleStretch(lease=lease, told_at=at)], ignore_conflicts=True)
    stretch = IdleStretch.objects.filter(lease=lease, over_at=None, told_at=at).first()
    if stretch is None:
        return False
    reservation = lease.reservation
    rest = Window(grid_ceiling(at, grid_seconds=1), lease.ends_at)
    # The part of one lease among several goes by the number of its GPUs: a hint, no offer.
    left_minor = share_of(
        total_minor=Promise.of(reservation).part_minor(within=rest),
        part=len(lease.gpu_uuids),
        whole=reservation.gpus,
    )
    return events.record(
        organization=reservation.organization,
        kind=EventKind.LEASE_IDLE,
        object_id=lease.pk,
        data={
            "reservation_id": reservation.pk,
            "project": reservation.project,
            "gpus": len(lease.gpu_uuids),
            "idle_since": format_instant(at - dt.timedelta(seconds=LOOK_BACK_SECONDS)),
            "attached_share": ratio(
                attachment.attached_seconds, attachment.known_seconds, SHARE_QUANTUM
            ),
            "ends_at": format_instant(lease.ends_at),
            "left_gpu_seconds": len(lease.gpu_uuids) * rest.seconds,
            "left": _json(Money(left_minor, reservation.currency)),
            "return_with": f"POST /v1/reservations/{reservation.pk}/cancellation-quote",
        },
        at=at,
        key=f"{lease.pk}:idle:{stretch.pk}",
    )


def _json(money: Money) -> dict[str, object]:
    return {"amount_minor": money.amount_minor, "currency": money.currency}
