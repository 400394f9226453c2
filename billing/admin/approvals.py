"""Movements of money that take two people: asked for, and decided by somebody else."""

from collections.abc import Sequence

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
from billing.admin.shown import (
    MINOR_UNITS_HELP,
    Shown,
    amount_text,
    badge,
    link_to,
    linked,
    money,
    page,
    transitions_of,
)
from billing.models import NET_DAYS, Approval, ApprovalTransition
from billing.states import MARKETS_OWN, ApprovalKind, ApprovalStatus
from marketplace.core.errors import DomainError
from marketplace.core.money import Money
from marketplace.core.read_only import Column
from marketplace.models import Organization

DECIDE_PERMISSION = "billing.change_approval"
_STATUSES = {
    ApprovalStatus.REQUESTED.value: "warning",
    ApprovalStatus.APPROVED.value: "success",
    ApprovalStatus.REFUSED.value: "danger",
}


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
        help_text=f"{MINOR_UNITS_HELP}. Of a credit it is the limit, and 0 ends it; "
        "0 where nothing is paid, as to let parked money move again",
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
        *("id", "kind", money("amount_minor"), badge("status", _STATUSES)),
        *("requested_by", "decided_by", "organization", linked("subject_id", name="about")),
    ]
    list_filter = ["status", "kind"]
    search_fields = ["id", "subject_id", "organization__name"]
    list_select_related = ["organization"]
    inlines = [transitions_of(ApprovalTransition)]

    def get_fields(self, request: HttpRequest, obj: Approval | None = None) -> Sequence[Column]:
        """Leave out the terms that only approvals of another kind have."""
        others = {
            *(() if obj and obj.kind == ApprovalKind.CREDIT else ("net_days",)),
            *(() if obj and obj.kind == ApprovalKind.PROMOTION else ("expires_at",)),
        }
        return [each for each in super().get_fields(request, obj) if each not in others]

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
    return page(
        request,
        "admin/billing/form.html",
        title=f"Decide {approval.id}",
        form=form,
        facts=_facts(approval),
        intro=_standing(approval, request=request),
        buttons=_buttons(approval, request=request),
    )


def _facts(approval: Approval) -> list[tuple[str, object]]:
    """Return what whoever decides has to know, each as a name and what to say of it."""
    whose = approval.organization
    facts: list[tuple[str, object]] = [
        ("What", approval.get_kind_display()),
        ("Amount", amount_text(minor=approval.amount_minor, currency=approval.currency)),
        ("For", link_to(whose.pk, words=whose.name) if whose else "the market itself"),
        ("About", link_to(approval.subject_id)),
        ("Reason", approval.reason),
        ("Asked by", approval.requested_by),
        ("Asked at", f"{approval.requested_at:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    if approval.net_days is not None:
        facts.append(("Time to pay an invoice", f"{approval.net_days} days"))
    if approval.expires_at is not None:
        facts.append(("Can be spent until", f"{approval.expires_at:%Y-%m-%d %H:%M:%S} UTC"))
    if approval.kind == ApprovalKind.REFUND:
        facts.append(("Sent back before", _sent_back(approval)))
    return facts


def _sent_back(approval: Approval) -> str:
    """Return what earlier approvals refunded of the same, so that nobody does it twice unawares."""
    before = Approval.objects.filter(
        kind=approval.kind, subject_id=approval.subject_id, status=ApprovalStatus.APPROVED
    ).exclude(pk=approval.pk)
    total = sum(before.values_list("amount_minor", flat=True))
    return amount_text(minor=total, currency=approval.currency)


def _standing(approval: Approval, *, request: HttpRequest) -> str:
    if approval.status != ApprovalStatus.REQUESTED:
        return f"It is {approval.status}, by {approval.decided_by}: nothing is left to decide."
    if approval.requested_by == request.user.get_username():
        return "You asked for it yourself: it takes somebody else to decide it."
    return "It happens at once when you let it: look at what it is about first."


def _buttons(approval: Approval, *, request: HttpRequest) -> list[tuple[str, str]]:
    is_own = approval.requested_by == request.user.get_username()
    if is_own or approval.status != ApprovalStatus.REQUESTED:
        return []
    return [("approve", "Let it happen"), ("refuse", "Refuse")]
