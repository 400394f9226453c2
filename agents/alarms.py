"""What a person must settle: one GPU at two nodes, or one key in two machines. Meanwhile it is not sold.

**A GPU claimed twice.** A node whose inventory names a GPU that is enrolled at another node gets an alarm,
and so does the other one, as long as both are alive: nobody can tell from here who has the device. The
claimant has no row for it and cannot sell it anyhow. The alarm ends by itself when the claimant no longer
names the GPU, or has been silent for ten minutes: a rival takes a GPU off the market for no longer than it
keeps lying, and then staff's word stands against it and all nodes of its owner.

**A cloned node.** Two machines with one key show in one of two ways. They take turns with different boot ids,
and a machine never returns to a boot id that it has left. Or, copied with their memory, they race for the
higher epoch: each refused one raises its own. A restart or a reboot does neither.

**An overdue return.** A node did not give the GPUs of a lease back in time: nobody knows who is on them. The
alarm ends with the node's word that they are back, or with that of its owner.
"""

import datetime as dt
from collections.abc import Collection, Iterable

import structlog
from django.db import transaction
from django.db.models import QuerySet
from prometheus_client import Counter

from agents import health
from agents.models import Alarm, Gpu, Grant, Node
from agents.states import AlarmKind, NodeStatus
from marketplace.core.errors import InvalidValue, StateConflict

log = structlog.get_logger(__name__)

# Longer than a reboot of a server with its memory test; shorter than anybody's patience with a rival.
CLAIM_SECONDS = 600
# An agent that lost its disk meets one refusal, and raises its epoch for good. Three different epochs that
# came too late within ten minutes are another agent at work.
STALE_EPOCHS_MAX = 3
STALE_WINDOW_SECONDS = 600
REVIEWED_MAX = 500  # a run ends within seconds; what is left waits for the next one
MARKET = "market"

IGNORED_CLAIMS = Counter(
    "headroom_agent_ignored_claims",
    "GPUs in inventories that staff found to be another node's",
)


class AlarmConflict(StateConflict):
    """The alarm was settled before, or cannot be settled like that now."""


def open_alarms() -> QuerySet[Alarm]:
    """Return the alarms that nobody has settled, the oldest first."""
    return Alarm.objects.filter(settled_at__isnull=True).order_by("raised_at", "pk")


def note_claims(
    *, node: Node, foreign: Collection[str], listed: Collection[str], at: dt.datetime
) -> None:
    """Raise an alarm for each GPU of an inventory that is another node's; end those that are not claimed now.

    The caller is in the transaction that took the inventory and holds the node's row.
    """
    for claim in open_alarms().filter(node=node, kind=AlarmKind.GPU_CLAIMED_TWICE):
        if claim.gpu_uuid not in listed and not _is_enrolled_at(node=node, gpu_uuid=claim.gpu_uuid):
            _end_claim(claim=claim, at=at)
    for gpu in Gpu.objects.filter(uuid__in=foreign).exclude(node=node).select_related("node"):
        if _is_ruled_out(gpu=gpu, claimant=node):
            IGNORED_CLAIMS.inc()
            log.warning("claim_ignored", gpu_uuid=gpu.uuid, node_id=gpu.node_id, claimed_by=node.pk)
            continue
        detail = f"GPU {gpu.uuid} is enrolled at another node: staff must find out who has it"
        _raise(node=node, kind=AlarmKind.GPU_CLAIMED_TWICE, uuid=gpu.uuid, detail=detail, at=at)
        if _is_alive(node=gpu.node, at=at):
            _raise_at_owner(gpu=gpu, at=at)


def note_boot(*, node: Node, boot_id: str, at: dt.datetime) -> None:
    """Remember a new boot, and raise an alarm when it is the one before the last.

    The caller holds the node's row; `node` is as it was before the report.
    """
    if not node.boot_id or boot_id == node.boot_id:
        return
    if boot_id == node.previous_boot_id:
        detail = "two machines report with this node's key: they take turns with two boot ids"
        _raise(node=node, kind=AlarmKind.NODE_CLONED, uuid="", detail=detail, at=at)
    Node.objects.filter(pk=node.pk).update(previous_boot_id=node.boot_id)


@transaction.atomic
def note_stale_epoch(*, node: Node, epoch: int, at: dt.datetime) -> None:
    """Count a report whose epoch is lower than the last accepted one; raise an alarm at the third.

    An epoch counts once, in rising order: a recorded report that is sent again is no second agent.
    """
    now = Node.objects.select_for_update(no_key=True).get(pk=node.pk)
    is_recent = now.stale_since is not None and (
        at - now.stale_since <= dt.timedelta(seconds=STALE_WINDOW_SECONDS)
    )
    if is_recent and epoch <= now.stale_epoch:
        return
    count = now.stale_epochs + 1 if is_recent else 1
    since = now.stale_since if is_recent else at
    Node.objects.filter(pk=now.pk).update(stale_epoch=epoch, stale_epochs=count, stale_since=since)
    if count >= STALE_EPOCHS_MAX:
        detail = "two agents report with this node's key: each raises its epoch above the other's"
        _raise(node=now, kind=AlarmKind.NODE_CLONED, uuid="", detail=detail, at=at)


@transaction.atomic
def settle(*, alarm: Alarm, rightful_node: Node, at: dt.datetime, actor: str) -> None:
    """End an alarm by a person's word.

    Of a GPU claimed twice, `rightful_node` has it: later claims by the others' owners are ignored. If that is
    not the node at which it is enrolled, the GPU leaves that node and is enrolled anew at the rightful one
    with its next inventory. An alarm of a whole node, or of a return, is settled in its own favour.

    :raises AlarmConflict: when it was settled before, or the GPU serves a grant where it is enrolled now.
    :raises InvalidValue: when `rightful_node` is none of those that claim the GPU.
    """
    if alarm.kind != AlarmKind.GPU_CLAIMED_TWICE:
        if rightful_node.pk != alarm.node_id:
            raise InvalidValue("an alarm of one node's own is settled in its own favour")
        if not _end(open_alarms().filter(pk=alarm.pk), at=at, actor=actor):
            raise AlarmConflict(f"{alarm} was settled before")
        if alarm.kind == AlarmKind.RETURN_OVERDUE:
            return
        Node.objects.filter(pk=alarm.node_id).update(stale_epochs=0, previous_boot_id="")
        return
    alarms = open_alarms().filter(kind=AlarmKind.GPU_CLAIMED_TWICE, gpu_uuid=alarm.gpu_uuid)
    gpu = Gpu.objects.filter(uuid=alarm.gpu_uuid).select_for_update(no_key=True).get()
    claimants = {gpu.node_id, *alarms.values_list("node_id", flat=True)}
    if not alarms.filter(pk=alarm.pk).exists():
        raise AlarmConflict(f"{alarm} was settled before")
    if rightful_node.pk not in claimants:
        raise InvalidValue(f"{rightful_node.pk} does not claim GPU {alarm.gpu_uuid}")
    if rightful_node.pk != gpu.node_id:
        _give_up(gpu=gpu, at=at)
        _ask_for_inventory(node_ids=[rightful_node.pk])
    ended = alarms.update(settled_at=at, settled_by=actor, rightful_node=rightful_node)
    # The claimant's alarm may have ended by itself a moment ago; the ruling stands against it, too.
    log.warning(
        "alarm_settled",
        gpu_uuid=alarm.gpu_uuid,
        rightful=rightful_node.pk,
        actor=actor,
        count=ended,
    )


def settle_for_new_key(*, node: Node, at: dt.datetime) -> None:
    """End the alarm of a cloned node whose owner gave the machine a new key: the clone does not have it."""
    _end(open_alarms().filter(node=node, kind=AlarmKind.NODE_CLONED), at=at, actor=MARKET)


def note_overdue(*, node: Node, gpu_uuids: Iterable[str], lease_id: str, at: dt.datetime) -> None:
    """Raise an alarm for each GPU that a node has not given back. Safe to call twice."""
    for uuid in sorted(gpu_uuids):
        detail = f"GPU {uuid} did not come back from lease {lease_id}"
        _raise(node=node, kind=AlarmKind.RETURN_OVERDUE, uuid=uuid, detail=detail, at=at)


def end_overdue(*, gpu_uuids: Collection[str], at: dt.datetime, actor: str = MARKET) -> int:
    """End the alarms of GPUs that came back after all, or that their owner vouches for; return how many."""
    overdue = open_alarms().filter(kind=AlarmKind.RETURN_OVERDUE, gpu_uuid__in=list(gpu_uuids))
    return _end(overdue, at=at, actor=actor)


def is_cloned(*, node: Node) -> bool:
    """Say whether two machines seem to have the node's key."""
    return open_alarms().filter(node=node, kind=AlarmKind.NODE_CLONED).exists()


def review(*, at: dt.datetime) -> int:
    """End the claims of nodes that are silent or revoked, and renew those against nodes that came back.

    Safe to run twice; return how many claims ended.
    """
    ended = 0
    claims = open_alarms().filter(kind=AlarmKind.GPU_CLAIMED_TWICE).select_related("node")
    for claim in claims[:REVIEWED_MAX]:
        gpu = Gpu.objects.filter(uuid=claim.gpu_uuid).select_related("node").first()
        if gpu is None or gpu.node_id == claim.node_id:
            continue
        with transaction.atomic():
            if not _is_alive(node=claim.node, at=at):
                _end_claim(claim=claim, at=at)
                # It claims the GPU again as soon as it is heard again.
                _ask_for_inventory(node_ids=[claim.node_id])
                ended += 1
            elif _is_alive(node=gpu.node, at=at):
                _raise_at_owner(gpu=gpu, at=at)
    return ended


def _raise(*, node: Node, kind: AlarmKind, uuid: str, detail: str, at: dt.datetime) -> None:
    """Open an alarm unless it is open already."""
    _, is_new = Alarm.objects.get_or_create(
        node=node,
        kind=kind,
        gpu_uuid=uuid,
        settled_at__isnull=True,
        defaults={"detail": detail, "raised_at": at},
    )
    if is_new:
        log.error(kind.value, node_id=node.pk, gpu_uuid=uuid, detail=detail)


def _raise_at_owner(*, gpu: Gpu, at: dt.datetime) -> None:
    detail = f"another node reports GPU {gpu.uuid}, too: staff must find out who has it"
    _raise(node=gpu.node, kind=AlarmKind.GPU_CLAIMED_TWICE, uuid=gpu.uuid, detail=detail, at=at)


def _end(alarms: QuerySet[Alarm], *, at: dt.datetime, actor: str) -> int:
    return alarms.update(settled_at=at, settled_by=actor)


def _end_claim(*, claim: Alarm, at: dt.datetime) -> None:
    """End one node's claim on a GPU, and the alarm of the node that has it when nobody else claims it."""
    same_gpu = open_alarms().filter(kind=AlarmKind.GPU_CLAIMED_TWICE, gpu_uuid=claim.gpu_uuid)
    _end(same_gpu.filter(pk=claim.pk), at=at, actor=MARKET)
    enrolled_at = Gpu.objects.filter(uuid=claim.gpu_uuid).values("node_id")
    if not same_gpu.exclude(node__in=enrolled_at).exists():
        _end(same_gpu, at=at, actor=MARKET)


def _is_alive(*, node: Node, at: dt.datetime) -> bool:
    """Say whether a node still counts as claiming what it claimed."""
    silence_seconds = max(CLAIM_SECONDS, health.stale_seconds(at=at))
    return (
        node.status != NodeStatus.REVOKED
        and node.last_report_at is not None
        and at - node.last_report_at <= dt.timedelta(seconds=silence_seconds)
    )


def _is_enrolled_at(*, node: Node, gpu_uuid: str) -> bool:
    return Gpu.objects.filter(node=node, uuid=gpu_uuid).exists()


def _is_ruled_out(*, gpu: Gpu, claimant: Node) -> bool:
    """Say whether staff has settled before that the GPU is not one of this owner's other nodes."""
    return Alarm.objects.filter(
        kind=AlarmKind.GPU_CLAIMED_TWICE,
        gpu_uuid=gpu.uuid,
        rightful_node=gpu.node_id,
        node__organization=claimant.organization_id,
    ).exists()


def _give_up(*, gpu: Gpu, at: dt.datetime) -> None:
    """Take a GPU from the node at which it is enrolled: its row and slot stay, under a name of no device."""
    serving = Grant.objects.filter(
        node=gpu.node_id, closed_at__isnull=True, gpu_uuids__contains=[gpu.uuid]
    )
    if serving.exists():
        raise AlarmConflict(
            f"GPU {gpu.uuid} serves a lease at {gpu.node_id}: drain that node, and settle when it is over"
        )
    Gpu.objects.filter(pk=gpu.pk).update(uuid=f"{gpu.uuid[:70]}/given-up-{gpu.slot}", present=False)
    log.warning("gpu_given_up", gpu_uuid=gpu.uuid, node_id=gpu.node_id, at=at.isoformat())


def _ask_for_inventory(*, node_ids: Iterable[str]) -> None:
    """Let the next report of some nodes look like the first one after a boot."""
    Node.objects.filter(pk__in=node_ids).update(boot_id="")
