"""`/v1/invoices`: invoices and credit notes as they were issued, and what has become of them."""

from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import pdf
from billing.invoices import reading
from billing.models import Invoice, InvoiceLine
from billing.states import InvoiceKind, InvoiceState
from billing.tax import percent
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneyField,
    MoneySerializer,
    PageQuery,
    TextField,
)
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.states import Scope


class InvoicesQuery(PageQuery):
    """Which documents."""

    month = TextField(
        max_length=7,
        form=r"20\d{2}-(0[1-9]|1[0-2])",
        required=False,
        help_text="issued in this month of UTC, or for it: 2026-11",
    )
    kind = ChoiceField(choices=InvoiceKind.choices, required=False)
    state = ChoiceField(choices=InvoiceState.choices, required=False)


class PartySerializer(serializers.Serializer[Any]):
    """A seller or a buyer as a document keeps it."""

    name = serializers.CharField()
    street = serializers.CharField(allow_blank=True)
    postal_code = serializers.CharField(allow_blank=True)
    city = serializers.CharField(allow_blank=True)
    region = serializers.CharField(allow_blank=True)
    country = serializers.CharField(allow_blank=True)
    tax_id = serializers.CharField(allow_blank=True)
    email = serializers.CharField(allow_blank=True)


class InvoiceSummarySerializer(serializers.Serializer[Any]):
    """A document without its lines. Amounts of a credit note go back, and are positive."""

    id = serializers.CharField()
    number = serializers.CharField(help_text="without gaps, by issuer, kind and year")
    kind = ChoiceField(choices=InvoiceKind.choices)
    state = ChoiceField(
        choices=InvoiceState.choices, allow_null=True, help_text="null for a credit note"
    )
    net = MoneyField(minor="net_minor")
    tax = MoneyField(minor="tax_minor")
    total = MoneyField(minor="total_minor")
    owed = MoneyField(minor="owed_minor", help_text="still to be paid")
    issued_at = InstantField()
    due_at = InstantField(allow_null=True, help_text="null: paid before it was issued")
    period = serializers.CharField(
        allow_blank=True, help_text="the month whose close issued it, or empty"
    )
    corrects_id = serializers.CharField(allow_null=True, help_text="the invoice of a credit note")
    purchase_order_number = serializers.CharField(allow_blank=True)
    simulated = serializers.BooleanField(help_text="it is about play money")


class InvoiceLineSerializer(serializers.Serializer[Any]):
    """What one entry of the books charged, or gave back."""

    id = serializers.CharField()
    position = serializers.IntegerField()
    reservation_id = serializers.CharField(allow_null=True)
    corrects_line_id = serializers.CharField(allow_null=True)
    description = serializers.CharField()
    starts_at = InstantField(allow_null=True)
    ends_at = InstantField(allow_null=True)
    gpu_seconds = serializers.IntegerField()
    net = serializers.SerializerMethodField()
    tax = serializers.SerializerMethodField()
    tax_jurisdiction = serializers.CharField(allow_blank=True)
    tax_rate_percent = serializers.SerializerMethodField()
    tax_treatment = serializers.CharField()
    tax_note = serializers.CharField(allow_blank=True)

    @extend_schema_field(MoneySerializer)
    def get_net(self, line: InvoiceLine) -> dict[str, object]:
        return {"amount_minor": line.net_minor, "currency": self.context["currency"]}

    @extend_schema_field(MoneySerializer)
    def get_tax(self, line: InvoiceLine) -> dict[str, object]:
        return {"amount_minor": line.tax_minor, "currency": self.context["currency"]}

    def get_tax_rate_percent(self, line: InvoiceLine) -> str:
        return percent(line.tax_rate_basis_points)


class InvoiceSerializer(InvoiceSummarySerializer):
    """A document as it was issued."""

    seller = PartySerializer()
    buyer = PartySerializer()
    credit_note_ids = serializers.SerializerMethodField()
    lines = serializers.SerializerMethodField()

    def get_credit_note_ids(self, invoice: Invoice) -> list[str]:
        return list(invoice.credit_notes.order_by("pk").values_list("pk", flat=True))

    @extend_schema_field(InvoiceLineSerializer(many=True))
    def get_lines(self, invoice: Invoice) -> list[dict[str, Any]]:
        rows = invoice.lines.order_by("position")
        return list(
            InvoiceLineSerializer(rows, many=True, context={"currency": invoice.currency}).data
        )


class InvoicesView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": InvoicesQuery}

    @operation(
        summary="List invoices and credit notes, newest first",
        responses={200: page_serializer(InvoiceSummarySerializer, name="InvoicePage")},
        query=InvoicesQuery,
        operation_id="list_invoices",
    )
    def get(self, request: Request) -> Response:
        rows = reading.with_state(Invoice.objects.visible_to(self.organization))
        if "month" in self.query:
            rows = reading.of_month(rows, month=self.query["month"])
        rows = rows.filter(
            **{name: self.query[name] for name in ("kind", "state") if name in self.query}
        )
        page = page_of(rows, query=self.query)
        data = InvoiceSummarySerializer(page.data, many=True).data
        return Response({"data": data, "next_cursor": page.next_cursor})


class InvoiceView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}

    @operation(
        summary="One invoice or credit note, as it was issued",
        responses={200: InvoiceSerializer},
        refusals=("not_found",),
        operation_id="get_invoice",
    )
    def get(self, request: Request, invoice_id: str) -> Response:
        rows = reading.with_state(Invoice.objects.visible_to(self.organization))
        return Response(InvoiceSerializer(find(rows, invoice_id)).data)


class InvoicePdfView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}

    @operation(
        summary="One invoice or credit note as PDF",
        description="The same document gives the same bytes: the ETag is their SHA-256.",
        responses={},
        files={(200, "application/pdf"): OpenApiTypes.BINARY},
        refusals=("not_found",),
        operation_id="get_invoice_pdf",
    )
    def get(self, request: Request, invoice_id: str) -> HttpResponse:
        invoice = find(Invoice.objects.visible_to(self.organization), invoice_id)
        return pdf_response(pdf.invoice(invoice=invoice), name=invoice.number)


def pdf_response(content: bytes, *, name: str) -> HttpResponse:
    """Return a file to keep, with the hash of its bytes."""
    return HttpResponse(
        content,
        content_type="application/pdf",
        headers={
            "Content-Disposition": f'inline; filename="{name}.pdf"',
            "ETag": f'"{pdf.sha256(content)}"',
        },
    )
