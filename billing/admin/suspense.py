"""Money of which nobody knew whose it is: what is open of it, and where people ask to resolve it."""

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.timesince import timesince
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
)

from billing import suspense, wallet
from billing.admin.asking import REASON_LENGTH_MAX, REQUEST_PERMISSION, ask
from billing.admin.shown import Shown, amount_text, money, page
from billing.models import Approval, BalanceTransaction, SuspenseItem
from billing.states import RESOLUTIONS, ApprovalKind, ApprovalStatus
from marketplace.core.money import Money
from marketplace.models import Organization

_WHERE = {
    ApprovalKind.SUSPENSE_BANK: "Our own: it came from our bank account, or went there",
    ApprovalKind.SUSPENSE_WALLET: "A tenant's: into its wallet",
    ApprovalKind.SUSPENSE_FEES: "A fee that the provider took or gave back",
    ApprovalKind.SUSPENSE_MARKET: "Nobody can explain it: our gain, or our loss",
}


class ResolveForm(forms.Form):
    """Where something of what was put aside belongs."""

    kind = forms.ChoiceField(
        choices=[(kind.value, _WHERE[kind]) for kind in RESOLUTIONS],
        label="Where it belongs",
        widget=UnfoldAdminSelectWidget,
    )
    organization = forms.ModelChoiceField(
        queryset=Organization.objects.filter(is_tenant=True).order_by("name"),
        required=False,
        label="Tenant",
        help_text="whose wallet gets it, and of that alone",
        widget=UnfoldAdminSelectWidget,
    )
    amount_minor = forms.IntegerField(
        min_value=1,
        max_value=wallet.DEPOSIT_MINOR_MAX,
        label="Amount in minor units",
        help_text="1250 is what people write as 12.50 in US dollars; the rest may belong elsewhere",
        widget=UnfoldAdminIntegerFieldWidget,
    )
    reason = forms.CharField(
        max_length=REASON_LENGTH_MAX,
        label="How you know",
        widget=UnfoldAdminTextareaWidget,
    )


@admin.register(SuspenseItem)
class SuspenseItemAdmin(Shown):
    """What is open, the oldest first; what is resolved is among the entries."""

    list_display = [
        "id",
        money("amount_minor", name="put aside"),
        money("left_minor", name="left"),
        "came_from",
        "age",
        "ask",
    ]
    search_fields = ["id", "subject_id"]
    list_select_related = ["balance_transaction"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[SuspenseItem, Any]:
        return suspense.open_items()

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(resolve_view)
        return [
            path("<str:item_id>/resolve/", view, name="billing_suspense_resolve"),
            *super().get_urls(),
        ]

    @admin.display(description="where it came from")
    def came_from(self, item: SuspenseItem) -> str:
        return _came_from(item)

    @admin.display(description="aside for")
    def age(self, item: SuspenseItem) -> str:
        return timesince(item.recorded_at, timezone.now())

    @admin.display(description="")
    def ask(self, item: SuspenseItem) -> str:
        waiting = _waiting(item)
        if waiting is not None:
            address = reverse("admin:billing_approval_change", args=[waiting.pk])
            return format_html('<a class="text-link" href="{}">Being decided</a>', address)
        address = reverse("admin:billing_suspense_resolve", args=[item.pk])
        return format_html('<a class="text-link" href="{}">Resolve</a>', address)


def resolve_view(request: HttpRequest, item_id: str) -> HttpResponse:
    """Ask for something that was put aside to go where it belongs; somebody else decides."""
    if not request.user.has_perm(REQUEST_PERMISSION):
        raise PermissionDenied
    item = get_object_or_404(suspense.items(), pk=item_id)
    left: int = item.left_minor
    form = ResolveForm(request.POST or None, initial={"amount_minor": abs(left)})
    if request.method == "POST" and form.is_valid():
        wish = form.cleaned_data
        answer = ask(
            request,
            form,
            kind=ApprovalKind(wish["kind"]),
            organization=wish["organization"],
            subject_id=item.pk,
            amount=Money(wish["amount_minor"], item.currency),
            at=timezone.now(),
        )
        if answer is not None:
            return answer
    amount = amount_text(minor=abs(left), currency=item.currency)
    return page(
        request,
        "admin/billing/form.html",
        title="Resolve what was put aside",
        form=form,
        intro=(
            f"{amount} {'came' if left > 0 else 'have gone'}, and nobody knew why: {_came_from(item)}, "
            f"put aside {item.recorded_at:%Y-%m-%d %H:%M} UTC. Somebody else decides."
        ),
        buttons=[("ask", "Ask")],
    )


def _came_from(item: SuspenseItem) -> str:
    """Return what the provider booked, or the object of ours for which no booking came."""
    try:
        booked = item.balance_transaction
    except BalanceTransaction.DoesNotExist:
        return f"{item.subject_id}, for which no booking came"
    of = f" of {booked.source_id}" if booked.source_id else ""
    return f"{booked.category}{of}, booked as {booked.pk}"


def _waiting(item: SuspenseItem) -> Approval | None:
    return Approval.objects.filter(
        kind__in=RESOLUTIONS, subject_id=item.pk, status=ApprovalStatus.REQUESTED
    ).first()
