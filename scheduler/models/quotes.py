"""Quotes: a price promise with an expiry."""

from typing import ClassVar, Self

from django.db import models
from django.db.models import F, Q

from marketplace.core import ids
from marketplace.core.windows import Window
from marketplace.models import GpuModel, Organization
from marketplace.states import Tier
from scheduler.models.prices import PriceVersion
from scheduler.states import (
    QuoteStatus,
    Spread,
)


class QuoteQuerySet(models.QuerySet["Quote"]):
    def visible_to(self, organization: Organization) -> Self:
        """Return an organization's own; what the market holds for its moves is told to nobody."""
        return self.filter(organization=organization, kept_for__isnull=True)


class Quote(models.Model):
    """A price promise with an expiry; with `hold` also a capacity promise."""

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_quote_id)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="quotes")
    status = models.CharField(max_length=20, choices=QuoteStatus, default=QuoteStatus.OPEN)
    gpu_model = models.ForeignKey(GpuModel, on_delete=models.PROTECT)
    gpus = models.PositiveIntegerField(verbose_name="GPUs")
    region = models.CharField(max_length=60)
    tier = models.CharField(max_length=20, choices=Tier)
    spread = models.CharField(max_length=20, choices=Spread)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    rate = models.DecimalField(
        max_digits=18, decimal_places=6, db_comment="per GPU-hour, mean of the lots rounded up"
    )
    total_minor = models.BigIntegerField(
        db_comment="minor units, the lots over the whole window, locked"
    )
    lots = models.JSONField(
        db_comment="what the GPUs cost and who may serve: of `scheduler.lots`, one object per lot"
    )
    currency = models.CharField(max_length=3)
    fee_basis_points = models.PositiveIntegerField(
        db_comment="platform's share of the price, locked"
    )
    price_breakdown = models.JSONField(
        db_comment="inputs and steps from which the rate can be recomputed"
    )
    price_version = models.ForeignKey(
        PriceVersion,
        null=True,
        on_delete=models.PROTECT,
        related_name="quotes",
        db_comment="the table it was priced by; null: at the floor, before the pool had one",
    )
    hold = models.BooleanField(default=False)
    simulated = models.BooleanField(db_comment="priced on GPUs that do not exist")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    objects = QuoteQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(ends_at__gt=F("starts_at")), name="quote_ends_after_start"
            ),
            models.CheckConstraint(
                condition=Q(total_minor__gte=0, gpus__gte=1, rate__gt=0), name="quote_is_positive"
            ),
            models.CheckConstraint(
                condition=Q(status=QuoteStatus.USED, used_at__isnull=False)
                | (~Q(status=QuoteStatus.USED) & Q(used_at__isnull=True)),
                name="quote_is_used_at_an_instant",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["expires_at"],
                condition=Q(status=QuoteStatus.OPEN),
                name="quote_open_by_expiry",
            ),
            models.Index(
                fields=["organization"],
                condition=Q(status=QuoteStatus.OPEN),
                name="quote_open_by_tenant",
            ),
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def window(self) -> Window:
        return Window(self.starts_at, self.ends_at)
