"""Price tables: every version of every pool's prices, hour by hour, with all that it was made of."""

from typing import ClassVar

from django.db import models
from django.db.models import Q

from marketplace.core import ids
from marketplace.models import GpuModel
from marketplace.states import Tier
from scheduler.states import PriceCause


class PriceVersion(models.Model):
    """One version of a pool's price table: append-only, and complete in itself. PostgreSQL refuses a change.

    Vectors run over the hours from `first_hour` on and are packed as `scheduler.prices.packed` has it. From
    `rule` and the inputs anybody gets the rates again, without any other row.
    """

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_price_version_id
    )
    gpu_model = models.ForeignKey(GpuModel, on_delete=models.PROTECT, related_name="+")
    region = models.CharField(max_length=60)
    tier = models.CharField(max_length=20, choices=Tier)
    number = models.PositiveIntegerField(db_comment="of the pool, from 1")
    clock_hour = models.DateTimeField(db_comment="the hour in which it was made")
    cause = models.CharField(max_length=20, choices=PriceCause)
    made_at = models.DateTimeField()
    method = models.CharField(max_length=40)
    method_version = models.PositiveIntegerField()
    rule_number = models.PositiveIntegerField(db_comment="0: the built-in rule")
    rule = models.JSONField(db_comment="its parameters, whole numbers by name")
    fee_basis_points = models.PositiveIntegerField(db_comment="platform's share of the price")
    base_micros = models.BigIntegerField(db_comment="the pool's base rate, micros per GPU-hour")
    floors = models.JSONField(db_comment="the owners' floors, rising: decimal text per GPU-hour")
    gpus = models.PositiveIntegerField(verbose_name="GPUs", db_comment="on offer when it was made")
    first_hour = models.BigIntegerField(db_comment="hours since the Unix epoch")
    hours = models.PositiveIntegerField()
    rates = models.BinaryField(
        db_comment="packed: rate, rate before limits, rate of the other tier, micros per GPU-hour; then the "
        "share of the forecast demand that there is room for, basis points, -1 without one"
    )
    inputs = models.BinaryField(
        db_comment="packed: GPUs sold or held; GPUs on offer by floor; firm rates, for the reclaimable tier"
    )
    forecast = models.BinaryField(
        null=True,
        db_comment="packed demand still to come, thousandths of a GPU; null where nothing is forecast",
    )
    facts = models.JSONField(
        default=dict,
        db_comment="whole numbers by name: size_ratio_millionths, reclaim_likelihood_…",
    )
    reference = models.BinaryField(
        db_comment="packed rates in force when the clock hour began, and the latest before this version"
    )

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["gpu_model", "region", "tier", "number"],
                name="price_version_number_is_unique",
            ),
            models.UniqueConstraint(
                fields=["gpu_model", "region", "tier", "clock_hour"],
                condition=Q(cause=PriceCause.HOUR),
                name="price_version_is_one_per_hour",
            ),
            models.CheckConstraint(
                condition=Q(hours__gt=0, number__gt=0, base_micros__gt=0),
                name="price_version_is_positive",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["gpu_model", "region", "tier", "made_at"], name="price_version_by_pool"
            ),
            models.Index(fields=["made_at"], name="price_version_by_age"),
        ]

    def __str__(self) -> str:
        return f"{self.gpu_model_id} {self.region} {self.tier} no. {self.number}"
