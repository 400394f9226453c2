"""`/v1/webhook-endpoints/{id}/deliveries`: what was sent to an endpoint, what came back; one sent again."""

from http import HTTPStatus
from typing import Any, ClassVar

from django.db.models import Prefetch, prefetch_related_objects
from django.http import HttpResponse
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import deliveries
from marketplace.api.fields import ChoiceField, InstantField, PageQuery
from marketplace.api.owner_listings import NoFields
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.models import WebhookCall, WebhookDelivery
from marketplace.states import DeliveryState, EventKind, Scope

CALLS_SHOWN_MAX = 50  # of one delivery: five times sent anew, each time until it was given up


class WebhookDeliveriesQuery(PageQuery):
    """Which deliveries."""

    status = ChoiceField(choices=DeliveryState.choices, required=False, default=None)


class WebhookCallSerializer(serializers.Serializer[WebhookCall]):
    """One call that was made."""

    at = InstantField()
    response_status = serializers.IntegerField(
        allow_null=True, help_text="of HTTP; null: there was no answer"
    )
    error = serializers.SerializerMethodField(
        help_text="what went wrong, or how the refusal began; null: it was taken"
    )

    def get_error(self, call: WebhookCall) -> str | None:
        return call.error or None


class WebhookDeliverySerializer(serializers.Serializer[WebhookDelivery]):
    """An event on its way to an endpoint, and what came of it so far."""

    event_id = serializers.CharField(help_text="the `webhook-id` of its calls")
    kind = ChoiceField(source="event.kind", choices=EventKind.choices)
    object_id = serializers.CharField(source="event.object_id", help_text="what it is about")
    at = InstantField(source="event.at", help_text="of the event")
    status = ChoiceField(source="state", choices=DeliveryState.choices)
    attempts = serializers.IntegerField(help_text="since it was sent, or sent anew")
    next_attempt_at = InstantField(
        source="due_at", allow_null=True, help_text="null: none is made any more"
    )
    delivered_at = InstantField(allow_null=True)
    response_status = serializers.IntegerField(
        source="last_status", allow_null=True, help_text="of the last call; null: no answer yet"
    )
    error = serializers.SerializerMethodField(
        help_text="what went wrong at the last call, or how its refusal began"
    )

    def get_error(self, delivery: WebhookDelivery) -> str | None:
        return delivery.last_answer or None


class WebhookDeliveryWithCallsSerializer(WebhookDeliverySerializer):
    """A delivery with its calls."""

    calls = WebhookCallSerializer(
        source="newest_calls",
        many=True,
        help_text=f"newest first, at most {CALLS_SHOWN_MAX} of them",
    )


WebhookDeliveryPage = page_serializer(WebhookDeliverySerializer, name="WebhookDeliveryPage")


class WebhookDeliveriesView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": WebhookDeliveriesQuery}

    @operation(
        summary="What was sent to an endpoint in the last 30 days, or is on its way; newest event first",
        responses={200: WebhookDeliveryPage},
        query=WebhookDeliveriesQuery,
        refusals=("not_found",),
        operation_id="list_webhook_deliveries",
    )
    def get(self, request: Request, endpoint_id: str) -> Response:
        endpoint = deliveries.get(organization=self.organization, endpoint_id=endpoint_id)
        wanted = self.query["status"]
        found = deliveries.sent_to(endpoint=endpoint, state=wanted and DeliveryState(wanted))
        page = page_of(found, query=self.query, order="-event_id")
        return Response(WebhookDeliveryPage(page).data)


class WebhookDeliveryView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}

    @operation(
        summary="One delivery, with the calls that were made for it",
        responses={200: WebhookDeliveryWithCallsSerializer},
        refusals=("not_found",),
        operation_id="get_webhook_delivery",
    )
    def get(self, request: Request, endpoint_id: str, event_id: str) -> Response:
        found = deliveries.get_delivery(
            organization=self.organization, endpoint_id=endpoint_id, event_id=event_id
        )
        newest = WebhookCall.objects.order_by("-id")[:CALLS_SHOWN_MAX]
        prefetch_related_objects(
            [found], Prefetch("calls", queryset=newest, to_attr="newest_calls")
        )
        return Response(WebhookDeliveryWithCallsSerializer(found).data)


class ResendDeliveryView(ApiView):
    scopes: ClassVar = {"POST": Scope.BILLING_WRITE}

    @operation(
        summary="Send an event to this one endpoint once more",
        description="Now, with the same `webhook-id` and all of its attempts, whatever came of it before.",
        request=NoFields,
        responses={200: WebhookDeliverySerializer},
        refusals=("not_found", "state_conflict"),
        idempotency_key="optional",
        operation_id="resend_webhook_delivery",
    )
    def post(self, request: Request, endpoint_id: str, event_id: str) -> HttpResponse:
        self.body(NoFields)

        def resend() -> tuple[int, Any]:
            delivery = deliveries.resend(
                organization=self.organization,
                endpoint_id=endpoint_id,
                event_id=event_id,
                at=self.now,
                actor=self.caller.actor,
            )
            return HTTPStatus.OK, WebhookDeliverySerializer(delivery).data

        return self.once(key_required=False, action=resend)
