"""One report of a node: who sent it, whether it is new, and what is answered."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from agents import (
    alarms,
    beats,
    envelope,
    evidence,
    grants,
    idleness,
    inventory,
    pacing,
    protocol,
    rotation,
)
from agents.enrolment import SimulatedHardwareRefused
from agents.ingest import leases, readings
from agents.ingest.standing import Standing, standing_of
from agents.inventory import NodeRevoked
from agents.models import Grant, Node, Policy
from agents.refusals import Refusals
from agents.states import NodeStatus
from marketplace.core.errors import DomainError

# Written out: a large fleet claims 300 times a second, and putting it together took longer than doing it.
_CLAIM = """
UPDATE agents_node SET last_epoch = %s, last_sequence = %s, last_report_at = %s
WHERE id = %s AND public_key = %s AND status <> 'revoked' AND (last_epoch, last_sequence) < (%s, %s)
"""
POLICY_VERSION_MAX = 2**31 - 1  # of the column: a report may name any number


class ReportReplayed(DomainError):
    """The report is not newer than the last accepted one; `extra["reply"]` names that one."""

    code = "report_replayed"
    title = "The report was taken before"


def authenticate(*, signed: envelope.SignedRequest, at: dt.datetime) -> Standing:
    """Return what is known of the node that signed a report.

    :raises BadSignature: when the headers cannot be read, the node is unknown or the signature is not its.
    :raises ClockSkew: when it was signed too far from `at`.
    :raises NodeRevoked: when the node was withdrawn.
    """
    claim = envelope.read_signature(signed=signed)
    standing = standing_of(node_id=claim.key_id)
    if standing is None:
        raise envelope.BadSignature("keyid names no node")
    node = standing.node
    envelope.verify(signed=signed, claim=claim, public_key=node.public_key, at=at)
    if node.status == NodeStatus.REVOKED:
        raise NodeRevoked(f"node {node.pk} was revoked")
    return standing


def accept(
    *,
    node: Node,
    report: protocol.Report,
    at: dt.datetime,
    standing: Standing | None = None,
) -> protocol.ReportReply:
    """Take a report of an authenticated node and return what the node is to do.

    A report that says nothing new is a beat: it costs no write of its own. Everything else is stored in one
    short transaction: the pair (epoch, sequence) is compared and set first, so of two equal reports one is
    stored and the other is refused, whichever process each reaches. Parts that cannot be true are left out
    one by one, logged and counted; the rest is stored. `standing` is read when it is not given.

    :raises MalformedReport: when the report is of another node or protocol, or a text is too long.
    :raises SimulatedHardwareRefused: when simulated GPUs are not sold here, or the node changed its nature.
    :raises ReportReplayed: when a report at least as new was accepted; nothing of this one is stored.
    :raises NodeRevoked: when the node was withdrawn meanwhile.
    :raises BadSignature: when the node got another key meanwhile.
    """
    _check(node=node, report=report)
    report = idleness.as_of_today(report=report)
    if standing is None:
        known = standing_of(node_id=node.pk)
        assert known is not None  # rows of nodes are never deleted
        standing = replace(known, node=node)
    if _is_beat(standing=standing, report=report, at=at):
        beats.book.note(
            beat=beats.Beat(
                node_id=node.pk,
                enrolment=node.enrolments,
                epoch=report.epoch,
                sequence=report.sequence,
                at=at,
            )
        )
        open_grants = grants.as_messages(rows=standing.grants.values())
        return _reply(standing=standing, report=report, open_grants=open_grants, at=at)
    refusals = Refusals(node_id=node.pk)
    with transaction.atomic():
        claimed = _claim(node=node, report=report, at=at)
        if claimed:
            reply = _store(standing=standing, report=report, refusals=refusals, at=at)
    if not claimed:
        raise _why_not_claimed(node=node, report=report, at=at)
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


def _is_beat(*, standing: Standing, report: protocol.Report, at: dt.datetime) -> bool:
    """Say whether a report is newer than the last one and says nothing that is not known."""
    node = standing.node
    facts = (report.inventory, report.host, report.meters, report.receipts, report.events)
    return (
        (report.epoch, report.sequence) > (node.last_epoch, node.last_sequence)
        and node.status != NodeStatus.REVOKED
        and all(part in (None, []) for part in facts)
        and all(getattr(node, name) == value for name, value in _columns(report, at=at).items())
        and leases.says_nothing_new(leases=report.leases, granted=standing.grants)
        and readings.says_nothing_new(
            readings=report.readings, counters=report.counters, gpus=standing.gpus, at=at
        )
    )


def _columns(report: protocol.Report, *, at: dt.datetime) -> dict[str, Any]:
    """Return what a report says of the node itself."""
    hung_since = report.reader_hung_since
    return {
        "boot_id": report.boot_id,
        "agent_version": report.agent_version,
        "protocol_version": report.protocol,
        "policy_version": min(report.policy_version, POLICY_VERSION_MAX),
        "warnings": report.warnings,
        "reader_hung_since": min(hung_since, at) if hung_since else None,
    }


def _claim(*, node: Node, report: protocol.Report, at: dt.datetime) -> bool:
    """Set the node's last pair if the report's is higher; the row stays held until the end."""
    with connection.cursor() as cursor:
        cursor.execute(
            _CLAIM,
            [
                report.epoch,
                report.sequence,
                at,
                node.pk,
                node.public_key,
                report.epoch,
                report.sequence,
            ],
        )
        if not cursor.rowcount:
            return False
    columns = {
        name: value
        for name, value in _columns(report, at=at).items()
        if getattr(node, name) != value
    }
    if report.host is not None:
        columns["host"] = protocol.to_json(report.host)
    if columns:
        Node.objects.filter(pk=node.pk).update(**columns)
    return True


def _store(
    *, standing: Standing, report: protocol.Report, refusals: Refusals, at: dt.datetime
) -> protocol.ReportReply:
    """Store all that a report says, after its pair was set; return the answer."""
    node = standing.node
    alarms.note_boot(node=node, boot_id=report.boot_id, at=at)
    if report.inventory is not None:
        foreign = inventory.apply(node=node, gpus=report.inventory, at=at)
        alarms.note_claims(
            node=node, foreign=foreign, listed=[gpu.uuid for gpu in report.inventory], at=at
        )
    granted = leases.grants_named(node=node, report=report, known=standing.grants)
    _store_evidence(node=node, report=report, granted=granted, refusals=refusals, at=at)
    leases.store_states(leases=report.leases, granted=granted, refusals=refusals, at=at)
    is_known = readings.says_nothing_new(
        readings=report.readings, counters=report.counters, gpus=standing.gpus, at=at
    )
    if not is_known:
        readings.store(
            node=node,
            readings=report.readings,
            counters=report.counters,
            leased=idleness.leased_uuids(grants=standing.grants.values(), at=at),
            refusals=refusals,
            at=at,
        )
    open_grants = grants.as_messages(rows=standing.grants.values())
    return _reply(standing=standing, report=report, open_grants=open_grants, at=at)


def _store_evidence(
    *,
    node: Node,
    report: protocol.Report,
    granted: Mapping[evidence.GrantKey, Grant],
    refusals: Refusals,
    at: dt.datetime,
) -> None:
    """Store what settlement rests on."""
    evidence.store_receipts(
        node=node, receipts=report.receipts, grants=granted, refusals=refusals, at=at
    )
    evidence.store_meters(node=node, meters=report.meters, grants=granted, refusals=refusals, at=at)


def _reply(
    *,
    standing: Standing,
    report: protocol.Report,
    open_grants: list[protocol.Grant],
    at: dt.datetime,
) -> protocol.ReportReply:
    """Return the answer to a report that was taken."""
    node = standing.node
    return protocol.ReportReply(
        accepted=True,
        last_epoch=report.epoch,
        last_sequence=report.sequence,
        now=at,
        report_interval_seconds=_interval_seconds(standing=standing, at=at),
        want_inventory=_want_inventory(standing=standing, report=report),
        grants=open_grants,
        policy=_policy(standing=standing, report=report),
        vouched_at=node.vouched_at,
        rotate_key=rotation.is_due(node=node, at=at),
    )


def _interval_seconds(*, standing: Standing, at: dt.datetime) -> int:
    ahead = at + dt.timedelta(seconds=pacing.FAST_LANE_AHEAD_SECONDS)
    return pacing.granted_interval_seconds(
        node_id=standing.node.pk, at=at, is_starting=standing.is_starting(before=ahead)
    )


def _want_inventory(*, standing: Standing, report: protocol.Report) -> bool:
    """Ask for the inventory when the machine booted anew or speaks of a GPU that is not in the last one."""
    if report.inventory is not None:
        return False
    present = {gpu.uuid for gpu in standing.gpus.values() if gpu.present}
    rebooted = report.boot_id != standing.node.boot_id
    return rebooted or any(reading.gpu_uuid not in present for reading in report.readings)


def _policy(*, standing: Standing, report: protocol.Report) -> protocol.NodePolicy | None:
    """Return the owner's policy when the node follows another version."""
    if standing.policy_version == report.policy_version or report.protocol < 2:
        return None
    policy = Policy.objects.filter(
        organization=standing.node.organization_id, version=standing.policy_version
    ).first()
    document = {} if policy is None else policy.document
    return protocol.from_json(protocol.NodePolicy, {**document, "version": standing.policy_version})


def _why_not_claimed(*, node: Node, report: protocol.Report, at: dt.datetime) -> DomainError:
    """Return the refusal of a report whose pair could not be set."""
    standing = standing_of(node_id=node.pk)
    assert standing is not None  # rows of nodes are never deleted
    now = standing.node
    if now.status == NodeStatus.REVOKED:
        return NodeRevoked(f"node {node.pk} was revoked")
    if now.public_key != node.public_key:
        return envelope.BadSignature("the node has another key since a moment ago")
    if report.epoch < now.last_epoch:
        alarms.note_stale_epoch(node=now, epoch=report.epoch, at=at)
    # The grants stand here too: an agent that took the list for the truth must not stop its leases.
    reply = protocol.ReportReply(
        accepted=False,
        last_epoch=now.last_epoch,
        last_sequence=now.last_sequence,
        now=at,
        report_interval_seconds=_interval_seconds(standing=standing, at=at),
        grants=grants.as_messages(rows=standing.grants.values()),
    )
    return ReportReplayed(
        f"the last accepted report is {now.last_epoch}.{now.last_sequence}",
        extra={"reply": protocol.to_json(reply, protocol=report.protocol)},
    )
