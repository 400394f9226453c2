"""`/v1/purchase-requests`: orders that take a second person."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import purchase_requests
from billing.models import PurchaseRequest
from billing.states import ApprovalStatus, PurchaseKind
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneyField,
    MoneySerializer,
    PageQuery,
)
from marketplace.api.owner_listings import NoFields
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.core.money import Money
from marketplace.states import Scope


class PurchaseRequestsQuery(PageQuery):
    """Which requests."""

    status = ChoiceField(choices=ApprovalStatus.choices, required=False, default=None)


class HeldOrderSerializer(serializers.Serializer[PurchaseRequest]):
    """An order above the limit, and what became of it."""

    id = serializers.CharField()
    status = ChoiceField(choices=ApprovalStatus.choices)
    kind = ChoiceField(choices=PurchaseKind.choices)
    quote_id = serializers.CharField()
    reservation_id = serializers.SerializerMethodField(help_text="what is changed")
    project = serializers.CharField()
    amount = MoneyField(minor="amount_minor", help_text="what the order comes to, net of tax")
    held = serializers.SerializerMethodField(
        help_text="of the wallet, with tax, until it is ordered, refused or expires; zero where another "
        "way of paying was named, or promotions pay all of it"
    )
    requested_by = serializers.CharField()
    requested_at = InstantField()
    expires_at = InstantField(help_text="as the quote does")
    decided_by = serializers.SerializerMethodField()
    decided_at = InstantField(allow_null=True)

    @extend_schema_field(MoneySerializer)
    def get_held(self, request: PurchaseRequest) -> Any:  # noqa: ANN401 - plain values
        held = Money(purchase_requests.held_minor(request), request.currency)
        return MoneySerializer(held).data

    def get_reservation_id(self, request: PurchaseRequest) -> str | None:
        return request.reservation_id or None

    def get_decided_by(self, request: PurchaseRequest) -> str | None:
        return request.decided_by or None


HeldOrderPage = page_serializer(HeldOrderSerializer, name="HeldOrderPage")


class PurchaseRequestsView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": PurchaseRequestsQuery}

    @operation(
        summary="Orders that took a second person, newest first",
        responses={200: HeldOrderPage},
        query=PurchaseRequestsQuery,
        operation_id="list_purchase_requests",
    )
    def get(self, request: Request) -> Response:
        found = PurchaseRequest.objects.visible_to(self.organization).select_related("hold")
        if self.query["status"] is not None:
            found = found.filter(status=self.query["status"])
        return Response(HeldOrderPage(page_of(found, query=self.query)).data)


class PurchaseRequestView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}

    @operation(
        summary="One order that took a second person",
        responses={200: HeldOrderSerializer},
        refusals=("not_found",),
        operation_id="get_purchase_request",
    )
    def get(self, request: Request, request_id: str) -> Response:
        found = find(PurchaseRequest.objects.visible_to(self.organization), request_id)
        return Response(HeldOrderSerializer(found).data)


class _DecisionView(ApiView):
    """What the two decisions share; they take no body."""

    scopes: ClassVar = {"POST": Scope.BILLING_WRITE}

    def decided(self, verb: Callable[..., PurchaseRequest], *, request_id: str) -> HttpResponse:
        self.body(NoFields)

        def decide() -> tuple[int, Any]:
            row = verb(
                organization=self.organization,
                request_id=request_id,
                at=self.now,
                actor=self.caller.actor,
            )
            return HTTPStatus.OK, HeldOrderSerializer(row).data

        return self.once(key_required=False, action=decide)


_DECISION: dict[str, Any] = {
    "request": NoFields,
    "responses": {200: HeldOrderSerializer},
    "refusals": ("not_found", "state_conflict", "four_eyes_needed"),
    "idempotency_key": "optional",
}


class ApprovePurchaseView(_DecisionView):
    @operation(
        summary="Let somebody else's order happen",
        description="Whoever asked orders again, with the same Idempotency-Key or a new one, before the "
        "quote expires. The key that asked cannot approve.",
        operation_id="approve_purchase_request",
        **_DECISION,
    )
    def post(self, request: Request, request_id: str) -> HttpResponse:
        return self.decided(purchase_requests.approve, request_id=request_id)


class RefusePurchaseView(_DecisionView):
    @operation(
        summary="Refuse somebody else's order",
        operation_id="refuse_purchase_request",
        **_DECISION,
    )
    def post(self, request: Request, request_id: str) -> HttpResponse:
        return self.decided(purchase_requests.refuse, request_id=request_id)
