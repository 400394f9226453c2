"""What one person of a tenant orders alone: lowered by one, raised by two; an operator may be one of them."""

from collections.abc import Callable

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminSelectWidget

from billing import approval_limits, wallet
from billing.admin.shown import MINOR_UNITS_HELP, Shown, money, page, transitions_of
from billing.models import ApprovalLimit, LimitRequest, LimitRequestTransition
from billing.states import ApprovalStatus
from marketplace.core.errors import DomainError
from marketplace.models import Organization

SET_PERMISSION = "billing.change_approvallimit"
DECIDE_PERMISSION = "billing.change_limitrequest"


class LimitForm(forms.Form):
    """A limit; without an amount, none."""

    organization = forms.ModelChoiceField(
        queryset=Organization.objects.filter(is_tenant=True).order_by("name"),
        label="Tenant",
        widget=UnfoldAdminSelectWidget,
    )
    amount_minor = forms.IntegerField(
        required=False,
        min_value=0,
        max_value=wallet.DEPOSIT_MINOR_MAX,
        label="Limit in minor units",
        help_text=f"of {settings.CURRENCY.upper()}, net of tax: {MINOR_UNITS_HELP}; "
        "empty: one person orders anything",
        widget=UnfoldAdminIntegerFieldWidget,
    )


@admin.register(ApprovalLimit)
class ApprovalLimitAdmin(Shown):
    list_display = ("organization", "amount", "updated_by", "updated_at")
    list_select_related = ("organization",)
    search_fields = ("organization__id", "organization__name")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [path("set/", view(set_view), name="billing_set_limit"), *super().get_urls()]

    @admin.display(description="limit", ordering="amount_minor")
    def amount(self, limit: ApprovalLimit) -> str:
        return str(limit.amount or "none")


@admin.register(LimitRequest)
class LimitRequestAdmin(Shown):
    """What tenants, or other operators, want raised; where a tenant has one key alone, we decide."""

    list_display = (
        "organization",
        money("before_minor"),
        "amount",
        "status",
        "decider",
        "requested_by",
    )
    list_filter = ("status", "requested_at")
    list_select_related = ("organization",)
    search_fields = ("id", "organization__id", "organization__name", "requested_by")
    readonly_fields = ("decider",)
    inlines = (transitions_of(LimitRequestTransition),)
    actions = ("approve", "refuse")

    @admin.display(description="asked for", ordering="amount_minor")
    def amount(self, request: LimitRequest) -> str:
        return str(request.amount or "none")

    @admin.display(description="who decides")
    def decider(self, request: LimitRequest) -> str:
        if request.status != ApprovalStatus.REQUESTED:
            return request.decided_by
        return str(approval_limits.decider_of(request, at=timezone.now()).label)

    @admin.action(description="Approve: the limit is in force", permissions=["decide"])
    def approve(self, request: HttpRequest, chosen: QuerySet[LimitRequest]) -> None:
        self._each(request, chosen, verb=approval_limits.approve)

    @admin.action(description="Refuse: the limit stays", permissions=["decide"])
    def refuse(self, request: HttpRequest, chosen: QuerySet[LimitRequest]) -> None:
        self._each(request, chosen, verb=approval_limits.refuse)

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(DECIDE_PERMISSION)

    def _each(
        self,
        request: HttpRequest,
        chosen: QuerySet[LimitRequest],
        *,
        verb: Callable[..., LimitRequest],
    ) -> None:
        for row in chosen:
            try:
                decided = verb(
                    organization=row.organization,
                    request_id=row.pk,
                    at=timezone.now(),
                    actor=_actor_of(request),
                )
            except DomainError as refusal:
                self.message_user(request, f"{row.pk}: {refusal.detail}", messages.ERROR)
            else:
                self.message_user(request, f"{row.pk} is {decided.status}.")


def set_view(request: HttpRequest) -> HttpResponse:
    """Set a tenant's limit, or ask for a higher one."""
    if not request.user.has_perm(SET_PERMISSION):
        raise PermissionDenied
    form = LimitForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        organization = form.cleaned_data["organization"]
        try:
            asked = approval_limits.set_limit(
                organization=organization,
                amount_minor=form.cleaned_data["amount_minor"],
                at=timezone.now(),
                actor=_actor_of(request),
            )
        except DomainError as refusal:
            form.add_error(None, refusal.detail)
        else:
            if asked is None:
                messages.success(request, f"The limit of {organization} is in force.")
                return HttpResponseRedirect(reverse("admin:billing_approvallimit_changelist"))
            messages.warning(request, f"{asked.pk} waits for somebody else.")
            return HttpResponseRedirect(reverse("admin:billing_limitrequest_changelist"))
    return page(
        request,
        "admin/billing/form.html",
        title="Set what one person orders alone",
        form=form,
        intro="A lower limit is in force at once; a higher one, or none, waits for somebody else.",
        buttons=[("set", "Set the limit")],
    )


def _actor_of(request: HttpRequest) -> str:
    return f"admin:{request.user.get_username()}"
