"""Movements of money that take two people: asked for, and decided by somebody else."""

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from billing import approvals, wallet
from billing.admin.asking import REASON_LENGTH_MAX, REQUEST_PERMISSION, ask
from billing.admin.shown import Shown, amount_text, money, page, transitions_of
from billing.models import NET_DAYS, Approval, ApprovalTransition
from billing.states import MARKETS_OWN, ApprovalKind
from marketplace.core.errors import DomainError
from marketplace.core.money import Money
from marketplace.models import Organization

DECIDE_PERMISSION = "billing.change_approval"


class RequestForm(forms.Form):
    """A movement of money that takes two people; a small refund takes one."""

    kind = forms.ChoiceField(
        choices=[choice for choice in ApprovalKind.choices if choice[0] not in MARKETS_OWN],
        widget=UnfoldAdminSelectWidget,
    )
    organization = forms.ModelChoiceField(
        queryset=Organization.objects.order_by("name"), widget=UnfoldAdminSelectWidget
    )
    subject_id = forms.CharField(
        max_length=32,
        label="About",
        help_text="the reservation, the lease, the invoice, or the organization itself",
        widget=UnfoldAdminTextInputWidget,
    )
    amount_minor = forms.IntegerField(
        min_value=0,
        max_value=wallet.DEPOSIT_MINOR_MAX,
        label="Amount in minor units",
        help_text="the limit of a credit; 0 ends it, and lets parked money move again",
        widget=UnfoldAdminIntegerFieldWidget,
    )
    net_days = forms.TypedChoiceField(
        choices=[("", "—"), *NET_DAYS],
        coerce=int,
        empty_value=None,
        required=False,
        label="Time to pay an invoice",
        help_text="of a credit alone",
        widget=UnfoldAdminSelectWidget,
    )
    expires_at = forms.DateTimeField(
        required=False,
        label="Can be spent until",
        help_text="of a promotion alone, in UTC",
        widget=UnfoldAdminTextInputWidget,
    )
    reason = forms.CharField(max_length=REASON_LENGTH_MAX, widget=UnfoldAdminTextareaWidget)


@admin.register(Approval)
class ApprovalAdmin(Shown):
    list_display = [
        "id",
        "kind",
        "organization",
        "subject_id",
        money("amount_minor"),
        "status",
        "requested_by",
        "decided_by",
    ]
    list_filter = ["status", "kind"]
    search_fields = ["id", "subject_id", "organization__name"]
    list_select_related = ["organization"]
    inlines = [transitions_of(ApprovalTransition)]

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("request/", view(request_view), name="billing_request"),
            path("<str:approval_id>/decide/", view(decide_view), name="billing_decide"),
            *super().get_urls(),
        ]


def request_view(request: HttpRequest) -> HttpResponse:
    """Ask for a movement of money."""
    if not request.user.has_perm(REQUEST_PERMISSION):
        raise PermissionDenied
    form = RequestForm(request.POST or None, initial=request.GET.dict())
    if request.method == "POST" and form.is_valid():
        wish = form.cleaned_data
        answer = ask(
            request,
            form,
            kind=ApprovalKind(wish["kind"]),
            organization=wish["organization"],
            subject_id=wish["subject_id"],
            amount=Money(wish["amount_minor"], settings.CURRENCY),
            net_days=wish["net_days"],
            expires_at=wish["expires_at"],
            at=timezone.now(),
        )
        if answer is not None:
            return answer
    return page(
        request,
        "admin/billing/form.html",
        title="Ask for a movement of money",
        form=form,
        intro="Refunds and promotions up to a limit happen at once; everything else waits for somebody else.",
        buttons=[("ask", "Ask")],
    )


def decide_view(request: HttpRequest, approval_id: str) -> HttpResponse:
    """Let what somebody else asked for happen, or refuse it."""
    if not request.user.has_perm(DECIDE_PERMISSION):
        raise PermissionDenied
    approval = get_object_or_404(Approval, pk=approval_id)
    form = forms.Form(request.POST or None)
    verb = {"approve": approvals.approve, "refuse": approvals.refuse}.get(
        request.POST.get("decision", "")
    )
    if request.method == "POST" and form.is_valid() and verb is not None:
        try:
            decided = verb(
                approval_id=approval.pk, at=timezone.now(), actor=request.user.get_username()
            )
        except DomainError as refusal:
            form.add_error(None, refusal.detail)
        else:
            messages.success(request, f"{decided.id} is {decided.status}.")
            return HttpResponseRedirect(reverse("admin:billing_approval_change", args=[decided.pk]))
    amount = amount_text(minor=approval.amount_minor, currency=approval.currency)
    return page(
        request,
        "admin/billing/form.html",
        title=f"Decide {approval.id}",
        form=form,
        intro=(
            f"{approval.requested_by} asks for: {approval.get_kind_display().lower()} of {amount} for "
            f"{approval.organization or 'the market itself'}, about {approval.subject_id}. "
            f"Reason: {approval.reason}"
        ),
        buttons=[("approve", "Let it happen"), ("refuse", "Refuse")],
    )
