"""What a tenant lets itself spend: budgets, and projects in which nothing more is ordered."""

from typing import ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

from billing.states import BudgetMode, BudgetPeriod
from marketplace.core import ids
from marketplace.core.limits import NAME_LENGTH_MAX
from marketplace.core.money import Money
from marketplace.models import Organization


class BudgetQuerySet(models.QuerySet["Budget"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)

    def counting(self, *, project: str) -> Self:
        """Keep the budgets against which a reservation of a project counts."""
        return self.filter(project__in={"", project})


class Budget(models.Model):
    """How much of what is delivered in a period a tenant lets itself buy, for a project or altogether."""

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_budget_id)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="budgets")
    project = models.CharField(
        max_length=NAME_LENGTH_MAX, blank=True, db_comment="empty: the whole organization"
    )
    period = models.CharField(max_length=10, choices=BudgetPeriod)
    mode = models.CharField(max_length=10, choices=BudgetMode)
    amount_minor = models.BigIntegerField(db_comment="net of tax")
    currency = models.CharField(max_length=3)
    thresholds = ArrayField(
        models.PositiveSmallIntegerField(), db_comment="percent of the amount, rising"
    )
    watch_due_at = models.DateTimeField(db_comment="when its thresholds are looked at again")
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    objects = BudgetQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["project", "period"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization", "project", "period"], name="budget_is_one_per_scope"
            ),
            models.CheckConstraint(condition=Q(amount_minor__gte=0), name="budget_is_not_negative"),
        ]
        indexes: ClassVar = [models.Index(fields=["watch_due_at"], name="budget_due_to_watch")]

    def __str__(self) -> str:
        return f"{self.amount} a {self.period}, {self.project or 'all projects'}"

    @property
    def amount(self) -> Money:
        return Money(self.amount_minor, self.currency)


class ProjectFreeze(models.Model):
    """A project, or a whole organization, that orders nothing more; what is booked stays and runs."""

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_freeze_id)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="freezes")
    project = models.CharField(
        max_length=NAME_LENGTH_MAX, blank=True, db_comment="empty: the whole organization"
    )
    reason = models.CharField(max_length=NAME_LENGTH_MAX, blank=True)
    frozen_by = models.CharField(max_length=100)
    frozen_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization", "project"], name="project_is_frozen_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.project or 'all projects'} since {self.frozen_at:%Y-%m-%d %H:%M}"
