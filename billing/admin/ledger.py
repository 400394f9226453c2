"""Accounts, entries and postings as they stand, and deposits through their verb."""

import uuid
from urllib.parse import urlencode

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Case, F, OuterRef, QuerySet, Subquery, Sum, When
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminSelectWidget

from billing import wallet
from billing.admin.shown import MINOR_UNITS_HELP, Shown, ShownInline, amount_text, linked, page
from billing.models import Account, Entry, Posting
from marketplace.core.errors import DomainError
from marketplace.core.money import Money
from marketplace.models import Organization

# Whoever may enter money that arrived on the bank account.
DEPOSIT_PERMISSION = "billing.add_entry"


class DepositForm(forms.Form):
    """Money that arrived on the bank account. The key makes a form that is sent twice count once."""

    organization = forms.ModelChoiceField(
        queryset=Organization.objects.filter(is_tenant=True).order_by("name"),
        label="Tenant",
        widget=UnfoldAdminSelectWidget,
    )
    amount_minor = forms.IntegerField(
        min_value=1,
        max_value=wallet.DEPOSIT_MINOR_MAX,
        label="Amount in minor units",
        help_text=f"of {settings.CURRENCY.upper()}: {MINOR_UNITS_HELP}",
        widget=UnfoldAdminIntegerFieldWidget,
    )
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput)


@admin.display(description="amount", ordering="amount")
def _amount(posting: Posting) -> str:
    """Return money, or GPU-seconds of the second set of books."""
    return amount_text(minor=posting.amount, currency=posting.account.currency)


class PostingInline(ShownInline):
    model = Posting
    fields = ["account", "side", _amount]


@admin.register(Account)
class AccountAdmin(Shown):
    list_display = ["code", "currency", "derived_balance", "guarded", "organization"]
    list_filter = ["kind", "currency", "guarded"]
    search_fields = ["code", "organization__name", "organization__id"]
    list_select_related = ["organization"]
    ordering = ["code", "currency"]
    # Kept for guarded accounts alone; what postings make is the balance of every account.
    exclude = ["balance"]
    readonly_fields = ["derived_balance", "postings"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Account]:
        """Add the balance as postings make it, in the account's normal side."""
        sums = (
            Posting.objects.filter(account=OuterRef("pk"))
            .order_by()
            .values("account")
            .annotate(
                total=Sum(
                    Case(
                        When(side=F("account__normal_side"), then=F("amount")),
                        default=-F("amount"),
                    )
                )
            )
            .values("total")
        )
        rows: QuerySet[Account] = super().get_queryset(request)
        return rows.annotate(derived=Coalesce(Subquery(sums), 0))

    @admin.display(description="balance, derived", ordering="derived")
    def derived_balance(self, account: Account) -> str:
        return amount_text(minor=account.derived, currency=account.currency)  # type: ignore[attr-defined] # annotated

    @admin.display(description="postings")
    def postings(self, account: Account) -> str:
        address = reverse("admin:billing_posting_changelist")
        query = urlencode({"q": account.code})
        return format_html('<a class="text-link" href="{}?{}">All of them</a>', address, query)

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("deposit/", view(deposit_view), name="billing_deposit"),
            *super().get_urls(),
        ]


@admin.register(Entry)
class EntryAdmin(Shown):
    list_display = ["id", "kind", linked("subject_id", name="about"), "effective_at", "recorded_at"]
    list_filter = ["kind", "effective_at"]
    search_fields = ["id", "subject_id", "idempotency_key"]
    inlines = [PostingInline]


@admin.register(Posting)
class PostingAdmin(Shown):
    list_display = ["id", "entry", "account", "side", _amount]
    fields = ["entry", "account", "side", _amount]
    list_filter = ["side", "account__kind", "account__currency", "entry__kind"]
    search_fields = ["entry__id", "entry__subject_id", "account__code"]
    list_select_related = ["entry", "account"]


def deposit_view(request: HttpRequest) -> HttpResponse:
    """Record money that arrived for a tenant's wallet."""
    if not request.user.has_perm(DEPOSIT_PERMISSION):
        raise PermissionDenied
    if request.method != "POST":
        form = DepositForm(initial={"idempotency_key": uuid.uuid4()})
        return page(
            request,
            "admin/billing/form.html",
            title="Record a deposit",
            form=form,
            buttons=[("record", "Record the deposit")],
        )
    form = DepositForm(request.POST)
    if form.is_valid():
        organization = form.cleaned_data["organization"]
        key = str(form.cleaned_data["idempotency_key"])
        try:
            wallet.require_unused(idempotency_key=key, but=organization)
            entry = wallet.record_deposit(
                organization=organization,
                amount=Money(form.cleaned_data["amount_minor"], settings.CURRENCY),
                idempotency_key=key,
                at=timezone.now(),
                actor=request.user.get_username(),
            )
        except DomainError as refusal:
            field = (refusal.pointer or "").strip("/")
            form.add_error(field if field in form.fields else None, refusal.detail)
        else:
            held = wallet.balance(organization=organization)
            messages.success(request, f"{entry.id}: the wallet of {organization} holds {held}.")
            return HttpResponseRedirect(reverse("admin:billing_entry_change", args=[entry.pk]))
    return page(
        request,
        "admin/billing/form.html",
        title="Record a deposit",
        form=form,
        buttons=[("record", "Record the deposit")],
    )
