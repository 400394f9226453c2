"""Tags as a tenant's own rules have them: what an order must carry, and what a reservation carried before."""

from typing import ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

from marketplace.core import ids
from marketplace.core.limits import NAME_LENGTH_MAX, TAG_KEY_LENGTH_MAX, TAG_VALUE_LENGTH_MAX
from marketplace.models import Organization
from scheduler.models import Reservation


class TagRuleQuerySet(models.QuerySet["TagRule"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)


class TagRule(models.Model):
    """A tag without which a tenant orders nothing."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_tag_rule_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="tag_rules"
    )
    key = models.CharField(max_length=TAG_KEY_LENGTH_MAX)
    allowed_values = ArrayField(
        models.CharField(max_length=TAG_VALUE_LENGTH_MAX),
        default=list,
        blank=True,
        db_comment="empty: any value",
    )
    updated_by = models.CharField(max_length=100)
    updated_at = models.DateTimeField()

    objects = TagRuleQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["key"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["organization", "key"], name="tag_rule_is_one_per_key"),
            models.CheckConstraint(condition=~Q(key=""), name="tag_rule_has_a_key"),
        ]

    def __str__(self) -> str:
        return f"{self.key}: {', '.join(self.allowed_values) or 'any value'}"


class LabelChange(models.Model):
    """What a reservation's project and tags were before they were changed: append-only.

    A month that was over keeps them, so that its cost is not divided anew.
    """

    reservation = models.ForeignKey(
        Reservation, on_delete=models.PROTECT, related_name="label_changes"
    )
    project_before = models.CharField(max_length=NAME_LENGTH_MAX, blank=True)
    tags_before = models.JSONField(default=dict, db_comment="text to text")
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        indexes: ClassVar = [
            models.Index(fields=["reservation", "at"], name="label_change_by_time")
        ]

    def __str__(self) -> str:
        return f"{self.reservation_id} at {self.at:%F %T}"
