"""Price rules: versioned, proposed by one person and approved by another."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from marketplace.core.money import RATE_MAX
from marketplace.models import GpuModel, User
from scheduler.states import PRICE_RULE_ARROWS, PriceRuleStatus


class PriceRule(models.Model):
    """One version of the rule by which prices are made; what is written here never changes again.

    In force is the approved one with the highest number: of the model, or else of all models.
    """

    number = models.PositiveIntegerField(unique=True, db_comment="from 1; 0 is the built-in rule")
    gpu_model = models.ForeignKey(
        GpuModel,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        db_comment="null: every model that has no rule of its own",
    )
    status = models.CharField(
        max_length=20, choices=PriceRuleStatus, default=PriceRuleStatus.PROPOSED
    )
    base_rate = models.DecimalField(
        max_digits=18,
        decimal_places=6,
        null=True,
        blank=True,
        db_comment="per GPU-hour, fee included; null: the middle floor of each pool, fee on top",
    )
    parameters = models.JSONField(db_comment="every parameter of the method, decimal text by name")
    reason = models.CharField(max_length=500)
    proposed_by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    proposed_at = models.DateTimeField()
    decided_by = models.ForeignKey(User, null=True, on_delete=models.PROTECT, related_name="+")
    decided_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-number"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=~Q(status=PriceRuleStatus.APPROVED) | ~Q(decided_by=F("proposed_by")),
                name="price_rule_needs_four_eyes",
            ),
            models.CheckConstraint(
                condition=Q(
                    status=PriceRuleStatus.PROPOSED,
                    decided_by__isnull=True,
                    decided_at__isnull=True,
                )
                | (
                    ~Q(status=PriceRuleStatus.PROPOSED)
                    & Q(decided_by__isnull=False, decided_at__isnull=False)
                ),
                name="price_rule_is_decided_by_somebody",
            ),
            models.CheckConstraint(
                condition=Q(number__gte=1)
                & (Q(base_rate__isnull=True) | Q(base_rate__gt=0, base_rate__lte=RATE_MAX)),
                name="price_rule_is_a_price",
            ),
        ]

    def __str__(self) -> str:
        return f"rule {self.number}"


class PriceRuleTransition(models.Model):
    """One move of a price rule: append-only."""

    rule = models.ForeignKey(PriceRule, on_delete=models.PROTECT, related_name="transitions")
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=PriceRuleStatus)
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=PRICE_RULE_ARROWS.as_check(), name="price_rule_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"rule {self.rule_id}: {self.from_status or '∅'} → {self.to_status}"
