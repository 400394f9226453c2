"""`/v1/approval-limit` and `/v1/approval-limit-requests`: what one person orders alone, and who raises it."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar

from django.conf import settings
from django.http import HttpResponse
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import approval_limits
from billing.models import LimitRequest
from billing.states import ApprovalStatus
from marketplace.api.budgets import MoneyWishSerializer
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneySerializer,
    PageQuery,
    StrictSerializer,
)
from marketplace.api.owner_listings import NoFields
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.errors import InvalidValue
from marketplace.states import Scope


class ApprovalLimitWishSerializer(StrictSerializer):
    """What one person alone may order; null is anything."""

    limit = MoneyWishSerializer(allow_null=True)


class LimitRequestSerializer(serializers.Serializer[LimitRequest]):
    """A limit that is to be raised or taken away, and what became of that."""

    id = serializers.CharField()
    status = ChoiceField(choices=ApprovalStatus.choices)
    limit_before = MoneySerializer(source="before")
    limit = MoneySerializer(source="amount", allow_null=True, help_text="null: none any more")
    requested_by = serializers.CharField()
    requested_at = InstantField()
    decided_by = serializers.SerializerMethodField()
    decided_at = InstantField(allow_null=True)
    decider = serializers.SerializerMethodField(
        help_text="who can approve it: `organization`, by another of its keys that writes bills; "
        "`operator` of the market, where there is no other such key; null once it is decided"
    )

    def get_decided_by(self, request: LimitRequest) -> str | None:
        return request.decided_by or None

    def get_decider(self, request: LimitRequest) -> str | None:
        if request.status != ApprovalStatus.REQUESTED:
            return None
        return approval_limits.decider_of(request, at=self.context["at"]).value


class ApprovalLimitSerializer(serializers.Serializer[Any]):
    """What one person alone may order, net of tax; null is anything."""

    limit = MoneySerializer(allow_null=True)
    requested = LimitRequestSerializer(allow_null=True, help_text="what waits for a second person")


class LimitRequestsQuery(PageQuery):
    """Which requests."""

    status = ChoiceField(choices=ApprovalStatus.choices, required=False, default=None)


LimitRequestPage = page_serializer(LimitRequestSerializer, name="LimitRequestPage")


class ApprovalLimitView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ, "PUT": Scope.BILLING_WRITE}

    @operation(
        summary="What one person alone may order",
        responses={200: ApprovalLimitSerializer},
        operation_id="get_approval_limit",
    )
    def get(self, request: Request) -> Response:
        return self._answer(HTTPStatus.OK)

    @operation(
        summary="Set what one person alone may order",
        description="An order above it, or a change after which a reservation costs more than it, is "
        "answered with 403 `approval_required` until somebody else approves it. A lower limit is in force at "
        "once: 200. A higher one, or null, which takes the limit away, waits for a second person: 202, with "
        "the request that another key of the organization approves. 409 while another limit is asked for.",
        request=ApprovalLimitWishSerializer,
        responses={200: ApprovalLimitSerializer, 202: ApprovalLimitSerializer},
        refusals=("invalid_value", "state_conflict"),
        operation_id="set_approval_limit",
    )
    def put(self, request: Request) -> Response:
        wish = self.body(ApprovalLimitWishSerializer)["limit"]
        if wish is not None and wish["currency"] != settings.CURRENCY:
            raise InvalidValue(
                f"this market keeps its books in {settings.CURRENCY}", pointer="/limit/currency"
            )
        asked = approval_limits.set_limit(
            organization=self.organization,
            amount_minor=wish["amount_minor"] if wish else None,
            at=self.now,
            actor=self.caller.actor,
        )
        return self._answer(HTTPStatus.OK if asked is None else HTTPStatus.ACCEPTED)

    def _answer(self, status: HTTPStatus) -> Response:
        found = {
            "limit": approval_limits.limit_of(organization=self.organization),
            "requested": approval_limits.waiting(organization=self.organization),
        }
        data = ApprovalLimitSerializer(found, context={"at": self.now}).data
        return Response(data, status=status)


class LimitRequestsView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": LimitRequestsQuery}

    @operation(
        summary="Limits that were asked for, newest first",
        responses={200: LimitRequestPage},
        query=LimitRequestsQuery,
        operation_id="list_approval_limit_requests",
    )
    def get(self, request: Request) -> Response:
        found = LimitRequest.objects.visible_to(self.organization).select_related("organization")
        if self.query["status"] is not None:
            found = found.filter(status=self.query["status"])
        page = page_of(found, query=self.query)
        return Response(LimitRequestPage(page, context={"at": self.now}).data)


class LimitRequestView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}

    @operation(
        summary="One limit that was asked for",
        responses={200: LimitRequestSerializer},
        refusals=("not_found",),
        operation_id="get_approval_limit_request",
    )
    def get(self, request: Request, request_id: str) -> Response:
        found = approval_limits.get(organization=self.organization, request_id=request_id)
        return Response(LimitRequestSerializer(found, context={"at": self.now}).data)


class _DecisionView(ApiView):
    """What the two decisions share; they take no body."""

    scopes: ClassVar = {"POST": Scope.BILLING_WRITE}

    def decided(self, verb: Callable[..., LimitRequest], *, request_id: str) -> HttpResponse:
        self.body(NoFields)

        def decide() -> tuple[int, Any]:
            row = verb(
                organization=self.organization,
                request_id=request_id,
                at=self.now,
                actor=self.caller.actor,
            )
            return HTTPStatus.OK, LimitRequestSerializer(row, context={"at": self.now}).data

        return self.once(key_required=False, action=decide)


class ApproveLimitView(_DecisionView):
    @operation(
        summary="Let a higher limit happen",
        description="It is in force with the answer. The key that asked cannot approve; where the "
        "organization has no other key that writes bills, an operator of the market does.",
        request=NoFields,
        responses={200: LimitRequestSerializer},
        refusals=("not_found", "state_conflict", "four_eyes_needed"),
        idempotency_key="optional",
        operation_id="approve_approval_limit_request",
    )
    def post(self, request: Request, request_id: str) -> HttpResponse:
        return self.decided(approval_limits.approve, request_id=request_id)


class RefuseLimitView(_DecisionView):
    @operation(
        summary="Refuse a higher limit, or take back what this key asked for",
        request=NoFields,
        responses={200: LimitRequestSerializer},
        refusals=("not_found", "state_conflict"),
        idempotency_key="optional",
        operation_id="refuse_approval_limit_request",
    )
    def post(self, request: Request, request_id: str) -> HttpResponse:
        return self.decided(approval_limits.refuse, request_id=request_id)
