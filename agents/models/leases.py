"""What a node was told of leases, and what it signed and measured of them."""

from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q

from agents import protocol
from agents.models.nodes import Node
from agents.states import choices_of
from marketplace.core import ids


class Grant(models.Model):
    """The market's wish that a node's GPUs serve a lease, and how far the agent says it has come."""

    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="grants")
    lease_id = models.CharField(max_length=ids.ID_LENGTH_MAX)
    lease_epoch = models.PositiveIntegerField(default=1)
    gpu_uuids = ArrayField(models.CharField(max_length=100))
    not_before = models.DateTimeField()
    not_after = models.DateTimeField()
    desired_state = models.CharField(max_length=10, choices=choices_of(protocol.DesiredState))
    ssh_public_keys = models.JSONField(default=list, blank=True)
    image = models.CharField(max_length=500, blank=True)
    reported_state = models.CharField(
        max_length=20, blank=True, choices=choices_of(protocol.LeaseState)
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
    kind = models.CharField(max_length=10, choices=choices_of(protocol.ReceiptKind))
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
