"""What tenants let themselves spend, as operators see it."""

from django.contrib import admin
from django.utils import timezone

from billing import budgets
from billing.admin.shown import Shown
from billing.models import Budget, ProjectFreeze, PurchaseRequest


@admin.register(Budget)
class BudgetAdmin(Shown):
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
class ProjectFreezeAdmin(Shown):
    list_display = ("organization", "project", "reason", "frozen_by", "frozen_at")
    list_select_related = ("organization",)
    search_fields = ("id", "organization__id", "organization__name", "project")


@admin.register(PurchaseRequest)
class PurchaseRequestAdmin(Shown):
    list_display = ("organization", "kind", "status", "amount_minor", "requested_by", "decided_by")
    list_filter = ("status", "kind")
    list_select_related = ("organization",)
    search_fields = ("id", "quote_id", "organization__id", "organization__name")
