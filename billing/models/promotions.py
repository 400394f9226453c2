"""Money of the market's that a tenant may spend until a day."""

from typing import ClassVar, Self

from django.db import models
from django.db.models import F, Q

from billing.models.controls import Approval
from marketplace.core import ids
from marketplace.models import Organization


class PromotionQuerySet(models.QuerySet["Promotion"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)


class Promotion(models.Model):
    """One grant; what is left of it, its account in the books says."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_promotion_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="promotions"
    )
    approval = models.OneToOneField(Approval, on_delete=models.PROTECT, related_name="promotion")
    amount_minor = models.BigIntegerField(db_comment="as it was granted")
    currency = models.CharField(max_length=3)
    granted_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_comment="not spent from then on")
    expired_at = models.DateTimeField(
        null=True, db_comment="when what was left of it was taken back; null: it was not yet"
    )

    objects = PromotionQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="promotion_is_positive"),
            models.CheckConstraint(
                condition=Q(expires_at__gt=F("granted_at")), name="promotion_ends_after_its_grant"
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["expires_at"],
                condition=Q(expired_at__isnull=True),
                name="promotion_due_to_expire",
            ),
            models.Index(
                fields=["organization", "expires_at"],
                condition=Q(expired_at__isnull=True),
                name="promotion_by_tenant",
            ),
        ]

    def __str__(self) -> str:
        return self.id
