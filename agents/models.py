"""What the market knows of machines. Leases are known here by their opaque id alone."""

from enum import StrEnum
from typing import ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q, Value
from django.db.models.functions import Mod
from django.db.models.lookups import Exact

from agents import protocol
from agents.states import NODE_ARROWS, AlarmKind, NodeStatus
from marketplace.core import ids
from marketplace.models import GpuModel, Organization

SLOTS_PER_NODE = protocol.GPUS_PER_NODE_MAX


def _choices(values: type[StrEnum]) -> list[tuple[str, str]]:
    return [(value.value, value.value) for value in values]


class EnrolmentToken(models.Model):
    """A secret with which up to `nodes_max` machines may enrol; shown once, only its SHA-256 is kept."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_enrolment_token_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="enrolment_tokens"
    )
    secret_sha256 = models.CharField(max_length=64, unique=True)
    region = models.CharField(max_length=60)
    fabric = models.CharField(max_length=100, blank=True)
    labels = models.JSONField(default=dict, blank=True)
    nodes_max = models.PositiveIntegerField()
    nodes_enrolled = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    allowed_networks = ArrayField(
        models.CharField(max_length=50),
        default=list,
        blank=True,
        db_comment="CIDR blocks from which it may be used; empty: from anywhere",
    )

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(nodes_enrolled__lte=F("nodes_max")), name="token_uses_are_bounded"
            )
        ]

    def __str__(self) -> str:
        return self.id


class NodeQuerySet(models.QuerySet["Node"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)


class Node(models.Model):
    """One machine with an agent. It owns the slots `[slot_base, slot_base + 16)` of the fleet calendar."""

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_node_id)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="nodes")
    hostname = models.CharField(max_length=255)
    machine_id = models.CharField(
        max_length=100, db_comment="as the machine names itself; survives reinstalls of the agent"
    )
    region = models.CharField(max_length=60)
    fabric = models.CharField(max_length=100, blank=True)
    labels = models.JSONField(default=dict, blank=True)
    status = models.CharField(max_length=20, choices=NodeStatus, default=NodeStatus.ACTIVE)
    simulated = models.BooleanField(db_comment="its GPUs do not exist")
    public_key = models.CharField(max_length=44, unique=True, db_comment="Ed25519, base64url")
    agent_version = models.CharField(max_length=40)
    slot_base = models.IntegerField(
        unique=True, db_comment="multiple of 16, from sequence agents_slot_block"
    )
    boot_id = models.CharField(max_length=100, blank=True)
    previous_boot_id = models.CharField(
        max_length=100, blank=True, db_comment="a machine never returns to it; a clone does"
    )
    stale_epoch = models.BigIntegerField(
        default=0, db_comment="the highest epoch that came after a higher one"
    )
    stale_epochs = models.PositiveSmallIntegerField(
        default=0, db_comment="how many such epochs came since `stale_since`"
    )
    stale_since = models.DateTimeField(null=True, blank=True)
    last_epoch = models.BigIntegerField(
        default=0, db_comment="(epoch, sequence) of the last accepted report"
    )
    last_sequence = models.BigIntegerField(default=0)
    last_report_at = models.DateTimeField(null=True, blank=True, db_comment="server clock")
    reader_hung_since = models.DateTimeField(null=True, blank=True)
    enrolments = models.PositiveIntegerField(
        default=1,
        db_comment="how many keys the machine has had: each starts (epoch, sequence) anew",
    )
    enrolled_at = models.DateTimeField()
    key_since = models.DateTimeField(
        null=True, blank=True, db_comment="since when it signs with this key"
    )
    previous_public_key = models.CharField(
        max_length=44,
        blank=True,
        db_comment="may still ask for the same rotation again, whose answer was lost",
    )
    protocol_version = models.PositiveSmallIntegerField(default=1)
    host = models.JSONField(default=dict, blank=True, db_comment="the last HostFacts")
    warnings = models.JSONField(default=list, blank=True, db_comment="what it cannot do now")
    policy_version = models.PositiveIntegerField(
        default=0, db_comment="of its owner's policy, as it last said that it follows"
    )
    vouched_at = models.DateTimeField(
        null=True, blank=True, db_comment="its owner answers for faults from before that"
    )

    objects = NodeQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization", "machine_id"], name="node_machine_is_unique"
            ),
            models.CheckConstraint(
                condition=Q(slot_base__gte=0), name="node_slot_base_is_not_negative"
            ),
            models.CheckConstraint(
                condition=Exact(Mod(F("slot_base"), Value(SLOTS_PER_NODE)), Value(0)),
                name="node_slot_base_is_a_block",
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["region", "fabric"], name="node_place")]

    def __str__(self) -> str:
        return self.hostname


class NodeTransition(models.Model):
    """One move of a node: append-only."""

    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="transitions")
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=NodeStatus)
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=NODE_ARROWS.as_check(), name="node_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.node_id}: {self.from_status or '∅'} → {self.to_status}"


class GpuQuerySet(models.QuerySet["Gpu"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(node__organization=organization)

    def held_in_order(self) -> Self:
        """Lock the rows in one order everywhere, so that two writers of several GPUs cannot deadlock."""
        return self.order_by("pk").select_for_update(no_key=True)


class Gpu(models.Model):
    """One device. Its slot never changes; what the agent last said of it is overwritten by later reports."""

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_gpu_id)
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="gpus")
    uuid = models.CharField(
        max_length=100, unique=True, db_comment="NVML UUID, the device's identity"
    )
    slot = models.IntegerField(
        unique=True, db_comment="place in the fleet calendar, within its node's block"
    )
    product_name = models.CharField(max_length=100, db_comment="as NVML spells it")
    gpu_model = models.ForeignKey(
        GpuModel,
        null=True,
        on_delete=models.PROTECT,
        related_name="gpus",
        db_comment="null: not in the catalogue, never sold",
    )
    memory_total_bytes = models.BigIntegerField()
    serial = models.CharField(max_length=100, blank=True)
    pci_bus_id = models.CharField(max_length=40, blank=True)
    mig_enabled = models.BooleanField(null=True)
    board_part_number = models.CharField(max_length=100, blank=True)
    vbios_version = models.CharField(max_length=40, blank=True)
    virtualization_mode = models.CharField(max_length=20, blank=True)
    mig_devices = models.JSONField(default=list, blank=True)
    fabric_clique = models.CharField(max_length=100, blank=True)
    counters = models.JSONField(default=dict, blank=True, db_comment="the last GpuCounters")
    counters_at = models.DateTimeField(null=True, blank=True)
    present = models.BooleanField(default=True, db_comment="in the node's last inventory")
    health = models.CharField(
        max_length=20, choices=_choices(protocol.Health), default=protocol.Health.HEALTHY
    )
    health_reason = models.CharField(max_length=500, blank=True)
    quarantined_by_market = models.CharField(
        max_length=200,
        blank=True,
        db_comment="why the market withdrew it; empty: it did not. Only the owner's resume clears it",
    )
    idle_state = models.CharField(
        max_length=20, choices=_choices(protocol.IdleState), default=protocol.IdleState.UNKNOWN
    )
    idle_since = models.DateTimeField(null=True)
    idle_reason = models.CharField(max_length=500, blank=True, db_comment="the agent's words")
    withdrawals = models.PositiveSmallIntegerField(
        default=0, db_comment="how often it stopped being idle on `withdrawn_on`"
    )
    withdrawn_on = models.DateField(null=True, blank=True, db_comment="UTC")
    offered_again_at = models.DateTimeField(
        null=True, blank=True, db_comment="not offered as idle before that"
    )
    measured_at = models.DateTimeField(null=True)
    first_seen_at = models.DateTimeField()

    objects = GpuQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["slot"]
        verbose_name = "GPU"

    def __str__(self) -> str:
        return f"{self.product_name} {self.uuid}"


class Reading(models.Model):
    """One measured sample of a GPU. Unknown is null, never 0. Kept for a day."""

    gpu = models.ForeignKey(Gpu, on_delete=models.CASCADE, related_name="readings")
    measured_at = models.DateTimeField(db_comment="node's clock")
    utilization_percent = models.SmallIntegerField(null=True)
    memory_used_bytes = models.BigIntegerField(null=True)
    power_draw_milliwatts = models.BigIntegerField(null=True)
    energy_millijoules = models.BigIntegerField(null=True, db_comment="counter since driver load")
    temperature_celsius = models.SmallIntegerField(null=True)
    process_count = models.IntegerField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["gpu", "measured_at"], name="reading_is_unique")
        ]
        indexes: ClassVar = [models.Index(fields=["measured_at"], name="reading_measured_at")]

    def __str__(self) -> str:
        return f"{self.gpu_id} at {self.measured_at:%H:%M:%S}"


class Grant(models.Model):
    """The market's wish that a node's GPUs serve a lease, and how far the agent says it has come."""

    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="grants")
    lease_id = models.CharField(max_length=ids.ID_LENGTH_MAX)
    lease_epoch = models.PositiveIntegerField(default=1)
    gpu_uuids = ArrayField(models.CharField(max_length=100))
    not_before = models.DateTimeField()
    not_after = models.DateTimeField()
    desired_state = models.CharField(max_length=10, choices=_choices(protocol.DesiredState))
    ssh_public_keys = models.JSONField(default=list, blank=True)
    image = models.CharField(max_length=500, blank=True)
    reported_state = models.CharField(
        max_length=20, blank=True, choices=_choices(protocol.LeaseState)
    )
    reported_detail = models.CharField(max_length=500, blank=True)
    reported_at = models.DateTimeField(null=True)
    closed_at = models.DateTimeField(null=True, db_comment="no longer sent to the node")
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["lease_id", "lease_epoch"], name="grant_is_unique"),
            models.CheckConstraint(
                condition=Q(not_after__gt=F("not_before")), name="grant_ends_after_start"
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["node"], condition=Q(closed_at__isnull=True), name="grant_open_by_node"
            )
        ]

    def __str__(self) -> str:
        return f"{self.lease_id}/{self.lease_epoch} {self.desired_state}"


class Receipt(models.Model):
    """A node's signed word that GPUs were handed over or came back: append-only evidence."""

    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="receipts")
    lease_id = models.CharField(max_length=ids.ID_LENGTH_MAX)
    lease_epoch = models.PositiveIntegerField()
    kind = models.CharField(max_length=10, choices=_choices(protocol.ReceiptKind))
    at = models.DateTimeField(db_comment="node's clock")
    is_clean = models.BooleanField(db_comment="`clean` on the wire: nothing of the tenant was left")
    access = models.JSONField(null=True, db_comment="host, port, username, host_key_fingerprint")
    document = models.JSONField(db_comment="the receipt as it was signed")
    signature = models.CharField(max_length=88)
    received_at = models.DateTimeField(db_comment="server's clock")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["lease_id", "lease_epoch", "kind"], name="receipt_is_unique"
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.lease_id}"


class MeterReading(models.Model):
    """What one leased GPU did in `[starts_at, ends_at)`: append-only, once per (node, epoch, sequence).

    A machine that lost its disk counts its epochs from the start again, so the number of its enrolment is
    part of the identity.
    """

    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="meter_readings")
    enrolment = models.PositiveIntegerField(
        default=1, db_comment="which of the node's enrolments counted it"
    )
    epoch = models.BigIntegerField()
    sequence = models.BigIntegerField()
    lease_id = models.CharField(max_length=ids.ID_LENGTH_MAX)
    lease_epoch = models.PositiveIntegerField()
    gpu_uuid = models.CharField(max_length=100)
    starts_at = models.DateTimeField(db_comment="node's clock")
    ends_at = models.DateTimeField()
    up_seconds = models.PositiveIntegerField(db_comment="the tenant had the GPU")
    busy_seconds = models.PositiveIntegerField(
        null=True, db_comment="a kernel ran; null: not measured"
    )
    energy_millijoules = models.BigIntegerField(null=True)
    memory_used_bytes_max = models.BigIntegerField(null=True)
    temperature_celsius_max = models.SmallIntegerField(null=True)
    attached_seconds = models.PositiveIntegerField(
        null=True, db_comment="a process held its memory; null: not measured"
    )
    simulated = models.BooleanField()
    received_at = models.DateTimeField(db_comment="server's clock")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["node", "enrolment", "epoch", "sequence"], name="meter_reading_is_unique"
            ),
            models.CheckConstraint(
                condition=Q(ends_at__gt=F("starts_at")), name="meter_ends_after_start"
            ),
            models.CheckConstraint(
                condition=Q(busy_seconds__isnull=True) | Q(busy_seconds__lte=F("up_seconds")),
                name="meter_busy_within_up",
            ),
            models.CheckConstraint(
                condition=Q(attached_seconds__isnull=True)
                | Q(attached_seconds__lte=F("up_seconds")),
                name="meter_attached_within_up",
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["lease_id", "starts_at"], name="meter_by_lease")]

    def __str__(self) -> str:
        return f"{self.lease_id} {self.gpu_uuid} {self.starts_at:%H:%M:%S}"


class GpuEvent(models.Model):
    """Something that happened to a GPU: append-only, once per (node, enrolment, epoch, sequence)."""

    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="events")
    enrolment = models.PositiveIntegerField()
    epoch = models.BigIntegerField()
    sequence = models.BigIntegerField()
    gpu = models.ForeignKey(Gpu, on_delete=models.PROTECT, related_name="events")
    at = models.DateTimeField(db_comment="node's clock")
    kind = models.CharField(max_length=10, choices=_choices(protocol.EventKind))
    source = models.CharField(max_length=20, choices=_choices(protocol.EventSource))
    cause = models.CharField(max_length=10, choices=_choices(protocol.Cause))
    xid = models.PositiveIntegerField(null=True)
    pid = models.BigIntegerField(null=True)
    process_name = models.CharField(max_length=100, blank=True)
    health = models.CharField(max_length=20, blank=True, choices=_choices(protocol.Health))
    reason = models.CharField(max_length=500, blank=True)
    lease_id = models.CharField(max_length=ids.ID_LENGTH_MAX, blank=True)
    lease_epoch = models.PositiveIntegerField(null=True)
    received_at = models.DateTimeField(db_comment="server's clock")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["node", "enrolment", "epoch", "sequence"], name="gpu_event_is_unique"
            )
        ]
        indexes: ClassVar = [
            models.Index(fields=["gpu", "at"], name="gpu_event_by_gpu"),
            models.Index(
                fields=["lease_id", "at"], condition=~Q(lease_id=""), name="gpu_event_by_lease"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.xid or self.health} of {self.gpu_id} at {self.at:%H:%M:%S}"


class Outage(models.Model):
    """A time in which a GPU could not be used: it was quarantined or lost. Half-open; open while it lasts.

    What is sold on the GPU meanwhile was not delivered, and `cause` says who pays.
    """

    gpu = models.ForeignKey(Gpu, on_delete=models.PROTECT, related_name="outages")
    health = models.CharField(max_length=20, choices=_choices(protocol.Health))
    cause = models.CharField(max_length=10, choices=_choices(protocol.Cause))
    reason = models.CharField(max_length=500)
    lease_id = models.CharField(max_length=ids.ID_LENGTH_MAX, blank=True, db_comment="who had it")
    starts_at = models.DateTimeField(db_comment="node's clock")
    ends_at = models.DateTimeField(null=True, blank=True)
    opened_by = models.ForeignKey(
        GpuEvent, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["gpu"], condition=Q(ends_at__isnull=True), name="outage_is_open_once"
            ),
            models.CheckConstraint(
                condition=Q(ends_at__isnull=True) | Q(ends_at__gte=F("starts_at")),
                name="outage_ends_after_start",
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["gpu", "starts_at"], name="outage_by_gpu")]

    def __str__(self) -> str:
        return f"{self.gpu_id} {self.health} from {self.starts_at:%F %T}"


class Alarm(models.Model):
    """Something about a node that a person must settle: it withdraws the GPUs that it names until then."""

    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="alarms")
    kind = models.CharField(max_length=30, choices=AlarmKind)
    gpu_uuid = models.CharField(max_length=100, blank=True, db_comment="empty: the whole node")
    detail = models.CharField(max_length=500)
    raised_at = models.DateTimeField()
    settled_at = models.DateTimeField(null=True, blank=True)
    settled_by = models.CharField(max_length=100, blank=True)
    rightful_node = models.ForeignKey(
        Node,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        db_comment="who has the GPU, as staff found; null: it ended by itself, or is of no GPU",
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["node", "kind", "gpu_uuid"],
                condition=Q(settled_at__isnull=True),
                name="alarm_is_open_once",
            )
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["gpu_uuid"], condition=Q(settled_at__isnull=True), name="alarm_open_by_gpu"
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} at {self.node_id}"


class Policy(models.Model):
    """An owner's rules for its nodes: append-only, the highest version is in force."""

    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="node_policies"
    )
    version = models.PositiveIntegerField()
    document = models.JSONField(db_comment="protocol.NodePolicy, less its version")
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=100)

    class Meta:
        verbose_name_plural = "policies"
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization", "version"], name="policy_version_is_unique"
            ),
            models.CheckConstraint(condition=Q(version__gte=1), name="policy_version_is_positive"),
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} version {self.version}"
