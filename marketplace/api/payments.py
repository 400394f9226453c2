"""How payments through the provider look in answers, wherever they appear."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from billing import payments
from billing.models import Payment
from billing.provider_states import PaymentStatus
from marketplace.api.fields import ChoiceField, InstantField, MoneyField


class FailureSerializer(serializers.Serializer[Any]):
    """Why the last attempt to pay did not work."""

    code = serializers.CharField(help_text="the bank's or the provider's: `insufficient_funds`")
    detail = serializers.CharField()


class BankTransferSerializer(serializers.Serializer[Any]):
    """Where to send a bank transfer, and how much of it is still missing."""

    amount_remaining_minor = serializers.IntegerField()
    currency = serializers.CharField()
    reference = serializers.CharField(help_text="to be named with the transfer")
    accounts = serializers.ListField(
        child=serializers.DictField(), help_text="bank details, as the provider gives them"
    )


def failure_of(payment: Payment) -> dict[str, str] | None:
    if not payment.failure_code:
        return None
    return {"code": payment.failure_code, "detail": payment.failure_message}


def bank_transfer_of(payment: Payment) -> dict[str, object] | None:
    told = payment.instructions
    if told is None:
        return None
    return {
        "amount_remaining_minor": told.get("amount_remaining") or 0,
        "currency": told.get("currency") or payment.currency,
        "reference": told.get("reference") or "",
        "accounts": told.get("financial_addresses") or [],
    }


class CardPaymentSerializer(serializers.Serializer[Payment]):
    """How far a payment by card has come, of added hours or of a balance."""

    id = serializers.CharField()
    amount = MoneyField(minor="amount_minor", help_text="with tax")
    status = ChoiceField(choices=PaymentStatus.choices)
    due_at = InstantField(help_text="given up then")
    client_secret = serializers.SerializerMethodField()
    checkout_url = serializers.SerializerMethodField(help_text="a page on which it can be paid")
    failure = serializers.SerializerMethodField(help_text="why the last attempt did not work")

    @extend_schema_field(serializers.CharField(allow_null=True))
    def get_client_secret(self, payment: Payment) -> str | None:
        return (payment.client_secret or None) if payment.status in payments.OPEN_STATUSES else None

    @extend_schema_field(serializers.CharField(allow_null=True))
    def get_checkout_url(self, payment: Payment) -> str | None:
        return payments.page_url(payment=payment)

    @extend_schema_field(FailureSerializer(allow_null=True))
    def get_failure(self, payment: Payment) -> object:
        return failure_of(payment)
