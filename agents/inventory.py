"""Nodes and their GPUs: which devices there are, in which slot, and which of them may be sold."""

import datetime as dt
import json
from collections.abc import Iterable, Sequence
from operator import methodcaller

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, QuerySet

from agents import alarms, envelope, health, protocol
from agents.models import SLOTS_PER_NODE, Alarm, Gpu, Node, NodeTransition, Outage
from agents.states import NODE_ARROWS, NodeStatus
from marketplace import catalog
from marketplace.core.errors import DomainError, StateConflict

log = structlog.get_logger(__name__)

_IDENTITY_COLUMNS = (
    "product_name",
    "gpu_model_id",
    "memory_total_bytes",
    "serial",
    "pci_bus_id",
    "mig_enabled",
    "board_part_number",
    "vbios_version",
    "virtualization_mode",
    "mig_devices",
    "fabric_clique",
    "present",
)
# What a GPU need not tell; as the columns.
_IDENTITY_LENGTHS_MAX = {
    "serial": 100,
    "pci_bus_id": 40,
    "board_part_number": 100,
    "vbios_version": 40,
    "virtualization_mode": 20,
    "fabric_clique": 100,
}


# `virtualization_mode` of a host that cuts the GPU for guests: there is none to sell whole.
VGPU_HOST_MODES = ("host_vgpu", "host_vsga")


class NodeRevoked(DomainError):
    """The node was withdrawn for good: it may finish what it runs, but is not heard any more."""

    code = "node_revoked"
    title = "The node was revoked"


class NodeStateConflict(StateConflict):
    """The node's status does not allow this move, or somebody else was faster."""


def check_identities(*, gpus: Sequence[protocol.GpuIdentity], pointer: str) -> None:
    """Refuse an inventory that the tables could not hold, or that names one GPU twice.

    :raises MalformedReport: then.
    """
    for position, gpu in enumerate(gpus):
        place = f"{pointer}/{position}"
        envelope.check_length(text=gpu.uuid, length_max=100, pointer=f"{place}/uuid")
        envelope.check_length(
            text=gpu.product_name, length_max=100, pointer=f"{place}/product_name"
        )
        for name, length_max in _IDENTITY_LENGTHS_MAX.items():
            if text := getattr(gpu, name):
                envelope.check_length(text=text, length_max=length_max, pointer=f"{place}/{name}")
    if len({gpu.uuid for gpu in gpus}) != len(gpus):
        raise envelope.MalformedReport(f"{pointer}: names one GPU twice", pointer=pointer)


def next_slot_base() -> int:
    """Take the next block of 16 slots of the fleet calendar. A block is never given twice."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT nextval('agents_slot_block')")
        (block,) = cursor.fetchone()
    return int(block) * SLOTS_PER_NODE


@transaction.atomic
def apply(*, node: Node, gpus: Sequence[protocol.GpuIdentity], at: dt.datetime) -> list[str]:
    """Make the stored GPUs of a node those of its inventory; return the UUIDs that belong to other nodes.

    The caller holds the node's row. A GPU keeps the slot that it got first, for ever; one that is gone
    stays with `present` false. A GPU of another node is not taken over.
    """
    by_uuid = {gpu.uuid: gpu for gpu in Gpu.objects.filter(node=node)}
    new = sorted((g for g in gpus if g.uuid not in by_uuid), key=lambda g: g.uuid)
    foreign = _insert(node=node, gpus=new, slots_taken={g.slot for g in by_uuid.values()}, at=at)
    changed = []
    for identity in gpus:
        if (gpu := by_uuid.get(identity.uuid)) is not None:
            columns = _columns(identity)
            if any(getattr(gpu, name) != columns[name] for name in _IDENTITY_COLUMNS):
                for name in _IDENTITY_COLUMNS:
                    setattr(gpu, name, columns[name])
                changed.append(gpu)
    listed = {identity.uuid for identity in gpus}
    gone = [gpu for uuid, gpu in by_uuid.items() if gpu.present and uuid not in listed]
    for gpu in gone:
        gpu.present = False
        log.warning("gpu_is_gone", node_id=node.id, gpu_uuid=gpu.uuid)
    write(gpus=[*changed, *gone], columns=_IDENTITY_COLUMNS)
    return foreign


def write(*, gpus: Sequence[Gpu], columns: Sequence[str]) -> None:
    """Store some columns of a node's GPUs; the caller is in a transaction.

    The rows are locked in the order of `held_in_order`. They go to PostgreSQL as one document: `bulk_update`
    took half of the time in which a large fleet's reports were taken in.
    """
    if not gpus:
        return
    rows = [{name: getattr(gpu, name) for name in ("id", *columns)} for gpu in gpus]
    assignments = ", ".join(f"{name} = news.{name}" for name in columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH held AS (
                SELECT id FROM agents_gpu WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE
            )
            UPDATE agents_gpu SET {assignments}
            FROM held JOIN json_populate_recordset(NULL::agents_gpu, %s) AS news ON news.id = held.id
            WHERE agents_gpu.id = held.id
            """,  # noqa: S608 - names of columns, which callers write down
            [[gpu.pk for gpu in gpus], json.dumps(rows, default=methodcaller("isoformat"))],
        )


def _columns(identity: protocol.GpuIdentity) -> dict[str, object]:
    """Return what an identity says, as columns of `Gpu`."""
    model = catalog.gpu_model_for_product(product_name=identity.product_name)
    return {
        "product_name": identity.product_name,
        "gpu_model_id": model.pk if model else None,
        "memory_total_bytes": identity.memory_total_bytes,
        "serial": identity.serial or "",
        "pci_bus_id": identity.pci_bus_id or "",
        "mig_enabled": identity.mig_enabled,
        "board_part_number": identity.board_part_number or "",
        "vbios_version": identity.vbios_version or "",
        "virtualization_mode": identity.virtualization_mode or "",
        "mig_devices": protocol.to_json(identity.mig_devices),
        "fabric_clique": identity.fabric_clique or "",
        "present": True,
    }


def _insert(
    *, node: Node, gpus: Sequence[protocol.GpuIdentity], slots_taken: set[int], at: dt.datetime
) -> list[str]:
    """Give new GPUs the lowest free slots of the node's block; return the UUIDs that others hold.

    `gpus` are in the order of their UUIDs: two nodes that claim the same GPUs wait for each other in one
    order, and cannot block each other for ever.
    """
    block = range(node.slot_base, node.slot_base + SLOTS_PER_NODE)
    free = [slot for slot in block if slot not in slots_taken]
    claimed_elsewhere = set(
        Gpu.objects.filter(uuid__in=[g.uuid for g in gpus])
        .exclude(node=node)
        .values_list("uuid", flat=True)
    )
    wanted = [g for g in gpus if g.uuid not in claimed_elsewhere]
    for identity in wanted[len(free) :]:
        log.error(
            "gpu_has_no_slot",
            node_id=node.id,
            gpu_uuid=identity.uuid,
            detail=f"the node has had {SLOTS_PER_NODE} other GPUs: enrol the machine anew",
        )
    placed = dict(zip((g.uuid for g in sorted(wanted, key=lambda g: g.index)), free, strict=False))
    rows = [
        Gpu(node=node, uuid=g.uuid, slot=placed[g.uuid], first_seen_at=at, **_columns(g))
        for g in wanted
        if g.uuid in placed
    ]
    Gpu.objects.bulk_create(rows, ignore_conflicts=True)
    mine = Gpu.objects.filter(node=node, uuid__in=[row.uuid for row in rows])
    lost_to_a_rival = {row.uuid for row in rows} - set(mine.values_list("uuid", flat=True))
    return sorted(claimed_elsewhere | lost_to_a_rival)


def drain(*, node: Node, at: dt.datetime, actor: str) -> None:
    """Stop selling a node's GPUs; what it serves goes on. A draining machine may also enrol a new key.

    :raises NodeStateConflict: when the node is not active.
    """
    _move(node=node, to_status=NodeStatus.DRAINING, at=at, actor=actor)


@transaction.atomic
def resume(*, node: Node, at: dt.datetime, actor: str) -> None:
    """Sell a drained node's GPUs again. The owner vouches for them: the market's quarantine ends.

    With its next report the node hears of that and forgets the faults from before.

    :raises NodeStateConflict: when the node is not draining.
    """
    _move(node=node, to_status=NodeStatus.ACTIVE, at=at, actor=actor)
    Node.objects.filter(pk=node.pk).update(vouched_at=at)
    node.vouched_at = at
    uuids = list(Gpu.objects.filter(node=node).values_list("uuid", flat=True))
    clear_quarantine(gpu_uuids=uuids, at=at, actor=actor)
    alarms.end_overdue(gpu_uuids=uuids, at=at, actor=actor)


def revoke(*, node: Node, at: dt.datetime, actor: str) -> None:
    """Withdraw a node for good: its reports are refused from now on.

    :raises NodeStateConflict: when it was revoked before.
    """
    _move(node=node, to_status=NodeStatus.REVOKED, at=at, actor=actor)


@transaction.atomic
def _move(*, node: Node, to_status: NodeStatus, at: dt.datetime, actor: str) -> None:
    """Take one arrow: compare and set, and the winner writes the transition."""
    from_status = NodeStatus(node.status)
    won = NODE_ARROWS.allows(from_status, to_status) and (
        Node.objects.filter(pk=node.pk, status=from_status).update(status=to_status)
    )
    if not won:
        raise NodeStateConflict(f"node {node.pk} is {node.status} and cannot become {to_status}")
    node.status = to_status
    NodeTransition.objects.create(
        node=node, from_status=from_status, to_status=to_status, actor=actor, at=at
    )


@transaction.atomic
def quarantine(*, gpu_uuids: Iterable[str], reason: str, at: dt.datetime) -> int:
    """Withdraw GPUs from sale until their owner vouches for them; return how many were withdrawn now.

    The first reason stands: a later one does not replace what the owner must look at.
    """
    uuids = sorted(gpu_uuids)
    rows = Gpu.objects.filter(uuid__in=uuids, quarantined_by_market="").held_in_order()
    held = list(rows.values_list("pk", flat=True))
    count = Gpu.objects.filter(pk__in=held).update(quarantined_by_market=reason[:200])
    log.warning("gpus_quarantined", gpu_uuids=uuids, reason=reason, at=at.isoformat(), count=count)
    return count


@transaction.atomic
def clear_quarantine(
    *, gpu_uuids: Iterable[str], at: dt.datetime, actor: str, because: str = ""
) -> int:
    """Let GPUs be sold again that the market had withdrawn; return how many those were.

    `because` names the reason, or how it begins, that has gone; others stand. Empty: whatever the reason.
    """
    uuids = sorted(gpu_uuids)
    rows = (
        Gpu.objects.filter(uuid__in=uuids, quarantined_by_market__startswith=because)
        .exclude(quarantined_by_market="")
        .held_in_order()
    )
    held = list(rows.values_list("pk", flat=True))
    count = Gpu.objects.filter(pk__in=held).update(quarantined_by_market="")
    if count:
        log.info("quarantine_cleared", gpu_uuids=uuids, actor=actor, at=at.isoformat(), count=count)
    return count


def sellable_gpus(*, at: dt.datetime) -> QuerySet[Gpu]:
    """Return the GPUs that may be promised to a tenant at `at`.

    They are in the last inventory of an active node that reported lately and whose reader answers, are
    healthy and in no outage, not withdrawn by the market or by an alarm, of a known model and whole (not cut
    by MIG or for guests); simulated ones only where the settings allow them. Whether they are free is not
    asked here. `supply` gives the same answer in bulk.
    """
    alarmed = Alarm.objects.filter(
        node=OuterRef("node"), gpu_uuid__in=["", OuterRef("uuid")], settled_at__isnull=True
    )
    gpus = (
        Gpu.objects.filter(
            ~Exists(alarmed),
            ~Exists(Outage.objects.filter(gpu=OuterRef("pk"), ends_at__isnull=True)),
            present=True,
            health=protocol.Health.HEALTHY,
            quarantined_by_market="",
            gpu_model__isnull=False,
            node__status=NodeStatus.ACTIVE,
            node__reader_hung_since__isnull=True,
            node__last_report_at__gte=health.fresh_since(at=at),
        )
        .exclude(mig_enabled=True)
        .exclude(virtualization_mode__in=VGPU_HOST_MODES)
    )
    return gpus if settings.ALLOW_SIMULATED_HARDWARE else gpus.filter(node__simulated=False)
