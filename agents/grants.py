"""The market's wishes to nodes, and the nodes' signed word about them. A lease is an opaque id here."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a node is to be asked: to serve a lease with these GPUs in a window."""

    node: Node
    lease_id: str
    lease_epoch: int
    gpu_uuids: Sequence[str]
    window: Window
    ssh_public_keys: Sequence[str]
    image: str


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
    """Ask a node to serve a lease with these GPUs in `window`; see `issue_all`.

    :raises InvalidValue: when a GPU is not the node's.
    :raises GrantConflict: when (lease, epoch) was granted differently.
    """
    wish = Wish(
        node=node,
        lease_id=lease_id,
        lease_epoch=lease_epoch,
        gpu_uuids=gpu_uuids,
        window=window,
        ssh_public_keys=ssh_public_keys,
        image=image,
    )
    (grant,) = issue_all(wishes=[wish], at=at)
    return grant


@transaction.atomic
def issue_all(*, wishes: Sequence[Wish], at: dt.datetime) -> list[Grant]:
    """Ask nodes to serve leases, all or none; they hear of it with their next reports. Four queries.

    The same call again returns the first grants. A higher epoch stops the lower ones of its lease.

    :raises InvalidValue: when a GPU is not its node's.
    :raises GrantConflict: when a (lease, epoch) was granted differently.
    """
    uuids = {uuid for wish in wishes for uuid in wish.gpu_uuids}
    node_of = dict(Gpu.objects.filter(uuid__in=uuids).values_list("uuid", "node_id"))
    for wish in wishes:
        if not wish.gpu_uuids or {node_of.get(uuid) for uuid in wish.gpu_uuids} != {wish.node.pk}:
            names = ", ".join(sorted(wish.gpu_uuids)) or "no GPU"
            raise InvalidValue(f"node {wish.node.pk} does not have all of {names}")
    rows = [_row(wish=wish, at=at) for wish in wishes]
    Grant.objects.bulk_create(rows, ignore_conflicts=True)
    stored: dict[tuple[str, int], Grant] = {}
    lower: list[int] = []
    epoch_of = {wish.lease_id: wish.lease_epoch for wish in wishes}
    for grant in Grant.objects.filter(lease_id__in=epoch_of):
        stored[grant.lease_id, grant.lease_epoch] = grant
        if grant.lease_epoch < epoch_of[grant.lease_id]:
            lower.append(grant.pk)
    for row in rows:
        if _content(stored[row.lease_id, row.lease_epoch]) != _content(row):
            raise GrantConflict(
                f"lease {row.lease_id} epoch {row.lease_epoch} was granted differently"
            )
    if lower:
        Grant.objects.filter(pk__in=lower).update(desired_state=protocol.DesiredState.STOP)
    return [stored[row.lease_id, row.lease_epoch] for row in rows]


def change_end(*, lease_id: str, lease_epoch: int, not_after: dt.datetime, at: dt.datetime) -> None:
    """Give a running grant another end; the node hears of it with its next report. Safe to call twice.

    :raises NotFound: when there is no such grant, or the node was asked for its GPUs already.
    """
    running = Grant.objects.filter(
        lease_id=lease_id,
        lease_epoch=lease_epoch,
        desired_state=protocol.DesiredState.RUN,
        closed_at__isnull=True,
    )
    if not running.update(not_after=not_after):
        raise NotFound(
            f"no running grant of lease {lease_id} epoch {lease_epoch} at {at.isoformat()}"
        )


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


def _row(*, wish: Wish, at: dt.datetime) -> Grant:
    return Grant(
        node=wish.node,
        lease_id=wish.lease_id,
        lease_epoch=wish.lease_epoch,
        gpu_uuids=sorted(set(wish.gpu_uuids)),
        not_before=wish.window.starts_at,
        not_after=wish.window.ends_at,
        desired_state=protocol.DesiredState.RUN,
        ssh_public_keys=list(wish.ssh_public_keys),
        image=wish.image,
        created_at=at,
    )


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
