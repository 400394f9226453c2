"""An owner's part of the fee that a tenant left behind when it gave something back."""

from typing import ClassVar

from django.db import models
from django.db.models import Q

from billing.models.books import Entry
from marketplace.core import ids
from marketplace.models import Organization
from scheduler.models import Change


class FeeShare(models.Model):
    """What one owner gets of the fee of one change; payable once the tenant can no longer dispute it."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_fee_share_id
    )
    change = models.ForeignKey(Change, on_delete=models.PROTECT, related_name="fee_shares")
    owner = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="fee_shares")
    entry = models.OneToOneField(Entry, on_delete=models.PROTECT, related_name="fee_share")
    amount_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    created_at = models.DateTimeField()
    release_due_at = models.DateTimeField(db_comment="becomes payable to the owner")
    released_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["change", "owner"], name="fee_share_is_unique"),
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="fee_share_is_positive"),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["release_due_at"],
                condition=Q(released_at__isnull=True),
                name="fee_share_due_to_release",
            )
        ]

    def __str__(self) -> str:
        return self.id
