"""What tenants let themselves spend, as operators see it; the approval limit may be set here as well."""

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin

from billing import budgets, purchase_requests
from billing.admin.shown import Shown
from billing.models import ApprovalLimit, Budget, ProjectFreeze, PurchaseRequest


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


@admin.register(ApprovalLimit)
class ApprovalLimitAdmin(ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = ("organization", "amount", "updated_by", "updated_at")
    list_select_related = ("organization",)
    search_fields = ("organization__id", "organization__name")
    autocomplete_fields = ("organization",)
    fields = ("organization", "amount_minor")

    def save_model(
        self,
        request: HttpRequest,
        obj: ApprovalLimit,
        form: "forms.ModelForm[ApprovalLimit]",
        change: bool,  # noqa: FBT001 - Django calls it so
    ) -> None:
        purchase_requests.set_limit(
            organization=obj.organization,
            amount_minor=obj.amount_minor,
            at=timezone.now(),
            actor=request.user.get_username(),
        )
        obj.pk = ApprovalLimit.objects.get(organization=obj.organization).pk

    def delete_model(self, request: HttpRequest, obj: ApprovalLimit) -> None:
        purchase_requests.set_limit(
            organization=obj.organization,
            amount_minor=None,
            at=timezone.now(),
            actor=request.user.get_username(),
        )

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ApprovalLimit]) -> None:
        for limit in queryset:
            self.delete_model(request, limit)


@admin.register(PurchaseRequest)
class PurchaseRequestAdmin(Shown):
    list_display = ("organization", "kind", "status", "amount_minor", "requested_by", "decided_by")
    list_filter = ("status", "kind")
    list_select_related = ("organization",)
    search_fields = ("id", "quote_id", "organization__id", "organization__name")
