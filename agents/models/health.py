"""What happened to GPUs, who must look, and the owner's policy by which it is judged."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from agents import protocol
from agents.models.gpus import Gpu
from agents.models.nodes import Node
from agents.states import AlarmKind, choices_of
from marketplace.core import ids
from marketplace.models import Organization


class GpuEvent(models.Model):
    """Something that happened to a GPU: append-only, once per (node, enrolment, epoch, sequence)."""

    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="events")
    enrolment = models.PositiveIntegerField()
    epoch = models.BigIntegerField()
    sequence = models.BigIntegerField()
    gpu = models.ForeignKey(Gpu, on_delete=models.PROTECT, related_name="events")
    at = models.DateTimeField(db_comment="node's clock")
    kind = models.CharField(max_length=10, choices=choices_of(protocol.EventKind))
    source = models.CharField(max_length=20, choices=choices_of(protocol.EventSource))
    cause = models.CharField(max_length=10, choices=choices_of(protocol.Cause))
    xid = models.PositiveIntegerField(null=True)
    pid = models.BigIntegerField(null=True)
    process_name = models.CharField(max_length=100, blank=True)
    health = models.CharField(max_length=20, blank=True, choices=choices_of(protocol.Health))
    reason = models.CharField(max_length=500, blank=True)
    lease_id = models.CharField(max_length=ids.ID_LENGTH_MAX, blank=True)
    lease_epoch = models.PositiveIntegerField(null=True)
    received_at = models.DateTimeField(db_comment="server's clock")

    class Meta:
        verbose_name = "GPU event"
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
    health = models.CharField(max_length=20, choices=choices_of(protocol.Health))
    cause = models.CharField(max_length=10, choices=choices_of(protocol.Cause))
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
