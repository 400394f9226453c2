"""What tenants let themselves spend, as operators see it."""

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin

from billing import budgets, tag_policy
from billing.admin.shown import Shown, money
from billing.models import Budget, ProjectFreeze, PurchaseRequest, TagRule
from billing.tag_policy import TagWish


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
    list_display = (
        "organization",
        "kind",
        "status",
        money("amount_minor"),
        "requested_by",
        "decided_by",
    )
    list_filter = ("status", "kind")
    list_select_related = ("organization",)
    search_fields = ("id", "quote_id", "organization__id", "organization__name")


@admin.register(TagRule)
class TagRuleAdmin(ModelAdmin):  # type: ignore[misc] # unfold has no types
    """The tags that tenants require of their own orders; every change is one of the tenant's whole policy."""

    list_display = ("organization", "key", "allowed_values", "updated_by", "updated_at")
    list_select_related = ("organization",)
    search_fields = ("organization__id", "organization__name", "key")
    autocomplete_fields = ("organization",)
    fields = ("organization", "key", "allowed_values")

    def get_readonly_fields(
        self, request: HttpRequest, obj: TagRule | None = None
    ) -> tuple[str, ...]:
        return ("organization", "key") if obj else ()

    def save_model(
        self,
        request: HttpRequest,
        obj: TagRule,
        form: "forms.ModelForm[TagRule]",
        change: bool,  # noqa: FBT001 - Django calls it so
    ) -> None:
        wish = TagWish(key=obj.key, allowed_values=obj.allowed_values)
        self._put(request, obj, wishes=[wish])
        obj.pk = TagRule.objects.get(organization=obj.organization, key=obj.key).pk

    def delete_model(self, request: HttpRequest, obj: TagRule) -> None:
        self._put(request, obj, wishes=[])

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[TagRule]) -> None:
        for rule in queryset:
            self.delete_model(request, rule)

    def _put(self, request: HttpRequest, obj: TagRule, *, wishes: list[TagWish]) -> None:
        """Put wishes in the place of one rule, and leave the others of its organization."""
        others = [
            TagWish(key=rule.key, allowed_values=rule.allowed_values)
            for rule in tag_policy.rules_of(organization=obj.organization)
            if rule.key != obj.key
        ]
        tag_policy.put(
            organization=obj.organization,
            wishes=[*others, *wishes],
            at=timezone.now(),
            actor=request.user.get_username(),
        )
