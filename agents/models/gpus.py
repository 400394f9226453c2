"""GPUs, and the last that was read of each."""

from typing import ClassVar, Self

from django.db import models

from agents import protocol
from agents.models.nodes import Node
from agents.states import choices_of
from marketplace.core import ids
from marketplace.models import GpuModel, Organization


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
        max_length=20, choices=choices_of(protocol.Health), default=protocol.Health.HEALTHY
    )
    health_reason = models.CharField(max_length=500, blank=True)
    quarantined_by_market = models.CharField(
        max_length=200,
        blank=True,
        db_comment="why the market withdrew it; empty: it did not. Only the owner's resume clears it",
    )
    idle_state = models.CharField(
        max_length=20, choices=choices_of(protocol.IdleState), default=protocol.IdleState.UNKNOWN
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
