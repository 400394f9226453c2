"""`/v1/billing-profile`: to whom the next invoices are made out."""

from typing import Any, ClassVar

from drf_spectacular.utils import OpenApiExample, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing.invoices import profiles
from billing.models import BillingProfile
from billing.models.invoices import PURCHASE_ORDER_LENGTH_MAX, TAX_ID_LENGTH_MAX
from marketplace.api.fields import InstantField, StrictSerializer, TextField
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.states import Scope

EMAIL_LENGTH_MAX = 254  # RFC 5321: a path has at most 256 characters, its angle brackets included


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A company in Zürich",
            value={
                "legal_name": "Perceptron AG",
                "street": "Bahnhofstrasse 1",
                "postal_code": "8001",
                "city": "Zürich",
                "country": "CH",
                "tax_id": "CHE-123.456.789",
                "purchase_order_number": "PO-4711",
                "email": "invoices@example.com",
            },
            request_only=True,
        )
    ]
)
class BillingProfileRequestSerializer(StrictSerializer):
    """The whole profile: what is left out is empty."""

    legal_name = TextField()
    street = TextField(required=False, default="", allow_blank=True)
    postal_code = TextField(max_length=20, required=False, default="", allow_blank=True)
    city = TextField(required=False, default="", allow_blank=True)
    region = TextField(required=False, default="", allow_blank=True)
    country = TextField(
        max_length=2,
        form=r"([A-Z]{2})?",
        required=False,
        default="",
        allow_blank=True,
        help_text="ISO 3166-1 alpha-2",
    )
    tax_id = TextField(max_length=TAX_ID_LENGTH_MAX, required=False, default="", allow_blank=True)
    purchase_order_number = TextField(
        max_length=PURCHASE_ORDER_LENGTH_MAX,
        required=False,
        default="",
        allow_blank=True,
        help_text="printed on each later document",
    )
    email = TextField(
        max_length=EMAIL_LENGTH_MAX,
        form=r"([^@\s]+@[^@\s]+)?",
        required=False,
        default="",
        allow_blank=True,
    )


class BillingProfileSerializer(serializers.Serializer[BillingProfile]):
    """To whom the next documents are made out."""

    legal_name = serializers.CharField()
    street = serializers.CharField(allow_blank=True)
    postal_code = serializers.CharField(allow_blank=True)
    city = serializers.CharField(allow_blank=True)
    region = serializers.CharField(allow_blank=True)
    country = serializers.CharField(allow_blank=True)
    tax_id = serializers.CharField(allow_blank=True)
    purchase_order_number = serializers.CharField(allow_blank=True)
    email = serializers.CharField(allow_blank=True)
    updated_at = InstantField(allow_null=True, help_text="null: never said; the name is ours")


class BillingProfileView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ, "PUT": Scope.BILLING_WRITE}

    @operation(
        summary="To whom invoices are made out",
        responses={200: BillingProfileSerializer},
        operation_id="get_billing_profile",
    )
    def get(self, request: Request) -> Response:
        return Response(_rendered(profiles.of(organization=self.organization)))

    @operation(
        summary="Say to whom invoices are made out",
        description="Replaces the whole profile. Documents that are issued keep what they say.",
        request=BillingProfileRequestSerializer,
        responses={200: BillingProfileSerializer},
        operation_id="put_billing_profile",
    )
    def put(self, request: Request) -> Response:
        profile = profiles.put(
            organization=self.organization,
            fields=self.body(BillingProfileRequestSerializer),
            at=self.now,
            actor=self.caller.api_key.pk,
        )
        return Response(_rendered(profile))


def _rendered(profile: BillingProfile) -> dict[str, Any]:
    return dict(BillingProfileSerializer(profile).data)
