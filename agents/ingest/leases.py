"""How far a node's agent has come with its grants."""

import datetime as dt
from collections.abc import Mapping, Sequence

from agents import evidence, grants, protocol
from agents.models import Grant, Node
from agents.refusals import Refusals


def says_nothing_new(
    *, leases: Sequence[protocol.LeaseStatus], granted: Mapping[evidence.GrantKey, Grant]
) -> bool:
    """Say whether every word about a lease is known already."""
    for lease in leases:
        grant = granted.get((lease.lease_id, lease.lease_epoch))
        if grant is None or _known(grant) != (lease.state, lease.detail):
            return False
    return True


def grants_named(
    *, node: Node, report: protocol.Report, known: Mapping[evidence.GrantKey, Grant]
) -> Mapping[evidence.GrantKey, Grant]:
    """Return the node's own grants that a report speaks of, open or closed; `known` are open ones."""
    named = {(part.lease_id, part.lease_epoch) for part in report.meters}
    named |= {(part.lease_id, part.lease_epoch) for part in report.receipts}
    named |= {(part.lease_id, part.lease_epoch) for part in report.leases}
    if named <= known.keys():
        return known
    lease_ids = {lease_id for lease_id, _ in named}
    rows = Grant.objects.filter(node=node, lease_id__in=lease_ids)
    return {(row.lease_id, row.lease_epoch): row for row in rows}


def store_states(
    *,
    leases: Sequence[protocol.LeaseStatus],
    granted: Mapping[evidence.GrantKey, Grant],
    refusals: Refusals,
    at: dt.datetime,
) -> None:
    """Write how far the agent has come, where that changed. Ended and failed are its last words."""
    for lease in leases:
        example = f"{lease.lease_id}/{lease.lease_epoch} {lease.state}"
        grant = granted.get((lease.lease_id, lease.lease_epoch))
        if grant is None:
            refusals.add(kind="lease", reason="no_grant", example=example)
        elif _known(grant) == (lease.state, lease.detail):
            continue
        elif not _write(grant=grant, lease=lease, at=at):
            refusals.add(kind="lease", reason="already_final", example=example)


def _known(grant: Grant) -> tuple[str, str]:
    return (grant.reported_state, grant.reported_detail)


def _write(*, grant: Grant, lease: protocol.LeaseStatus, at: dt.datetime) -> bool:
    """Write one word unless the last one was spoken, maybe since the grant was read."""
    open_rows = Grant.objects.filter(pk=grant.pk).exclude(reported_state__in=grants.FINAL_STATES)
    words = {"reported_state": lease.state, "reported_detail": lease.detail, "reported_at": at}
    if not open_rows.update(**words):
        return False
    for name, value in words.items():
        setattr(grant, name, value)
    return True
