"""Machines: how they come in, and what they are."""

from typing import ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q, Value
from django.db.models.functions import Mod
from django.db.models.lookups import Exact

from agents import protocol
from agents.states import NODE_ARROWS, NodeStatus
from marketplace.core import ids
from marketplace.models import Organization

SLOTS_PER_NODE = protocol.GPUS_PER_NODE_MAX


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
