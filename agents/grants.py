"""The market's wishes to nodes, and the nodes' signed word about them. A lease is an opaque id here."""

import datetime as dt
from collections.abc import Iterable, Sequence

from django.db import transaction

from agents import protocol
from agents.models import Gpu, Grant, Node, Receipt
from marketplace.core.errors import InvalidValue, NotFound, StateConflict
from marketplace.core.windows import Window

# A node serves at most one lease per GPU and hands another back meanwhile: twice its GPUs, and room.
GRANTS_PER_REPLY_MAX = 64
ReceiptKey = tuple[str, int, protocol.ReceiptKind]
FINAL_STATES = frozenset({protocol.LeaseState.ENDED, protocol.LeaseState.FAILED})


class GrantConflict(StateConflict):
    """The lease was granted with this epoch before, but to other GPUs or for another window."""


@transaction.atomic
def issue(
    *,
    node: Node,
    lease_id: str,
    lease_epoch: int,
    gpu_uuids: Sequence[str],
    window: Window,
    ssh_public_keys: Sequence[str],
    image: str,
    at: dt.datetime,
) -> Grant:
    """Ask a node to serve a lease with these GPUs in `window`; it hears of it with its next report.

    The same call again returns the first grant. A higher epoch stops the lower ones of the lease.

    :raises InvalidValue: when a GPU is not the node's.
    :raises GrantConflict: when (lease, epoch) was granted differently.
    """
    wanted = sorted(set(gpu_uuids))
    known = Gpu.objects.filter(node=node, uuid__in=wanted).count()
    if not wanted or known != len(wanted):
        raise InvalidValue(f"node {node.pk} does not have all of {', '.join(wanted) or 'no GPU'}")
    wish = Grant(
        node=node,
        lease_id=lease_id,
        lease_epoch=lease_epoch,
        gpu_uuids=wanted,
        not_before=window.starts_at,
        not_after=window.ends_at,
        desired_state=protocol.DesiredState.RUN,
        ssh_public_keys=list(ssh_public_keys),
        image=image,
        created_at=at,
    )
    Grant.objects.bulk_create([wish], ignore_conflicts=True)
    grant = Grant.objects.get(lease_id=lease_id, lease_epoch=lease_epoch)
    if _content(grant) != _content(wish):
        raise GrantConflict(f"lease {lease_id} epoch {lease_epoch} was granted differently")
    Grant.objects.filter(lease_id=lease_id, lease_epoch__lt=lease_epoch).update(
        desired_state=protocol.DesiredState.STOP
    )
    return grant


def stop(*, lease_id: str, lease_epoch: int, at: dt.datetime) -> None:
    """Ask the node to take the GPUs back from the tenant. Safe to call twice.

    :raises NotFound: when there is no such grant.
    """
    grants = Grant.objects.filter(lease_id=lease_id, lease_epoch=lease_epoch)
    if not grants.update(desired_state=protocol.DesiredState.STOP):
        raise NotFound(f"no grant of lease {lease_id} epoch {lease_epoch} at {at.isoformat()}")


def close(*, lease_id: str, lease_epoch: int, at: dt.datetime) -> None:
    """Cease to send a grant: the lease is final. Its late readings and receipts are still taken.

    Safe to call twice; the first instant stands.

    :raises NotFound: when there is no such grant.
    """
    grants = Grant.objects.filter(lease_id=lease_id, lease_epoch=lease_epoch)
    closed = grants.filter(closed_at__isnull=True).update(
        closed_at=at, desired_state=protocol.DesiredState.STOP
    )
    if not closed and not grants.exists():
        raise NotFound(f"no grant of lease {lease_id} epoch {lease_epoch}")


def receipt(*, lease_id: str, lease_epoch: int, kind: protocol.ReceiptKind) -> Receipt | None:
    """Return the node's receipt of one kind, or None while there is none.

    Its instant is the node's clock: not after the server's by more than five minutes, but neither within
    the lease's window nor after the other receipt of the lease for certain.
    """
    return Receipt.objects.filter(lease_id=lease_id, lease_epoch=lease_epoch, kind=kind).first()


def receipts_for(*, lease_ids: Iterable[str]) -> dict[ReceiptKey, Receipt]:
    """Return all receipts of some leases by (lease, epoch, kind)."""
    rows = Receipt.objects.filter(lease_id__in=list(lease_ids))
    return {(r.lease_id, r.lease_epoch, protocol.ReceiptKind(r.kind)): r for r in rows}


def failed(*, lease_ids: Iterable[str]) -> dict[str, str]:
    """Return the leases whose node said that it cannot serve them, with its words.

    Only the highest epoch of a lease counts: a failure on a replaced node is history.
    """
    latest: dict[str, Grant] = {}
    rows = Grant.objects.filter(lease_id__in=list(lease_ids)).order_by("lease_id", "lease_epoch")
    for grant in rows:
        latest[grant.lease_id] = grant
    return {
        lease_id: grant.reported_detail
        for lease_id, grant in latest.items()
        if grant.reported_state == protocol.LeaseState.FAILED
    }


def as_messages(*, rows: Iterable[Grant]) -> list[protocol.Grant]:
    """Return grants as they go over the wire."""
    return [
        protocol.Grant(
            lease_id=row.lease_id,
            lease_epoch=row.lease_epoch,
            gpu_uuids=row.gpu_uuids,
            not_before=row.not_before,
            not_after=row.not_after,
            desired_state=protocol.DesiredState(row.desired_state),
            ssh_public_keys=row.ssh_public_keys,
            image=row.image,
        )
        for row in rows
    ]


def _content(grant: Grant) -> tuple[object, ...]:
    """Return what must be equal for two wishes to be the same."""
    return (
        grant.node_id,
        sorted(grant.gpu_uuids),
        grant.not_before,
        grant.not_after,
        list(grant.ssh_public_keys),
        grant.image,
    )
