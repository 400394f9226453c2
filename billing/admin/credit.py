"""What tenants may owe, what they owe, and how it is collected."""

import uuid
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.widgets import UnfoldAdminIntegerFieldWidget

from billing import invoice_payments, receivables, wallet
from billing.admin.ledger import DEPOSIT_PERMISSION
from billing.admin.shown import MINOR_UNITS_HELP, Shown, amount_text, money, page, transitions_of
from billing.models import CreditSale, CreditTerms, DunningCase, DunningTransition
from billing.states import ApprovalKind
from marketplace.core.errors import DomainError
from marketplace.core.money import Money


class TransferForm(forms.Form):
    """Money that arrived on the bank account for an invoice. A form that is sent twice counts once."""

    amount_minor = forms.IntegerField(
        min_value=1,
        max_value=wallet.DEPOSIT_MINOR_MAX,
        label="Amount in minor units",
        help_text=MINOR_UNITS_HELP,
        widget=UnfoldAdminIntegerFieldWidget,
    )
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput)


@admin.register(CreditTerms)
class CreditTermsAdmin(Shown):
    """How much tenants may owe. What changes it is asked for among the approvals."""

    list_display = ["organization", "version", money("limit_minor"), "net_days", "granted_at"]
    list_filter = ["net_days", "currency", "granted_at"]
    search_fields = ["id", "organization__name", "organization__id", "approval__id"]
    list_select_related = ["organization"]


@admin.register(CreditSale)
class CreditSaleAdmin(Shown):
    """What was bought on account; what was paid of it by bank is recorded here."""

    list_display = [
        "invoice",
        "organization",
        "reservation",
        money("amount_minor"),
        "open_written",
        "due_at",
    ]
    list_filter = ["currency", "due_at"]
    search_fields = [
        "id",
        "invoice__id",
        "invoice__number",
        "organization__name",
        "reservation__id",
    ]
    list_select_related = ["organization", "invoice"]

    @admin.display(description="open")
    def open_written(self, sale: CreditSale) -> str:
        return amount_text(minor=_open_minor(sale), currency=sale.currency)

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("<str:sale_id>/pay/", view(transfer_view), name="billing_transfer_received"),
            *super().get_urls(),
        ]


@admin.register(DunningCase)
class DunningCaseAdmin(Shown):
    """How far the collection of what is owed has come; giving it up is asked for among the approvals."""

    list_display = ["sale", "tenant", "status", "open_written", "act_due_at"]
    list_filter = ["status", "act_due_at"]
    search_fields = ["sale__id", "sale__invoice__number", "sale__organization__name"]
    list_select_related = ["sale__organization", "sale__invoice"]
    readonly_fields = ["open_written", "write_off"]
    inlines = [transitions_of(DunningTransition)]

    @admin.display(description="tenant", ordering="sale__organization__name")
    def tenant(self, case: DunningCase) -> str:
        return str(case.sale.organization)

    @admin.display(description="open")
    def open_written(self, case: DunningCase) -> str:
        return amount_text(minor=_open_minor(case.sale), currency=case.sale.currency)

    @admin.display(description="write-off")
    def write_off(self, case: DunningCase) -> str:
        still_open = _open_minor(case.sale)
        if not still_open:
            return "nothing is owed"
        wish = {
            "kind": ApprovalKind.WRITE_OFF.value,
            "organization": case.sale.organization_id,
            "subject_id": case.sale.invoice_id,
            "amount_minor": still_open,
        }
        address = f"{reverse('admin:billing_request')}?{urlencode(wish)}"
        return format_html('<a class="text-link" href="{}">Ask for a write-off</a>', address)


def transfer_view(request: HttpRequest, sale_id: str) -> HttpResponse:
    """Record money that arrived on the bank account for an invoice."""
    if not request.user.has_perm(DEPOSIT_PERMISSION):
        raise PermissionDenied
    sale = get_object_or_404(CreditSale.objects.select_related("organization"), pk=sale_id)
    form = TransferForm(request.POST or None, initial={"idempotency_key": uuid.uuid4()})
    if request.method == "POST" and form.is_valid():
        try:
            payment_id = invoice_payments.record_transfer(
                sale=sale,
                amount=Money(form.cleaned_data["amount_minor"], sale.currency),
                idempotency_key=str(form.cleaned_data["idempotency_key"]),
                at=timezone.now(),
                actor=request.user.get_username(),
            )
        except DomainError as refusal:
            field = (refusal.pointer or "").strip("/")
            form.add_error(field if field in form.fields else None, refusal.detail)
        else:
            text = amount_text(minor=_open_minor(sale), currency=sale.currency)
            messages.success(request, f"{payment_id}: {text} of {sale.invoice_id} are still open.")
            return HttpResponseRedirect(reverse("admin:billing_creditsale_change", args=[sale.pk]))
    return page(
        request,
        "admin/billing/form.html",
        title=f"Record a transfer for {sale.invoice_id}",
        form=form,
        intro=f"{sale.organization} owes it since {sale.created_at:%Y-%m-%d}; what is beyond it goes to "
        "the wallet.",
        buttons=[("record", "Record the transfer")],
    )


def _open_minor(sale: CreditSale) -> int:
    return receivables.open_minor(
        organization=sale.organization, invoice_id=sale.invoice_id, currency=sale.currency
    )
