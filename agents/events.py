"""What happened to GPUs, as their nodes tell it: each event once, checked one by one, kept for ever."""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence

from agents import evidence, outages, protocol
from agents.models import Gpu, GpuEvent, Grant, Node
from agents.protocol import Cause, EventKind
from agents.protocol.policy import XID_MAX
from agents.refusals import Refusals
from marketplace.core.windows import Window

EVENTS_SINCE_PROTOCOL = 2
EVENT_AGE_DAYS_MAX = (
    evidence.METER_AGE_DAYS_MAX
)  # both wait in one spool and could change one month
PID_MAX = 2**31 - 1  # pid_t of Linux
PROCESS_NAME_LENGTH_MAX = 100


def store(
    *, node: Node, events: Sequence[protocol.GpuEvent], refusals: Refusals, at: dt.datetime
) -> None:
    """Store the events that can be true, and let the outages follow; one that is stored changes nothing.

    The caller holds the node's row, so that events of one GPU are taken one report after another.
    """
    if not events:
        return
    gpus = {gpu.uuid: gpu for gpu in Gpu.objects.filter(node=node)}
    named = {event.lease_id for event in events if event.lease_id}
    grants = {
        (grant.lease_id, grant.lease_epoch): grant
        for grant in Grant.objects.filter(node=node, lease_id__in=named)
    }
    rows = []
    for event in events:
        if reason := _why_not(node=node, event=event, gpus=gpus, grants=grants, at=at):
            example = f"{event.kind} of {event.gpu_uuid} {event.epoch}.{event.sequence}"
            refusals.add(kind="event", reason=reason, example=example)
        else:
            rows.append(_row(node=node, event=event, gpu=gpus[event.gpu_uuid], at=at))
    GpuEvent.objects.bulk_create(rows, ignore_conflicts=True)
    changed: dict[str, dt.datetime] = {}
    for row in rows:
        if row.kind == EventKind.HEALTH:
            changed[row.gpu_id] = min(row.at, changed.get(row.gpu_id, row.at))
    for gpu_id, since in changed.items():
        outages.follow_events(gpu_id=gpu_id, since=since)


def xid_instants(*, gpu_uuids: Collection[str], window: Window) -> dict[str, list[dt.datetime]]:
    """Return when each of some GPUs had an Xid within a window, in the order of time.

    GPUs without any do not appear. Nodes tell the same error of a process once in five minutes.
    """
    found: dict[str, list[dt.datetime]] = {}
    rows = (
        GpuEvent.objects.filter(
            gpu__uuid__in=list(gpu_uuids),
            kind=EventKind.XID,
            at__gte=window.starts_at,
            at__lt=window.ends_at,
        )
        .order_by("at")
        .values_list("gpu__uuid", "at")
    )
    for gpu_uuid, at in rows:
        found.setdefault(gpu_uuid, []).append(at)
    return found


def _row(*, node: Node, event: protocol.GpuEvent, gpu: Gpu, at: dt.datetime) -> GpuEvent:
    # A fault is put down to a tenant only where there was one: by that word the owner keeps the rent.
    unproven = event.cause is Cause.TENANT and not event.lease_id
    return GpuEvent(
        node=node,
        enrolment=node.enrolments,
        epoch=event.epoch,
        sequence=event.sequence,
        gpu=gpu,
        at=event.at,
        kind=event.kind,
        source=event.source,
        cause=Cause.UNKNOWN if unproven else event.cause,
        xid=event.xid,
        pid=evidence.at_most(value=event.pid, maximum=PID_MAX),
        process_name=event.process_name[:PROCESS_NAME_LENGTH_MAX],
        health=event.health or "",
        reason=event.reason,
        lease_id=event.lease_id or "",
        lease_epoch=event.lease_epoch if event.lease_id else None,
        received_at=at,
    )


def _why_not(
    *,
    node: Node,
    event: protocol.GpuEvent,
    gpus: Mapping[str, Gpu],
    grants: Mapping[evidence.GrantKey, Grant],
    at: dt.datetime,
) -> str:
    """Return why an event cannot be taken, or nothing when it can."""
    age_days = (at - event.at).total_seconds() / 86_400
    grant = grants.get((event.lease_id or "", event.lease_epoch or 0))
    ahead = dt.timedelta(seconds=evidence.CLOCK_AHEAD_SECONDS_MAX)
    is_xid = event.kind is EventKind.XID
    reasons = {
        "gpu_not_of_node": event.gpu_uuid not in gpus,
        "simulated_differs": event.simulated != node.simulated,
        "in_the_future": evidence.is_ahead(instant=event.at, at=at),
        "too_old": age_days > EVENT_AGE_DAYS_MAX,
        "incomplete": event.xid is None if is_xid else event.health is None,
        "no_such_xid": is_xid and not 0 < (event.xid or 0) <= XID_MAX,
        "no_grant": bool(event.lease_id) and grant is None,
        "gpu_not_granted": grant is not None and event.gpu_uuid not in grant.gpu_uuids,
        "before_grant": grant is not None and event.at < grant.not_before - ahead,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")
