"""Take a node's reports: each once, in order, whole or not at all, and believe nothing that cannot be."""

import datetime as dt
from collections.abc import Mapping, Sequence

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Q

from agents import envelope, events, evidence, grants, inventory, outages, policies, protocol
from agents.enrolment import SimulatedHardwareRefused
from agents.inventory import NodeRevoked
from agents.models import Gpu, Grant, Node, Reading
from agents.refusals import Refusals
from agents.states import NodeStatus
from marketplace.core.errors import DomainError

log = structlog.get_logger(__name__)

# Readings are kept for a day: an older one would be pruned at once.
READING_AGE_SECONDS_MAX = 86_400
# A GPU's row is written when its state changes, and otherwise only this often: beats must stay cheap, and
# a row that is being written is passed over by a tenant's search for free GPUs.
MEASURED_AT_STEP_SECONDS = 30
UTILIZATION_PERCENT_MAX = 100
PROCESS_COUNT_MAX = 4_194_304  # the largest number of processes of a Linux kernel
MEMORY_BYTES_MAX = 2**50  # one pebibyte
_STATE_COLUMNS = ("health", "health_reason", "idle_state", "idle_since")


class ReportReplayed(DomainError):
    """The report is not newer than the last accepted one; `extra["reply"]` names that one."""

    code = "report_replayed"
    title = "The report was taken before"


def authenticate(*, signed: envelope.SignedRequest, at: dt.datetime) -> Node:
    """Return the node that signed a report.

    :raises BadSignature: when the headers cannot be read, the node is unknown or the signature is not its.
    :raises ClockSkew: when it was signed too far from `at`.
    :raises NodeRevoked: when the node was withdrawn.
    """
    claim = envelope.read_signature(signed=signed)
    node = Node.objects.filter(pk=claim.key_id).first()
    if node is None:
        raise envelope.BadSignature("keyid names no node")
    envelope.verify(signed=signed, claim=claim, public_key=node.public_key, at=at)
    if node.status == NodeStatus.REVOKED:
        raise NodeRevoked(f"node {node.pk} was revoked")
    return node


def accept(*, node: Node, report: protocol.Report, at: dt.datetime) -> protocol.ReportReply:
    """Store a report of an authenticated node and return what the node is to do.

    One short transaction: the pair (epoch, sequence) is compared and set first, so of two equal reports one
    is stored and the other is refused, whichever process each reaches. Parts that cannot be true are left
    out one by one, logged and counted; the rest is stored.

    :raises MalformedReport: when the report is of another node or protocol, or a text is too long.
    :raises SimulatedHardwareRefused: when simulated GPUs are not sold here, or the node changed its nature.
    :raises ReportReplayed: when a report at least as new was accepted; nothing of this one is stored.
    :raises NodeRevoked: when the node was withdrawn meanwhile.
    :raises BadSignature: when the node got another key meanwhile.
    """
    _check(node=node, report=report)
    refusals = Refusals(node_id=node.pk)
    with transaction.atomic():
        if not _claim(node=node, report=report, at=at):
            raise _why_not_claimed(node=node, report=report, at=at)
        if report.inventory is not None:
            inventory.apply(node=node, gpus=report.inventory, at=at)
        granted = _grants_named(node=node, report=report)
        evidence.store_receipts(
            node=node, receipts=report.receipts, grants=granted, refusals=refusals, at=at
        )
        evidence.store_meters(
            node=node, meters=report.meters, grants=granted, refusals=refusals, at=at
        )
        events.store(node=node, events=report.events, refusals=refusals, at=at)
        _store_states(leases=report.leases, granted=granted, refusals=refusals, at=at)
        reply = protocol.ReportReply(
            accepted=True,
            last_epoch=report.epoch,
            last_sequence=report.sequence,
            now=at,
            report_interval_seconds=settings.AGENT_REPORT_INTERVAL_SECONDS,
            want_inventory=_want_inventory(node=node, report=report),
            grants=grants.open_for(node=node),
            policy=policies.for_node(node=node, report=report),
            vouched_at=node.vouched_at,
        )
        _store_readings(node=node, readings=report.readings, refusals=refusals, at=at)
    refusals.publish()
    return reply


def _check(*, node: Node, report: protocol.Report) -> None:
    """Refuse what is not this node's report, or what the tables could not hold."""
    envelope.check_protocol(protocol_version=report.protocol)
    if report.node_id != node.pk:
        raise envelope.MalformedReport("names another node than keyid", pointer="/node_id")
    envelope.check_length(text=report.agent_version, length_max=40, pointer="/agent_version")
    envelope.check_length(text=report.boot_id, length_max=100, pointer="/boot_id")
    if report.inventory is not None:
        inventory.check_identities(gpus=report.inventory, pointer="/inventory")
    if report.simulated != node.simulated:
        raise SimulatedHardwareRefused(
            "a node does not change between real and simulated", pointer="/simulated"
        )
    if report.simulated and not settings.ALLOW_SIMULATED_HARDWARE:
        raise SimulatedHardwareRefused("only real GPUs are sold here", pointer="/simulated")


def _claim(*, node: Node, report: protocol.Report, at: dt.datetime) -> bool:
    """Set the node's last pair if the report's is higher; the row stays held until the end."""
    newer = Q(last_epoch__lt=report.epoch) | Q(
        last_epoch=report.epoch, last_sequence__lt=report.sequence
    )
    hung_since = report.reader_hung_since
    claimed = (
        Node.objects.filter(newer, pk=node.pk, public_key=node.public_key)
        .exclude(status=NodeStatus.REVOKED)
        .update(
            last_epoch=report.epoch,
            last_sequence=report.sequence,
            last_report_at=at,
            boot_id=report.boot_id,
            agent_version=report.agent_version,
            reader_hung_since=min(hung_since, at) if hung_since else None,
        )
    )
    return bool(claimed)


def _why_not_claimed(*, node: Node, report: protocol.Report, at: dt.datetime) -> DomainError:
    """Return the refusal of a report whose pair could not be set."""
    now = Node.objects.get(pk=node.pk)
    if now.status == NodeStatus.REVOKED:
        return NodeRevoked(f"node {node.pk} was revoked")
    if now.public_key != node.public_key:
        return envelope.BadSignature("the node has another key since a moment ago")
    # The grants stand here too: an agent that took the list for the truth must not stop its leases.
    reply = protocol.ReportReply(
        accepted=False,
        last_epoch=now.last_epoch,
        last_sequence=now.last_sequence,
        now=at,
        report_interval_seconds=settings.AGENT_REPORT_INTERVAL_SECONDS,
        grants=grants.open_for(node=now),
    )
    return ReportReplayed(
        f"the last accepted report is {now.last_epoch}.{now.last_sequence}",
        extra={"reply": protocol.to_json(reply, protocol=report.protocol)},
    )


def _grants_named(*, node: Node, report: protocol.Report) -> dict[evidence.GrantKey, Grant]:
    """Return the node's own grants that the report speaks of, open or closed."""
    lease_ids = (
        {part.lease_id for part in report.meters}
        | {part.lease_id for part in report.receipts}
        | {part.lease_id for part in report.leases}
    )
    if not lease_ids:
        return {}
    rows = Grant.objects.filter(node=node, lease_id__in=lease_ids)
    return {(row.lease_id, row.lease_epoch): row for row in rows}


def _store_states(
    *,
    leases: Sequence[protocol.LeaseStatus],
    granted: Mapping[evidence.GrantKey, Grant],
    refusals: Refusals,
    at: dt.datetime,
) -> None:
    """Write how far the agent has come, where that changed. Ended and failed are its last words."""
    changed = []
    for lease in leases:
        example = f"{lease.lease_id}/{lease.lease_epoch} {lease.state}"
        grant = granted.get((lease.lease_id, lease.lease_epoch))
        if grant is None:
            refusals.add(kind="lease", reason="no_grant", example=example)
        elif (grant.reported_state, grant.reported_detail) == (lease.state, lease.detail):
            continue
        elif grant.reported_state in grants.FINAL_STATES:
            refusals.add(kind="lease", reason="already_final", example=example)
        else:
            grant.reported_state = lease.state
            grant.reported_detail = lease.detail
            grant.reported_at = at
            changed.append(grant)
    Grant.objects.bulk_update(changed, ["reported_state", "reported_detail", "reported_at"])


def _want_inventory(*, node: Node, report: protocol.Report) -> bool:
    """Ask for the inventory when the machine booted anew or speaks of a GPU that is not in the last one."""
    if report.inventory is not None:
        return False
    present = set(Gpu.objects.filter(node=node, present=True).values_list("uuid", flat=True))
    rebooted = report.boot_id != node.boot_id
    return rebooted or any(reading.gpu_uuid not in present for reading in report.readings)


def _store_readings(
    *,
    node: Node,
    readings: Sequence[protocol.Reading],
    refusals: Refusals,
    at: dt.datetime,
) -> None:
    """Keep the samples, and let the newest of each GPU say how it is."""
    gpus = {gpu.uuid: gpu for gpu in Gpu.objects.filter(node=node)}
    rows, newest = [], dict[str, protocol.Reading]()
    for reading in readings:
        gpu = gpus.get(reading.gpu_uuid)
        age_seconds = (at - reading.measured_at).total_seconds()
        if gpu is None:
            refusals.add(kind="reading", reason="gpu_not_of_node", example=reading.gpu_uuid)
        elif evidence.is_ahead(instant=reading.measured_at, at=at):
            refusals.add(kind="reading", reason="in_the_future", example=reading.gpu_uuid)
        elif age_seconds > READING_AGE_SECONDS_MAX:
            refusals.add(kind="reading", reason="too_old", example=reading.gpu_uuid)
        else:
            rows.append(_sample(gpu=gpu, reading=reading))
            last = newest.get(reading.gpu_uuid)
            if last is None or last.measured_at <= reading.measured_at:
                newest[reading.gpu_uuid] = reading
    Reading.objects.bulk_create(rows, ignore_conflicts=True)
    changed = [
        gpus[uuid] for uuid, reading in newest.items() if _takes(gpu=gpus[uuid], reading=reading)
    ]
    inventory.write(gpus=changed, columns=[*_STATE_COLUMNS, "measured_at"])


def _takes(*, gpu: Gpu, reading: protocol.Reading) -> bool:
    """Let a GPU take the state of a reading in memory; say whether its row must be written."""
    if gpu.measured_at is not None and reading.measured_at < gpu.measured_at:
        return False
    outages.follow_reading(gpu=gpu, reading=reading)
    idle_since = reading.idle_since
    state = {
        "health": reading.health.value,
        "health_reason": reading.health_reason,
        "idle_state": reading.idle_state.value,
        "idle_since": min(idle_since, reading.measured_at) if idle_since else None,
    }
    changed = any(getattr(gpu, name) != state[name] for name in _STATE_COLUMNS)
    step = dt.timedelta(seconds=MEASURED_AT_STEP_SECONDS)
    due = gpu.measured_at is None or reading.measured_at - gpu.measured_at >= step
    if gpu.health != reading.health:
        log.info(
            "gpu_health_changed",
            node_id=gpu.node_id,
            gpu_uuid=gpu.uuid,
            health=reading.health.value,
            reason=reading.health_reason,
        )
    for name in _STATE_COLUMNS:
        setattr(gpu, name, state[name])
    gpu.measured_at = reading.measured_at
    return changed or due


def _sample(*, gpu: Gpu, reading: protocol.Reading) -> Reading:
    """Return a reading as a row; a value that cannot be true is unknown."""
    return Reading(
        gpu=gpu,
        measured_at=reading.measured_at,
        utilization_percent=evidence.at_most(
            value=reading.utilization_percent, maximum=UTILIZATION_PERCENT_MAX
        ),
        memory_used_bytes=evidence.at_most(
            value=reading.memory_used_bytes, maximum=MEMORY_BYTES_MAX
        ),
        power_draw_milliwatts=evidence.at_most(
            value=reading.power_draw_milliwatts, maximum=evidence.POWER_MILLIWATTS_MAX
        ),
        energy_millijoules=reading.energy_millijoules,
        temperature_celsius=evidence.at_most(
            value=reading.temperature_celsius, maximum=evidence.TEMPERATURE_CELSIUS_MAX
        ),
        process_count=evidence.at_most(value=reading.process_count, maximum=PROCESS_COUNT_MAX),
    )
