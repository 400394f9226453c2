"""How much a tenant may have booked ahead, for how long at a time, and how far ahead."""

from typing import ClassVar

from django.db import models
from django.db.models import Q

from marketplace.core.limits import HORIZON_DAYS
from marketplace.models import Organization


class TenantLimit(models.Model):
    """The limits of one tenant, or of all that have none of their own; null is no limit of this kind."""

    organization = models.OneToOneField(
        Organization,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="tenant_limit",
        help_text="empty: of every tenant without a row of its own",
    )
    gpu_hours_max = models.PositiveBigIntegerField(
        null=True,
        blank=True,
        verbose_name="GPU-hours",
        help_text="booked and not yet over, at any instant; frees up as time passes",
    )
    duration_seconds_max = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="of one reservation, from its own start"
    )
    is_duration_exempt = models.BooleanField(
        default=False, help_text="no maximum length, whatever is said for everybody"
    )
    horizon_days_max = models.PositiveIntegerField(
        null=True, blank=True, help_text=f"how far ahead a window may end; at most {HORIZON_DAYS}"
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization"], nulls_distinct=False, name="tenant_limit_is_unique"
            ),
            models.CheckConstraint(
                condition=Q(horizon_days_max__isnull=True)
                | Q(horizon_days_max__gte=1, horizon_days_max__lte=HORIZON_DAYS),
                name="tenant_limit_horizon_is_sold",
            ),
        ]

    def __str__(self) -> str:
        return str(self.organization or "every other tenant")
