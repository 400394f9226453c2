"""Prices for the operator: rules, which two people change, tables as they were made, and demand."""

import datetime as dt
from collections.abc import Callable
from dataclasses import fields
from decimal import Decimal
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin, TabularInline
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from marketplace.core.errors import DomainError
from marketplace.core.money import RATE_DECIMAL_PLACES, SECONDS_PER_HOUR, format_rate
from marketplace.core.read_only import ReadOnly
from marketplace.core.windows import to_instant
from marketplace.models import GpuModel, User
from scheduler import price_rules
from scheduler.models import PriceRule, PriceRuleTransition, PriceVersion
from scheduler.price_rules import RuleInForce, RuleWish
from scheduler.prices import chart, preview
from scheduler.prices.tables import table_of
from scheduler.pricing import Rule
from scheduler.tariffs import as_rate

CHART_HOURS = 14 * 24  # of a table: what most windows lie in


class RuleForm(forms.Form):
    """Ask for every parameter of the method; it begins with the rule in force."""

    gpu_model = forms.ModelChoiceField(
        GpuModel.objects.order_by("pk"),
        required=False,
        label="GPU model",
        widget=UnfoldAdminSelectWidget,
        empty_label="all without a rule of their own",
    )
    base_rate = forms.DecimalField(
        required=False,
        decimal_places=RATE_DECIMAL_PLACES,
        label="Base rate per GPU-hour",
        help_text="Fee included. Empty: the middle floor of each pool with the fee on top.",
        widget=UnfoldAdminTextInputWidget,
    )

    def __init__(self, *args: Any, current: RuleInForce, **kwargs: Any) -> None:  # noqa: ANN401 - Django's signature
        super().__init__(*args, **kwargs)
        self.fields["base_rate"].initial = current.base_rate
        for each in fields(Rule):
            kind = forms.DecimalField if isinstance(each.default, Decimal) else forms.IntegerField
            self.fields[each.name] = kind(
                initial=getattr(current.rule, each.name),
                label=each.name.replace("_", " ").capitalize(),
                widget=UnfoldAdminTextInputWidget,
            )
        self.fields["reason"] = forms.CharField(
            max_length=price_rules.REASON_LENGTH_MAX,
            label="Why",
            help_text="Whoever approves it, and whoever audits it, reads this.",
            widget=UnfoldAdminTextInputWidget,
        )

    def wish(self) -> RuleWish:
        """Return what was asked for.

        :raises RuleInvalid: when a parameter lies outside its bounds.
        """
        cleaned = self.cleaned_data
        model = cleaned["gpu_model"]
        return RuleWish(
            rule=Rule(**{each.name: cleaned[each.name] for each in fields(Rule)}),
            gpu_model_id=None if model is None else model.pk,
            base_rate=cleaned["base_rate"],
            reason=cleaned["reason"],
        )


class PriceRuleTransitionInline(ReadOnly, TabularInline):  # type: ignore[misc]  # unfold has no types
    model = PriceRuleTransition
    fields: ClassVar = ["at", "from_status", "to_status", "actor"]
    extra = 0


class PriceRuleAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]  # unfold has no types
    """Rules as they were proposed and decided; a new one comes from a form of its own."""

    list_display: ClassVar = [
        "number", "gpu_model", "status", "base_rate", "reason",
        "proposed_by", "proposed_at", "decided_by", "decided_at",
    ]  # fmt: skip
    list_filter: ClassVar = ["status", "gpu_model"]
    list_select_related: ClassVar = ["gpu_model", "proposed_by", "decided_by"]
    fields: ClassVar = [
        "number", "gpu_model", "status", "base_rate", "reason", "changes", "what_it_does",
        "proposed_by", "proposed_at", "decided_by", "decided_at",
    ]  # fmt: skip
    readonly_fields: ClassVar = ["changes", "what_it_does"]
    inlines: ClassVar = [PriceRuleTransitionInline]
    actions: ClassVar = ["approve", "reject", "withdraw"]

    @admin.display(description="against the rule in force")
    def changes(self, row: PriceRule) -> SafeString:
        # Up to the decision; what came later has nothing to do with it.
        decided_at = row.decided_at or timezone.now()
        current = price_rules.in_force(
            gpu_model_id=row.gpu_model_id or "", at=decided_at - dt.timedelta(microseconds=1)
        )
        before = price_rules.as_json(current.rule)
        changed = [
            (name, before.get(name, "none"), text)
            for name, text in row.parameters.items()
            if before.get(name) != text
        ]
        if not changed:
            return format_html("{}", "no parameter changes")
        return format_html_join("", "{}: {} → {}<br>", changed)

    @admin.display(description="what it does")
    def what_it_does(self, row: PriceRule) -> SafeString:
        rule = RuleInForce(
            number=row.number,
            rule=price_rules.from_json(row.parameters),
            base_rate=row.base_rate,
        )
        shown = preview.of_rule(rule, gpu_model_id=row.gpu_model_id, at=timezone.now())
        return format_html_join("", "<div>{}</div>", ((each,) for each in shown.charts))

    @admin.action(description="Approve: prices follow it from the next refresh on")
    def approve(self, request: HttpRequest, queryset: QuerySet[PriceRule]) -> None:
        _decide(request, queryset, verb=price_rules.approve)

    @admin.action(description="Reject")
    def reject(self, request: HttpRequest, queryset: QuerySet[PriceRule]) -> None:
        _decide(request, queryset, verb=price_rules.reject)

    @admin.action(description="Withdraw")
    def withdraw(self, request: HttpRequest, queryset: QuerySet[PriceRule]) -> None:
        _decide(request, queryset, verb=price_rules.withdraw)

    def get_urls(self) -> list[URLPattern]:
        """Add the page on which a rule is proposed."""
        propose = self.admin_site.admin_view(propose_view)
        return [path("propose/", propose, name="scheduler_pricerule_propose"), *super().get_urls()]


def propose_view(request: HttpRequest) -> HttpResponse:
    """Let staff change parameters, see what follows, and propose them as the next rule."""
    if not request.user.has_perm("scheduler.add_pricerule"):
        raise PermissionDenied
    assert isinstance(request.user, User)
    now = timezone.now()
    current = price_rules.in_force(gpu_model_id="", at=now)
    form = RuleForm(request.POST or None, current=current)
    shown = preview.of_rule(current, gpu_model_id=None, at=now)
    if request.method == "POST" and form.is_valid():
        try:
            wish = form.wish()
            if "propose" in request.POST:
                row = price_rules.propose(wish=wish, by=request.user, at=now)
                messages.success(request, f"Rule {row.number} waits for somebody else's approval.")
                page = reverse("admin:scheduler_pricerule_change", args=[row.pk])
                return HttpResponseRedirect(page)
            proposed = RuleInForce(number=0, rule=wish.rule, base_rate=wish.base_rate)
            shown = preview.of_rule(proposed, gpu_model_id=wish.gpu_model_id, at=now)
        except DomainError as refusal:
            name = (refusal.pointer or "").removeprefix("/")
            form.add_error(name if name in form.fields else None, refusal.detail)
    context = {
        **admin.site.each_context(request),
        "title": "Propose a price rule",
        "form": form,
        "current": current,
        "preview": shown,
    }
    return TemplateResponse(request, "admin/scheduler/pricerule/propose.html", context)


class PriceVersionAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]  # unfold has no types
    list_display: ClassVar = [
        "id", "gpu_model", "region", "tier", "number", "made_at", "cause", "method", "rule_number",
        "base", "gpus",
    ]  # fmt: skip
    list_filter: ClassVar = ["gpu_model", "tier", "region", "method", "cause"]
    list_select_related: ClassVar = ["gpu_model"]
    search_fields: ClassVar = ["id"]
    date_hierarchy = "made_at"
    fields: ClassVar = [
        "id", "gpu_model", "region", "tier", "number", "made_at", "cause", "method",
        "method_version", "rule_number", "rule", "fee_basis_points", "base", "floors", "gpus",
        "facts", "curve",
    ]  # fmt: skip
    readonly_fields: ClassVar = ["base", "curve"]

    @admin.display(description="base per GPU-hour", ordering="base_micros")
    def base(self, version: PriceVersion) -> str:
        return format_rate(as_rate(version.base_micros))

    @admin.display(description="the next two weeks")
    def curve(self, version: PriceVersion) -> SafeString:
        table = table_of(version)
        return chart.draw(
            title=f"{version}",
            series=[
                chart.Series(name="rate", micros=table.rate_micros[:CHART_HOURS].tolist()),
                chart.Series(name="heading for", micros=table.target_micros[:CHART_HOURS].tolist()),
                chart.Series(
                    name="other tier", micros=table.other_tier_micros[:CHART_HOURS].tolist()
                ),
            ],
            marks=[
                chart.Mark(place=hour, text=f"{_hour(version, hour):%d %b}")
                for hour in range(0, CHART_HOURS, 48)
            ],
        )


class DemandSampleAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]  # unfold has no types
    list_display: ClassVar = [
        "asked_at", "organization", "kind", "gpus", "counted_gpus", "gpu_model", "region", "tier",
    ]  # fmt: skip
    list_filter: ClassVar = ["kind", "gpu_model", "tier", "region"]
    list_select_related: ClassVar = ["organization", "gpu_model"]
    search_fields: ClassVar = ["organization__id", "organization__name", "occasion"]
    date_hierarchy = "asked_at"


def _hour(version: PriceVersion, hour: int) -> dt.datetime:
    return to_instant((version.first_hour + hour) * SECONDS_PER_HOUR)


def _decide(
    request: HttpRequest, queryset: QuerySet[PriceRule], *, verb: Callable[..., PriceRule]
) -> None:
    if not request.user.has_perm("scheduler.change_pricerule"):
        raise PermissionDenied
    for row in queryset:
        try:
            decided = verb(number=row.number, by=request.user, at=timezone.now())
        except DomainError as refusal:
            messages.error(request, refusal.detail)
        else:
            messages.success(request, f"{decided} is {decided.status}")
