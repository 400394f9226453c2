"""`/v1/wallet/top-ups`: money for the wallet, by card or bank transfer."""

from http import HTTPStatus
from typing import Any, ClassVar

from django.conf import settings
from django.http import HttpResponse
from drf_spectacular.utils import OpenApiExample, extend_schema_field, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import chargeable, payment_methods, payments, provider
from billing.models import Payment
from billing.payments import Wishes
from billing.provider_states import PaymentMeans, PaymentPurpose, PaymentStatus
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneyField,
    PageQuery,
    StrictSerializer,
    SwitchField,
    TextField,
    WholeNumberField,
)
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.payments import (
    BankTransferSerializer,
    FailureSerializer,
    bank_transfer_of,
    failure_of,
)
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.core.money import Money
from marketplace.states import Scope


class AmountSerializer(StrictSerializer):
    """How much, in integer minor units."""

    amount_minor = WholeNumberField(
        min_value=chargeable.least(settings.CURRENCY), max_value=chargeable.MOST_MINOR
    )
    currency = TextField(max_length=3, form=r"[a-z]{3}")


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "Fifty dollars by card",
            value={"amount": {"amount_minor": 5000, "currency": "usd"}, "payment_method": "card"},
            request_only=True,
        )
    ]
)
class TopUpRequestSerializer(StrictSerializer):
    """How much money, and the way it comes."""

    amount = AmountSerializer()
    payment_method = ChoiceField(choices=PaymentMeans.choices)
    use_saved_card = SwitchField(
        required=False, default=False, help_text="charge the card that was saved, without asking"
    )
    save_card = SwitchField(
        required=False, default=False, help_text="save the card that is used for later"
    )


class TopUpSerializer(serializers.Serializer[Payment]):
    """Money on its way into the wallet."""

    id = serializers.CharField()
    status = ChoiceField(choices=PaymentStatus.choices)
    payment_method = ChoiceField(choices=PaymentMeans.choices, source="means")
    amount = MoneyField(minor="amount_minor")
    client_secret = serializers.SerializerMethodField(
        help_text="for the provider's own fields in a page of yours"
    )
    checkout_url = serializers.SerializerMethodField(help_text="a page on which it can be paid")
    bank_transfer = serializers.SerializerMethodField(help_text="where to send the money")
    failure = serializers.SerializerMethodField(help_text="why the last attempt did not work")
    due_at = InstantField(help_text="given up then, unless paid")
    created_at = InstantField()

    def get_client_secret(self, payment: Payment) -> str | None:
        return (payment.client_secret or None) if payment.status in payments.OPEN_STATUSES else None

    def get_checkout_url(self, payment: Payment) -> str | None:
        return payments.page_url(payment=payment)

    @extend_schema_field(BankTransferSerializer(allow_null=True))
    def get_bank_transfer(self, payment: Payment) -> object:
        return bank_transfer_of(payment)

    @extend_schema_field(FailureSerializer(allow_null=True))
    def get_failure(self, payment: Payment) -> object:
        return failure_of(payment)


TopUpPage = page_serializer(TopUpSerializer, name="TopUpPage")


class TopUpsView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ, "POST": Scope.BILLING_WRITE}
    queries: ClassVar = {"GET": PageQuery}

    @operation(
        summary="Top-ups, newest first",
        responses={200: TopUpPage},
        query=PageQuery,
        operation_id="list_top_ups",
    )
    def get(self, request: Request) -> Response:
        rows = Payment.objects.visible_to(self.organization).filter(purpose=PaymentPurpose.TOP_UP)
        return Response(TopUpPage(page_of(rows, query=self.query)).data)

    @operation(
        summary="Put money into the wallet",
        description="The answer says how to pay: on the page at `checkout_url`, with the provider's fields "
        "and `client_secret`, or by bank transfer. The wallet is filled when the money is there.",
        request=TopUpRequestSerializer,
        responses={201: TopUpSerializer},
        refusals=("payment_method_unavailable", "no_saved_card", "money_parked", "invalid_value"),
        idempotency_key="required",
        operation_id="create_top_up",
    )
    def post(self, request: Request) -> HttpResponse:
        body = self.body(TopUpRequestSerializer)
        made: list[Payment] = []

        def ask() -> tuple[int, Any]:
            if not provider.is_connected():
                raise payment_methods.PaymentMethodUnavailable(
                    "No payment provider is connected here; an operator records deposits."
                )
            payment = payments.open_top_up(
                organization=self.organization,
                amount=Money(body["amount"]["amount_minor"], body["amount"]["currency"]),
                wishes=Wishes(
                    means=PaymentMeans(body["payment_method"]),
                    with_saved_card=body["use_saved_card"],
                    saves_card=body["save_card"],
                ),
                at=self.now,
            )
            made.append(payment)
            return HTTPStatus.CREATED, TopUpSerializer(payment).data

        def ask_provider() -> tuple[int, Any]:
            """Ask for the payment now that it is written down; what fails here is tried again later."""
            provider.drive_payment(payment_id=made[-1].pk, at=self.now)
            made[-1].refresh_from_db()
            return HTTPStatus.CREATED, TopUpSerializer(made[-1]).data

        return self.once(key_required=True, action=ask, then=ask_provider)


class TopUpView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}

    @operation(
        summary="One top-up",
        responses={200: TopUpSerializer},
        refusals=("not_found",),
        operation_id="get_top_up",
    )
    def get(self, request: Request, payment_id: str) -> Response:
        rows = Payment.objects.visible_to(self.organization).filter(purpose=PaymentPurpose.TOP_UP)
        return Response(TopUpSerializer(find(rows, payment_id)).data)
