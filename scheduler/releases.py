"""GPUs of leases that are over: back on sale only when their node has given them back clean.

A lease may be final while its GPUs are not free: it was interrupted, or its node never said what became of
it. They are withdrawn from sale until the node speaks, however late, or its owner vouches for the machine.
"""

import datetime as dt

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from agents import alarms, grants, inventory, protocol
from agents.models import Grant, Receipt
from scheduler import ticks
from scheduler.models import Lease

OVERDUE_SECONDS = 600  # a machine that restarts meanwhile gets time to say so
SYSTEM = "scheduler"


def withdraw(*, lease: Lease, at: dt.datetime) -> None:
    """Ask the node for a closed lease's GPUs, and keep them off the market until it has given them back."""
    grants.stop(lease_id=lease.pk, lease_epoch=lease.epoch, at=at)
    inventory.quarantine(gpu_uuids=lease.gpu_uuids, reason=_withdrawal(lease), at=at)


def release_due(*, at: dt.datetime) -> int:
    """Look after the GPUs of closed leases that their nodes may still have in use; return the moves."""
    ended = Grant.objects.filter(
        lease_id=OuterRef("pk"),
        lease_epoch=OuterRef("epoch"),
        reported_state__in=grants.FINAL_STATES,
    )
    overdue_since = at - dt.timedelta(seconds=OVERDUE_SECONDS)
    waiting = Lease.objects.filter(closed_at__isnull=False, released_at__isnull=True)
    due = waiting.filter(
        Exists(_receipts(protocol.ReceiptKind.RETURN))
        | (Exists(ended) & ~Exists(_receipts(protocol.ReceiptKind.HANDOVER)))
        | Q(overdue_at__isnull=True, closed_at__lte=overdue_since)
        | Q(node__vouched_at__gt=F("overdue_at"))
    ).order_by("closed_at", "pk")
    return ticks.drain(due=due, advance=lambda row: release(lease=row, at=at), name="release")


@transaction.atomic
def release(*, lease: Lease, at: dt.datetime) -> None:
    """Put the GPUs of a closed lease back on sale once its node has given them back clean.

    Without a word of the node the lease is overdue, and people are told. It stays so until the node speaks,
    however late, or its owner vouches for the machine.
    """
    returned = grants.receipt(
        lease_id=lease.pk, lease_epoch=lease.epoch, kind=protocol.ReceiptKind.RETURN
    )
    was_handed_over = Receipt.objects.filter(
        lease_id=lease.pk, lease_epoch=lease.epoch, kind=protocol.ReceiptKind.HANDOVER
    ).exists()
    ended = Grant.objects.filter(
        lease_id=lease.pk, lease_epoch=lease.epoch, reported_state__in=grants.FINAL_STATES
    ).exists()
    is_vouched_for = (
        lease.overdue_at is not None
        and lease.node.vouched_at is not None
        and lease.node.vouched_at > lease.overdue_at
    )
    if returned is None and not (ended and not was_handed_over) and not is_vouched_for:
        note_overdue(lease=lease, at=at)
        return
    if returned is None or returned.is_clean:
        inventory.clear_quarantine(
            gpu_uuids=lease.gpu_uuids, at=at, actor=SYSTEM, because=_withdrawal(lease)
        )
    alarms.end_overdue(gpu_uuids=lease.gpu_uuids, at=at)
    grants.close(lease_id=lease.pk, lease_epoch=lease.epoch, at=at)
    lease.released_at = at
    lease.save(update_fields=["released_at"])


def note_overdue(*, lease: Lease, at: dt.datetime) -> None:
    """Tell people that a node does not give a closed lease's GPUs back."""
    lease.overdue_at = at
    lease.save(update_fields=["overdue_at"])
    alarms.note_overdue(node=lease.node, gpu_uuids=lease.gpu_uuids, lease_id=lease.pk, at=at)


def _withdrawal(lease: Lease) -> str:
    """Return the reason for which a lease's GPUs are withdrawn until they are back."""
    return f"{lease.pk}: not known to be back"


def _receipts(kind: protocol.ReceiptKind) -> QuerySet[Receipt]:
    return Receipt.objects.filter(lease_id=OuterRef("pk"), lease_epoch=OuterRef("epoch"), kind=kind)
