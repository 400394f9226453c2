"""Time of which nobody tells: what follows the last word of a node that never gave a lease's GPUs back.

Silence is no evidence that a tenant had nothing, and none that it had anything. So a lease that was given up
is not settled while any of its time is untold. A receipt of the return tells, as do readings up to the end,
or outages of its GPUs that last until then, however late they come. Where nothing comes any more, one person
asks to count that time as delivered or as not, and another one decides; what comes later still corrects it.
Until then the money stays deferred. Operators learn of it by the alarm of the overdue return and see what
waits in the admin, with its reason and age; after `SILENT_SECONDS_MAX` the check of the books fails for it.
"""

import datetime as dt
import math
from dataclasses import dataclass

from django.db.models import Exists, Max, OuterRef, QuerySet

from agents import grants, outages
from agents.models import MeterReading, Receipt
from agents.protocol import ReceiptKind
from billing.models import Approval
from billing.states import RULINGS, ApprovalKind, ApprovalStatus
from marketplace.core.errors import StateConflict
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler.models import Lease, LeaseTransition
from scheduler.states import LeaseReason, LeaseStatus

# An agent's spool holds a week, and what waited in it takes a while to arrive; then only people can tell.
SILENT_SECONDS_MAX = 8 * 86_400
_TOLD = dt.timedelta(seconds=1)  # readings are of whole seconds, an end need not be


@dataclass(frozen=True, slots=True)
class Silence:
    """The time of which nobody tells: since the first GPU's last word, over all GPUs of the lease."""

    since: dt.datetime
    gpu_seconds: int


def of_lease(*, lease: Lease) -> Silence | None:
    """Return what nobody tells of a finished lease; None where its return is known, or all is told."""
    if not _was_given_up(lease):
        return None
    begun_at = lease.handed_over_at
    if begun_at is None or begun_at >= lease.ends_at or _has_receipt(lease):
        return None
    told = outages.within(gpu_uuids=lease.gpu_uuids, window=Window(begun_at, lease.ends_at))
    read_until = _read_until(lease)
    since: dt.datetime | None = None
    gpu_seconds = 0
    for gpu_uuid in lease.gpu_uuids:
        last = max(read_until.get(gpu_uuid, begun_at), begun_at)
        if last >= lease.ends_at:
            continue
        rest = Window(last, lease.ends_at)
        parts = (rest.intersection(each.window) for each in told if each.gpu_uuid == gpu_uuid)
        untold = rest.duration - sum(
            (part.duration for part in parts if part is not None), dt.timedelta()
        )
        if untold >= _TOLD:
            gpu_seconds += math.ceil(untold / _TOLD)
            since = last if since is None else min(since, last)
    return None if since is None else Silence(since, gpu_seconds)


def is_waiting(*, lease: Lease) -> bool:
    """Say whether a finished lease waits for somebody to tell what nobody tells of it."""
    return of_lease(lease=lease) is not None and ruling_on(lease_id=lease.pk) is None


def ruling_on(*, lease_id: str) -> Approval | None:
    """Return what two people decided of a lease's untold time; None while they did not."""
    decided = Approval.objects.filter(
        kind__in=RULINGS, subject_id=lease_id, status=ApprovalStatus.APPROVED
    )
    return decided.first()


def counts_until(*, lease: Lease) -> dt.datetime | None:
    """Return until when a lease without a receipt of return counts, None where only its meters say.

    That is its end where all is told or was ruled to be delivered, and else the last word of its node.
    """
    if lease.returned_at is None or not _was_given_up(lease):
        return lease.returned_at
    ruling = ruling_on(lease_id=lease.pk)
    is_delivered = ruling is not None and ruling.kind == ApprovalKind.SILENCE_DELIVERED
    if is_delivered or of_lease(lease=lease) is None:
        return lease.ends_at
    last = max([lease.returned_at, *_read_until(lease).values()])
    return min(last, lease.ends_at)


def candidates() -> QuerySet[Lease]:
    """Return the leases that were given up and are not settled, the oldest first; `of_lease` looks closer."""
    given_up = LeaseTransition.objects.filter(
        lease=OuterRef("pk"), reason=LeaseReason.RETURN_UNCONFIRMED
    )
    receipts = Receipt.objects.filter(
        lease_id=OuterRef("pk"), lease_epoch=OuterRef("epoch"), kind=ReceiptKind.RETURN
    )
    return Lease.objects.filter(
        Exists(given_up),
        ~Exists(receipts),
        status=LeaseStatus.ENDED,
        settlement__isnull=True,
    ).order_by("closed_at", "pk")


def require_open(
    *, lease_id: str, organization: Organization | None, but: Approval | None = None
) -> None:
    """Refuse to ask for, or to make, a ruling on a lease of which everything is told or decided.

    `but` is the ruling that is being made. The lease stays locked, so that no two are made of it.

    :raises StateConflict: then, and when it is not a lease of that tenant.
    """
    lease = (
        Lease.objects.select_for_update(no_key=True, of=("self",))
        .filter(pk=lease_id, reservation__organization=organization, settlement__isnull=True)
        .first()
    )
    if lease is None or of_lease(lease=lease) is None:
        raise StateConflict(f"{lease_id} is no lease of theirs that waits for anybody to tell")
    others = Approval.objects.filter(
        kind__in=RULINGS, subject_id=lease_id, status=ApprovalStatus.APPROVED
    )
    if others.exclude(pk=but.pk if but else "").exists():
        raise StateConflict(f"{lease_id} was ruled on before")


def _was_given_up(lease: Lease) -> bool:
    """Say whether a lease was ended without a word of its node."""
    if lease.status != LeaseStatus.ENDED:
        return False
    return lease.transitions.filter(reason=LeaseReason.RETURN_UNCONFIRMED).exists()


def _has_receipt(lease: Lease) -> bool:
    known = grants.receipt(lease_id=lease.pk, lease_epoch=lease.epoch, kind=ReceiptKind.RETURN)
    return known is not None


def _read_until(lease: Lease) -> dict[str, dt.datetime]:
    """Return the end of the last reading of each GPU that has any."""
    rows = MeterReading.objects.filter(lease_id=lease.pk, lease_epoch=lease.epoch)
    return dict(rows.values_list("gpu_uuid").annotate(until=Max("ends_at")).order_by())
