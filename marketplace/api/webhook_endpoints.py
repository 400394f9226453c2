"""`/v1/webhook-endpoints`: addresses that are called when there is an event, and events sent once more."""

from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import deliveries
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    PageQuery,
    StrictListField,
    StrictSerializer,
    TextField,
)
from marketplace.api.owner_listings import NoFields
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.models import WebhookEndpoint
from marketplace.states import EventKind, Scope

URL_LENGTH_MAX = 500  # the width of the column


class WebhookEndpointWishSerializer(StrictSerializer):
    """Where to call, and of what."""

    url = TextField(max_length=URL_LENGTH_MAX, help_text="https, at a public address")
    kinds = StrictListField(
        child=ChoiceField(choices=EventKind.choices),
        max_length=len(EventKind),
        required=False,
        default=list,
        help_text="which events; without any: all",
    )


class WebhookEndpointSerializer(serializers.Serializer[WebhookEndpoint]):
    """An address that is called with each event, signed in the Standard Webhooks format."""

    id = serializers.CharField()
    url = serializers.CharField()
    kinds = serializers.ListField(child=serializers.CharField(), help_text="empty: all")
    created_at = InstantField()
    failing_since = InstantField(allow_null=True, help_text="null: the last call was taken")
    disabled_at = InstantField(allow_null=True)
    disabled_because = serializers.SerializerMethodField(
        help_text="`gone`: it answered 410; `failing_for_days`; `operator`: of the market"
    )

    def get_disabled_because(self, endpoint: WebhookEndpoint) -> str | None:
        return endpoint.disabled_because or None


class NewWebhookEndpointSerializer(WebhookEndpointSerializer):
    """An endpoint with its secret, which is shown this once."""

    secret = serializers.SerializerMethodField(help_text="`whsec_…`: signatures are made with it")

    def get_secret(self, endpoint: WebhookEndpoint) -> str:
        return str(self.context["secret"])


WebhookEndpointPage = page_serializer(WebhookEndpointSerializer, name="WebhookEndpointPage")


class ReplaySerializer(serializers.Serializer[Any]):
    """To how many endpoints an event goes once more."""

    endpoints = serializers.IntegerField()


class WebhookEndpointsView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ, "POST": Scope.BILLING_WRITE}
    queries: ClassVar = {"GET": PageQuery}

    @operation(
        summary="Webhook endpoints, newest first",
        responses={200: WebhookEndpointPage},
        query=PageQuery,
        operation_id="list_webhook_endpoints",
    )
    def get(self, request: Request) -> Response:
        known = WebhookEndpoint.objects.visible_to(self.organization)
        return Response(WebhookEndpointPage(page_of(known, query=self.query)).data)

    @operation(
        summary="Add a webhook endpoint",
        description="Each event is posted to it with the headers `webhook-id`, `webhook-timestamp` and "
        "`webhook-signature`, at least once and in no promised order: the id is the event's, and the same "
        "whenever it comes again. Any status from 200 to 299 within ten seconds takes it; everything else is "
        "tried again for three days. 410 disables the endpoint. Redirects are not followed.",
        request=WebhookEndpointWishSerializer,
        responses={201: NewWebhookEndpointSerializer},
        refusals=("webhook_address_refused", "too_many_webhook_endpoints"),
        operation_id="create_webhook_endpoint",
    )
    def post(self, request: Request) -> Response:
        body = self.body(WebhookEndpointWishSerializer)
        endpoint, secret = deliveries.add(
            organization=self.organization,
            url=body["url"],
            kinds=[EventKind(kind) for kind in body["kinds"]],
            at=self.now,
            actor=self.caller.actor,
        )
        return _with_secret(endpoint, secret, status=HTTPStatus.CREATED)


class WebhookEndpointView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ, "DELETE": Scope.BILLING_WRITE}

    @operation(
        summary="One webhook endpoint",
        responses={200: WebhookEndpointSerializer},
        refusals=("not_found",),
        operation_id="get_webhook_endpoint",
    )
    def get(self, request: Request, endpoint_id: str) -> Response:
        found = deliveries.get(organization=self.organization, endpoint_id=endpoint_id)
        return Response(WebhookEndpointSerializer(found).data)

    @operation(
        summary="Take a webhook endpoint away, with what is on its way to it",
        responses={204: None},
        refusals=("not_found",),
        operation_id="delete_webhook_endpoint",
    )
    def delete(self, request: Request, endpoint_id: str) -> Response:
        deliveries.remove(
            organization=self.organization,
            endpoint_id=endpoint_id,
            at=self.now,
            actor=self.caller.actor,
        )
        return Response(status=HTTPStatus.NO_CONTENT)


class RotateSecretView(ApiView):
    scopes: ClassVar = {"POST": Scope.BILLING_WRITE}

    @operation(
        summary="Give an endpoint another secret",
        description="For a day every call is signed by both: the header holds two signatures.",
        request=NoFields,
        responses={200: NewWebhookEndpointSerializer},
        refusals=("not_found",),
        operation_id="rotate_webhook_secret",
    )
    def post(self, request: Request, endpoint_id: str) -> Response:
        self.body(NoFields)
        endpoint, secret = deliveries.rotate_secret(
            organization=self.organization,
            endpoint_id=endpoint_id,
            at=self.now,
            actor=self.caller.actor,
        )
        return _with_secret(endpoint, secret, status=HTTPStatus.OK)


class EnableEndpointView(ApiView):
    scopes: ClassVar = {"POST": Scope.BILLING_WRITE}

    @operation(
        summary="Call a disabled endpoint again, from the next event on",
        request=NoFields,
        responses={200: WebhookEndpointSerializer},
        refusals=("not_found",),
        operation_id="enable_webhook_endpoint",
    )
    def post(self, request: Request, endpoint_id: str) -> Response:
        self.body(NoFields)
        endpoint = deliveries.enable(
            organization=self.organization,
            endpoint_id=endpoint_id,
            at=self.now,
            actor=self.caller.actor,
        )
        return Response(WebhookEndpointSerializer(endpoint).data)


class ReplayEventView(ApiView):
    scopes: ClassVar = {"POST": Scope.BILLING_WRITE}

    @operation(
        summary="Send an event of the last 30 days once more",
        description="To each enabled endpoint that wants its kind, with the same `webhook-id`.",
        request=NoFields,
        responses={200: ReplaySerializer},
        refusals=("not_found",),
        idempotency_key="optional",
        operation_id="replay_event",
    )
    def post(self, request: Request, event_id: str) -> HttpResponse:
        self.body(NoFields)

        def replay() -> tuple[int, Any]:
            count = deliveries.replay(
                organization=self.organization, event_id=event_id, at=self.now
            )
            return HTTPStatus.OK, {"endpoints": count}

        return self.once(key_required=False, action=replay)


def _with_secret(endpoint: WebhookEndpoint, secret: str, *, status: int) -> Response:
    data = NewWebhookEndpointSerializer(endpoint, context={"secret": secret}).data
    return Response(data, status=status)
