"""How payments through the provider look in answers, wherever they appear."""

from typing import Any

from rest_framework import serializers

from billing.models import Payment


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
