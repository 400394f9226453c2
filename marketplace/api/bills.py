"""`GET /v1/reservations/{id}/bill`: bought, delivered, busy; earned, refunded; adding up, in four forms."""

from dataclasses import fields
from typing import Any, ClassVar

from django.http import HttpResponse, HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import bills, month_bills, pdf, reservation_bills
from billing.reservation_bills import ReservationBill
from marketplace.api import bill_rows, reservation_page
from marketplace.api.bill_documents import (
    BILL_FORMS,
    BillDocumentSerializer,
    UndeliveredSerializer,
    by_reason,
    page_response,
)
from marketplace.api.budgets import BudgetSerializer
from marketplace.api.fields import ChoiceField, InstantField, MoneyField, StrictSerializer
from marketplace.api.invoices import pdf_response
from marketplace.api.month_shapes import AheadOfMonthSerializer, AnnexSerializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.core.money import Money
from marketplace.states import Scope
from scheduler.models import Reservation
from scheduler.states import LeaseStatus


class GpuSecondsSerializer(serializers.Serializer[Any]):
    """`bought = delivered + undelivered + released + open` and `delivered = busy + idle`."""

    bought = serializers.IntegerField()
    delivered = serializers.IntegerField(help_text="between handover and return")
    busy = serializers.IntegerField(help_text="a kernel ran")
    idle = serializers.IntegerField(help_text="none ran, or none was seen")
    undelivered = serializers.IntegerField(help_text="refunded")
    released = serializers.IntegerField(help_text="given back by the tenant")
    open = serializers.IntegerField(help_text="not yet known; 0 in a final bill")
    attached = serializers.IntegerField(
        allow_null=True,
        help_text="of the delivered, a process held memory; null where nothing measured it",
    )
    undelivered_by_reason = serializers.SerializerMethodField(
        help_text="adds up to `undelivered`, the most first"
    )

    @extend_schema_field(UndeliveredSerializer(many=True))
    def get_undelivered_by_reason(self, seconds: bills.GpuSeconds) -> list[dict[str, object]]:
        return by_reason(seconds.undelivered_by_reason)


class BillLineSerializer(serializers.Serializer[Any]):
    """One lease: `bought = earned + refunded + open`."""

    lease_id = serializers.CharField()
    status = ChoiceField(choices=LeaseStatus.choices)
    gpus = serializers.IntegerField()
    starts_at = InstantField(source="window.starts_at")
    ends_at = InstantField(source="window.ends_at")
    gpu_seconds = GpuSecondsSerializer()
    bought = MoneyField()
    earned = MoneyField()
    refunded = MoneyField()
    open = MoneyField()
    settled = serializers.BooleanField()


class BillSerializer(serializers.Serializer[Any]):
    """What a reservation cost: `bought = earned + refunded + fees + open`, `net = bought - refunded`.

    `billed` is `net`, and `effective = earned + fees`, as in the bill of a month. All without tax but `tax`
    and `net_with_tax`.
    """

    reservation_id = serializers.CharField()
    name = serializers.CharField(allow_blank=True)
    project = serializers.CharField(allow_blank=True)
    tags = serializers.DictField(child=serializers.CharField())
    gpu_model = serializers.CharField()
    region = serializers.CharField()
    gpus = serializers.IntegerField()
    starts_at = InstantField()
    ends_at = InstantField()
    bought_by = serializers.CharField(
        allow_null=True, help_text="the API key or the user that bought"
    )
    bought_by_name = serializers.CharField(allow_null=True)
    final = serializers.BooleanField(help_text="nothing in it will change")
    rate = serializers.CharField(help_text="per GPU-hour, locked")
    gpu_seconds = GpuSecondsSerializer()
    bought = MoneyField()
    earned = MoneyField()
    refunded = MoneyField()
    fees = MoneyField(help_text="kept of what was given back")
    open = MoneyField()
    net = MoneyField()
    tax = MoneyField(help_text="charged less what went back, by the terms of the purchase")
    net_with_tax = MoneyField()
    credits = MoneyField(
        help_text="to the wallet, beyond refunds, and what promotions paid; no part of the price"
    )
    list_cost = MoneyField(help_text="of what was billed, at the published price without surge")
    contracted = MoneyField(help_text="the locked price of what is promised")
    billed = MoneyField()
    effective = MoneyField(help_text="what was used of what was billed")
    cost_per_delivered_gpu_hour = serializers.CharField(allow_null=True)
    cost_per_attached_gpu_hour = serializers.CharField(allow_null=True)
    cost_per_busy_gpu_hour = serializers.CharField(allow_null=True)
    meter_coverage = serializers.CharField(
        allow_null=True, help_text="share of delivered GPU-seconds"
    )
    energy_kwh = serializers.CharField(allow_null=True, help_text="null where nothing was measured")
    lines = BillLineSerializer(many=True)
    documents = BillDocumentSerializer(
        many=True, help_text="invoices and credit notes, oldest first"
    )
    commitments_ahead = AheadOfMonthSerializer(
        many=True, help_text="what of it is not yet delivered, by month of delivery"
    )
    budgets = BudgetSerializer(
        many=True, help_text="that it counts in, in the periods in which it begins"
    )
    annex = AnnexSerializer()
    simulated = serializers.BooleanField(help_text="for GPUs that do not exist")


class BillQuery(StrictSerializer):
    """The form of the answer."""

    vars()["format"] = ChoiceField(
        choices=[(form, form) for form in BILL_FORMS],
        required=False,
        default="json",
    )


class BillView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": BillQuery}

    @operation(
        summary="The bill of one reservation, as it stands now",
        description="The bill of one reservation, as it stands now. With `format=csv` a row in the columns "
        "of the bill of a month, but of all its time; with `format=html` a page to print, with `format=pdf` "
        "the same as a file.",
        responses={200: BillSerializer},
        files={
            **{(200, form): OpenApiTypes.STR for form in ("text/csv", "text/html")},
            (200, "application/pdf"): OpenApiTypes.BINARY,
        },
        query=BillQuery,
        refusals=("not_found",),
        operation_id="get_reservation_bill",
    )
    def get(self, request: Request, reservation_id: str) -> HttpResponseBase:
        reservation = find(
            Reservation.objects.visible_to(self.organization).select_related(
                "quote", "organization"
            ),
            reservation_id,
        )
        whole = reservation_bills.reservation_bill(reservation=reservation, at=self.now)
        name = f"bill-{reservation.pk}"
        match self.query["format"]:
            case "csv":
                cells = bill_rows.cells(whole.row, costs=whole.costs)
                return HttpResponse(
                    "".join(bill_rows.lines([cells], names=cells)),
                    content_type="text/csv; charset=utf-8",
                    headers={"Content-Disposition": f'attachment; filename="{name}.csv"'},
                )
            case "html":
                return page_response(reservation_page.page(whole=whole, at=self.now))
            case "pdf":
                return pdf_response(pdf.reservation_bill(whole=whole, at=self.now), name=name)
        return Response(BillSerializer(_answer(whole)).data)


def _answer(whole: ReservationBill) -> dict[str, Any]:
    bill = whole.bill
    return {
        **bill_rows.identity(whole.row),
        **{each.name: getattr(bill, each.name) for each in fields(bill)},
        "contracted": Money(whole.row.figures.contracted, bill.net.currency),
        "billed": bill.net,
        "documents": whole.documents,
        "commitments_ahead": [
            {
                "month": month,
                "reservations": ahead.reservations,
                "gpu_seconds": ahead.gpu_seconds,
                "contracted": ahead.contracted,
            }
            for month, ahead in whole.ahead_by_month
        ],
        "budgets": whole.budgets,
        "annex": {"focus": whole.focus_paths, "utilization": month_bills.MINUTES_PATH},
    }
