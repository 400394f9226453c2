"""`GET /v1/reservations/{id}/bill`: bought, delivered, busy; earned, refunded; adding up."""

from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import bills
from billing.invoices import reading
from marketplace.api.bill_documents import (
    BillDocumentSerializer,
    UndeliveredSerializer,
    by_reason,
)
from marketplace.api.fields import ChoiceField, InstantField, MoneyField
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
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

    All without tax but `tax` and `net_with_tax`.
    """

    reservation_id = serializers.CharField()
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
    credits = MoneyField(help_text="to the wallet, beyond refunds; no part of the price")
    cost_per_delivered_gpu_hour = serializers.CharField(allow_null=True)
    cost_per_busy_gpu_hour = serializers.CharField(allow_null=True)
    meter_coverage = serializers.CharField(
        allow_null=True, help_text="share of delivered GPU-seconds"
    )
    energy_kwh = serializers.CharField(allow_null=True, help_text="null where nothing was measured")
    lines = BillLineSerializer(many=True)
    documents = serializers.SerializerMethodField(
        help_text="invoices and credit notes, oldest first"
    )
    simulated = serializers.BooleanField(help_text="for GPUs that do not exist")

    @extend_schema_field(BillDocumentSerializer(many=True))
    def get_documents(self, bill: bills.Bill) -> list[dict[str, Any]]:
        return list(BillDocumentSerializer(self.context["documents"], many=True).data)


class BillView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}

    @operation(
        summary="The bill of one reservation, as it stands now",
        responses={200: BillSerializer},
        refusals=("not_found",),
        operation_id="get_reservation_bill",
    )
    def get(self, request: Request, reservation_id: str) -> Response:
        reservation = find(Reservation.objects.visible_to(self.organization), reservation_id)
        bill = bills.reservation_bill(reservation=reservation, at=self.now)
        context = {"documents": reading.of_reservation(reservation=reservation)}
        return Response(BillSerializer(bill, context=context).data)
