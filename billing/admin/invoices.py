"""Issued documents as operators see them: found by number, month, kind and state, and never changed."""

from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from billing import pdf
from billing.admin.shown import Shown, ShownInline, money
from billing.invoices import reading
from billing.models import BillingProfile, Invoice, InvoiceLine
from billing.states import InvoiceState
from marketplace.core.money import Money, grouped


class InvoiceLineInline(ShownInline):
    model = InvoiceLine
    fk_name = "invoice"
    currency_of = "invoice__currency"
    verbose_name_plural = "Lines"
    fields = [
        "position",
        "description",
        "reservation",
        "gpu_seconds",
        "net_minor",
        "tax_minor",
        "tax_note",
    ]


class StateFilter(admin.SimpleListFilter):
    """By what has become of an invoice, as the ledger tells."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        return [(value, str(label)) for value, label in InvoiceState.choices]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Invoice]) -> QuerySet[Invoice]:
        return queryset.filter(Q(state=self.value())) if self.value() else queryset


@admin.register(Invoice)
class InvoiceAdmin(Shown):
    list_display = [
        "number",
        "kind",
        "state",
        "organization",
        money("total_minor"),
        "owed",
        "issued_at",
        "due_at",
        "file",
    ]
    list_filter = ["kind", StateFilter, "period", "simulated"]
    list_select_related = ["organization"]
    search_fields = ["number", "id", "organization__name", "purchase_order_number"]
    inlines = [InvoiceLineInline]
    readonly_fields = ["state", "owed", "file"]
    ordering = ["-id"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Invoice]:
        return reading.with_state(super().get_queryset(request))

    def get_urls(self) -> list[URLPattern]:
        mine = path(
            "<str:invoice_id>/pdf/",
            self.admin_site.admin_view(self.pdf_view),
            name="billing_invoice_pdf",
        )
        return [mine, *super().get_urls()]

    def pdf_view(self, request: HttpRequest, invoice_id: str) -> HttpResponse:
        """Answer with the file, to whoever may see the row."""
        invoice = get_object_or_404(Invoice, pk=invoice_id)
        if not self.has_view_permission(request, invoice):
            return HttpResponse(status=403)
        return HttpResponse(
            pdf.invoice(invoice=invoice),
            content_type="application/pdf",
            headers={"Content-Disposition": f'inline; filename="{invoice.number}.pdf"'},
        )

    @admin.display(description="State")
    def state(self, invoice: Any) -> str:  # noqa: ANN401 - a row with what `reading` adds
        return InvoiceState(invoice.state).label if invoice.state else "—"

    @admin.display(description="Owed")
    def owed(self, invoice: Any) -> str:  # noqa: ANN401 - a row with what `reading` adds
        return grouped(Money(invoice.owed_minor, invoice.currency))

    @admin.display(description="PDF")
    def file(self, invoice: Invoice) -> str:
        address = reverse("admin:billing_invoice_pdf", args=[invoice.pk])
        return format_html('<a class="text-link" href="{}">PDF</a>', address)


@admin.register(BillingProfile)
class BillingProfileAdmin(Shown):
    list_display = ["legal_name", "organization", "country", "tax_id", "updated_at"]
    list_select_related = ["organization"]
    search_fields = ["legal_name", "organization__name", "tax_id"]
