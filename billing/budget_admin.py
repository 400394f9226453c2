"""Budgets and freezes as operators see them; tenants set them over the API."""

from django.contrib import admin
from django.utils import timezone
from unfold.admin import ModelAdmin

from billing import budgets
from billing.models import Budget, ProjectFreeze
from marketplace.core.read_only import ReadOnly


@admin.register(Budget)
class BudgetAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = ("organization", "scope", "period", "mode", "amount", "updated_at")
    list_filter = ("period", "mode")
    list_select_related = ("organization",)
    search_fields = ("id", "organization__id", "organization__name", "project")
    readonly_fields = ("committed_now", "paid_now", "left_now")

    @admin.display(description="project", ordering="project")
    def scope(self, budget: Budget) -> str:
        return budget.project or "all"

    @admin.display(description="committed in this period")
    def committed_now(self, budget: Budget) -> str:
        return str(budgets.standing_of(budget=budget, at=timezone.now()).committed)

    @admin.display(description="paid in this period")
    def paid_now(self, budget: Budget) -> str:
        return str(budgets.standing_of(budget=budget, at=timezone.now()).paid)

    @admin.display(description="left in this period")
    def left_now(self, budget: Budget) -> str:
        return str(budgets.standing_of(budget=budget, at=timezone.now()).left)


@admin.register(ProjectFreeze)
class ProjectFreezeAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = ("organization", "project", "reason", "frozen_by", "frozen_at")
    list_select_related = ("organization",)
    search_fields = ("id", "organization__id", "organization__name", "project")
