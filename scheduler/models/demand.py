"""Demand: what tenants asked for, each window once per tenant and hour."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from marketplace.core import ids
from marketplace.models import GpuModel, Organization
from marketplace.states import Tier
from scheduler.states import DemandKind


class DemandSample(models.Model):
    """One tenant's wish for one window in one hour of the clock, however often it was said.

    `counted_gpus` is decided by a tick: null until then, fewer than `gpus` where one tenant wishes for more
    than its share, and 0 for what prices must not follow.
    """

    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    gpu_model = models.ForeignKey(GpuModel, on_delete=models.PROTECT, related_name="+")
    region = models.CharField(max_length=60, blank=True, db_comment="empty: any")
    tier = models.CharField(max_length=20, choices=Tier)
    kind = models.CharField(max_length=20, choices=DemandKind)
    occasion = models.CharField(
        max_length=ids.ID_LENGTH_MAX, blank=True, db_comment="the reservation; else empty"
    )
    asked_at = models.DateTimeField(db_comment="the first time in its hour")
    asked_hour = models.BigIntegerField(db_comment="hours since the Unix epoch")
    start_hour = models.BigIntegerField()
    end_hour = models.BigIntegerField(db_comment="half-open")
    gpus = models.PositiveIntegerField(verbose_name="GPUs")
    counted_gpus = models.PositiveIntegerField(null=True, verbose_name="counted GPUs")

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=[
                    "organization",
                    "asked_hour",
                    "gpu_model",
                    "region",
                    "tier",
                    "kind",
                    "start_hour",
                    "end_hour",
                    "occasion",
                ],
                name="demand_is_sampled_once",
            ),
            models.CheckConstraint(
                condition=Q(end_hour__gt=F("start_hour"), gpus__gte=1),
                name="demand_is_for_a_window",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["asked_at"], condition=Q(counted_gpus=None), name="demand_to_be_counted"
            ),
            models.Index(
                fields=["gpu_model", "tier", "asked_hour"],
                condition=Q(counted_gpus__gt=0),
                name="demand_counted",
            ),
            models.Index(fields=["kind", "asked_at"], name="demand_by_kind"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.gpus} × {self.gpu_model_id}"
