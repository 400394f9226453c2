"""`/v1/owner/payout-account`: where an owner's money goes, and the provider's form that makes it possible."""

from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.utils import OpenApiExample, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import onboarding, payment_methods, provider
from billing.models import PayoutAccount
from marketplace.api.fields import InstantField, StrictSerializer, TextField
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.states import Scope


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "An owner in Germany",
            value={"email": "finance@example.com", "country": "DE"},
            request_only=True,
        )
    ]
)
class PayoutAccountRequestSerializer(StrictSerializer):
    """Whom the provider writes to, and the country in which the owner is at home."""

    email = TextField(max_length=onboarding.EMAIL_LENGTH_MAX)
    country = TextField(max_length=2, form=r"[A-Z]{2}", help_text="ISO 3166-1 alpha-2")


class PayoutAccountSerializer(serializers.Serializer[PayoutAccount]):
    """The account that was asked for last."""

    id = serializers.CharField()
    receives = serializers.BooleanField(help_text="the provider lets money be sent to it")
    missing = serializers.ListField(
        child=serializers.CharField(), help_text="what the provider still wants to know"
    )
    usable_at = InstantField(
        allow_null=True,
        help_text="used from then on; null: another person has to approve the change first",
    )
    requested_at = InstantField()
    onboarding_url = serializers.SerializerMethodField(
        help_text="the provider's form; it works for minutes, and a new answer brings a new one"
    )

    def get_onboarding_url(self, account: PayoutAccount) -> str | None:
        url: str | None = self.context.get("onboarding_url")
        return url


class PayoutAccountView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ, "POST": Scope.BILLING_WRITE}

    @operation(
        summary="Where the owner's money goes",
        responses={200: PayoutAccountSerializer},
        refusals=("not_found", "onboarding_unavailable"),
        operation_id="get_payout_account",
    )
    def get(self, request: Request) -> Response:
        return Response(self._rendered(onboarding.latest(owner=self.organization)))

    @operation(
        summary="Ask for an account to be paid to, or change it",
        description="The first account is used as soon as the provider lets it receive. A change takes "
        "the market's approval and then days of cooling off, in which the old account stays in use.",
        request=PayoutAccountRequestSerializer,
        responses={201: PayoutAccountSerializer},
        refusals=(
            "payment_method_unavailable",
            "invalid_value",
            "state_conflict",
            "onboarding_unavailable",
        ),
        idempotency_key="required",
        operation_id="create_payout_account",
    )
    def post(self, request: Request) -> HttpResponse:
        body = self.body(PayoutAccountRequestSerializer)
        made: list[PayoutAccount] = []

        def ask() -> tuple[int, Any]:
            if not provider.is_connected():
                raise payment_methods.PaymentMethodUnavailable(
                    "No payment provider is connected here; an operator pays owners."
                )
            account = onboarding.ask(
                owner=self.organization,
                email=body["email"],
                country=body["country"],
                at=self.now,
                actor=self.caller.actor,
            )
            made.append(account)
            return HTTPStatus.CREATED, PayoutAccountSerializer(account).data

        def ask_provider() -> tuple[int, Any]:
            """Make the account at the provider; what fails here is tried again later."""
            provider.drive_subject(subject_id=made[-1].pk, at=self.now)
            made[-1].refresh_from_db()
            return HTTPStatus.CREATED, self._rendered(made[-1])

        return self.once(key_required=True, action=ask, then=ask_provider)

    def _rendered(self, account: PayoutAccount) -> Any:  # noqa: ANN401 - plain values to render
        context = {}
        if not account.receives and provider.is_connected():
            context["onboarding_url"] = onboarding.link(account=account)
        return PayoutAccountSerializer(account, context=context).data
