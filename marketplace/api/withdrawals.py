"""`/v1/wallet/withdrawals`: prepaid money, back to where it came from."""

from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import withdrawals
from billing.chargeable import MOST_MINOR
from billing.models import Withdrawal, WithdrawalPart
from billing.provider_states import CardRefundStatus
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneyField,
    PageQuery,
    StrictSerializer,
    TextField,
    WholeNumberField,
)
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.core.money import Money
from marketplace.states import Scope

_STATUSES = ("waiting", "carried_out", "refused")


class WithdrawnAmountSerializer(StrictSerializer):
    """How much, in integer minor units."""

    amount_minor = WholeNumberField(min_value=1, max_value=MOST_MINOR)
    currency = TextField(max_length=3, form=r"[a-z]{3}")


class WithdrawalRequestSerializer(StrictSerializer):
    """How much is to go back."""

    amount = WithdrawnAmountSerializer()


class WithdrawalPartSerializer(serializers.Serializer[WithdrawalPart]):
    """What goes back the way a top-up came; of one that failed the money is in the wallet again."""

    refund_id = serializers.CharField()
    top_up_id = serializers.CharField(source="refund.payment_id")
    amount = MoneyField(source="refund")
    status = ChoiceField(source="refund.status", choices=CardRefundStatus.choices)


class WithdrawalSerializer(serializers.Serializer[Withdrawal]):
    """`waiting`: two of the market's operators decide; until then the money is in the wallet."""

    id = serializers.CharField()
    status = serializers.SerializerMethodField()
    amount = MoneyField(minor="amount_minor")
    parts = WithdrawalPartSerializer(many=True, help_text="what goes back the way it came")
    by_bank = MoneyField(minor="bank_minor", help_text="what goes to a bank account instead")
    requested_at = InstantField()
    carried_out_at = InstantField(allow_null=True)

    @extend_schema_field(ChoiceField(choices=[(word, word) for word in _STATUSES]))
    def get_status(self, row: Withdrawal) -> str:
        if row.carried_out_at is not None:
            return "carried_out"
        return "refused" if getattr(row, "is_refused", False) else "waiting"


WithdrawalPage = page_serializer(WithdrawalSerializer, name="WithdrawalPage")


class WithdrawalsView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ, "POST": Scope.BILLING_WRITE}
    queries: ClassVar = {"GET": PageQuery}

    @operation(
        summary="Withdrawals, newest first",
        responses={200: WithdrawalPage},
        query=PageQuery,
        operation_id="list_withdrawals",
    )
    def get(self, request: Request) -> Response:
        rows = Withdrawal.objects.visible_to(self.organization).with_refusal()
        page = page_of(rows.prefetch_related("parts__refund"), query=self.query)
        return Response(WithdrawalPage(page).data)

    @operation(
        summary="Take money out of the wallet",
        description="It goes back to the cards and accounts that topped the wallet up, the newest first. "
        "What cannot go that way, and large sums, wait for two of the market's operators. Promotions, and "
        "what is owed on invoices, cannot be withdrawn.",
        request=WithdrawalRequestSerializer,
        responses={201: WithdrawalSerializer},
        refusals=("withdrawal_refused", "state_conflict", "money_parked", "invalid_value"),
        idempotency_key="required",
        operation_id="create_withdrawal",
    )
    def post(self, request: Request) -> HttpResponse:
        amount = self.body(WithdrawalRequestSerializer)["amount"]

        def act() -> tuple[int, Any]:
            made = withdrawals.request(
                organization=self.organization,
                amount=Money(amount["amount_minor"], amount["currency"]),
                at=self.now,
                actor=self.caller.actor,
            )
            return HTTPStatus.CREATED, WithdrawalSerializer(made).data

        return self.once(key_required=True, action=act)


class WithdrawalView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}

    @operation(
        summary="One withdrawal",
        responses={200: WithdrawalSerializer},
        refusals=("not_found",),
        operation_id="get_withdrawal",
    )
    def get(self, request: Request, withdrawal_id: str) -> Response:
        rows = Withdrawal.objects.visible_to(self.organization).with_refusal()
        return Response(WithdrawalSerializer(find(rows, withdrawal_id)).data)
