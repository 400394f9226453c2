"""Say who caused an Xid: by its class, by the time, and by the process that the kernel names.

| The owner's policy says | The GPU was let then | The process | Cause |
|---|---|---|---|
| quarantine, suspect | or not | any | hardware |
| tenant | yes | of that lease | tenant |
| tenant | yes | none is named | tenant |
| tenant | yes | is gone, so that nobody can look it up | tenant |
| tenant | yes | of another lease, or of the machine itself | unknown |
| tenant | no | any | unknown |
| watch | or not | any | unknown |

A GPU is let to one lease at a time, so an application error without a process is its tenant's. What runs on
an unlet GPU is the owner's, which is nobody's debt.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents.node.health import BlamedXid, rule_of
from agents.node.reader import Xid
from agents.node.spool import LeaseKey, LeaseRecord
from agents.protocol import Cause, HealthPolicy, LeaseState, XidRule

PROC = Path("/proc")
_HARDWARE_RULES = frozenset({XidRule.QUARANTINE, XidRule.SUSPECT})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOwner:
    """Whose a process is; `lease_id` is `None` for one of the machine itself."""

    lease_id: str | None


# Answers `None` when the process is gone.
OwnerOf = Callable[[int], ProcessOwner | None]


def attribute(
    *, xid: Xid, lease: LeaseKey | None, owner_of: OwnerOf, policy: HealthPolicy
) -> BlamedXid:
    """Return an Xid with its cause; `lease` had the GPU when it happened."""
    lease_id = None if lease is None else lease[0]
    rule = rule_of(xid=xid.xid, policy=policy)
    if rule in _HARDWARE_RULES:
        cause = Cause.HARDWARE
    elif rule is XidRule.TENANT and lease_id is not None:
        owner = None if xid.pid is None else owner_of(xid.pid)
        cause = Cause.TENANT if owner is None or owner.lease_id == lease_id else Cause.UNKNOWN
    else:
        cause = Cause.UNKNOWN
    return BlamedXid(xid=xid, cause=cause, lease_id=lease_id)


def lease_at(*, records: Iterable[LeaseRecord], gpu_uuid: str, at: dt.datetime) -> LeaseKey | None:
    """Return the lease that had a GPU at an instant: from its handover until nothing of it was left.

    While a lease is being stopped its processes still run, and may still do harm.
    """
    for record in records:
        if record.handed_over_at is None or gpu_uuid not in record.grant.gpu_uuids:
            continue
        over = record.state in (LeaseState.ENDED, LeaseState.FAILED)
        if record.handed_over_at <= at and (not over or at < record.changed_at):
            return record.key
    return None


def owner_by_cgroup(*, lease_ids_by_mark: Mapping[str, str], proc: Path = PROC) -> OwnerOf:
    """Return a look-up of a process's lease by its control group.

    The name of a container's group holds the id of the container; a mark is that id, or the lease's own.
    NVML and the kernel name processes as the host counts them, so `proc` is the host's.
    """

    def owner_of(pid: int) -> ProcessOwner | None:
        try:
            groups = (proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        found = (lease_id for mark, lease_id in lease_ids_by_mark.items() if mark in groups)
        return ProcessOwner(lease_id=next(found, None))

    return owner_of
