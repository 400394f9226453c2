"""How the provider's objects are read: each function makes a value of ours of one of its rows."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

from billing.provider_values import (
    ProviderAccount,
    ProviderCustomer,
    ProviderDispute,
    ProviderEvent,
    ProviderPayment,
    ProviderRefund,
    ProviderTransaction,
    ProviderTransfer,
)

INTENT_MARK = "intent_id"  # where our id stands in an object's metadata


def mark_of(row: Mapping[str, Any]) -> str:
    """Return our id of the intent that made an object; empty when somebody else did."""
    return str((row.get("metadata") or {}).get(INTENT_MARK, ""))


def customer_of(row: Mapping[str, Any]) -> ProviderCustomer:
    return ProviderCustomer(id=row["id"], intent_id=mark_of(row))


def payment_of(row: Mapping[str, Any]) -> ProviderPayment:
    charge = row.get("latest_charge")
    details = charge.get("payment_method_details") if isinstance(charge, Mapping) else None
    until = ((details or {}).get("card") or {}).get("capture_before")
    error = row.get("last_payment_error") or {}
    action = row.get("next_action") or {}
    return ProviderPayment(
        id=row["id"],
        intent_id=mark_of(row),
        state=row["status"],
        amount_minor=row["amount"],
        received_minor=row["amount_received"],
        currency=row["currency"],
        client_secret=row.get("client_secret") or "",
        charge_id=_id_of(charge),
        method_id=_id_of(row.get("payment_method")),
        capture_before=None if until is None else _instant(until),
        failure_code=str(error.get("decline_code") or error.get("code") or ""),
        failure_message=str(error.get("message") or ""),
        instructions=action.get("display_bank_transfer_instructions"),
        created_at=_instant(row["created"]),
    )


def refund_of(row: Mapping[str, Any]) -> ProviderRefund:
    return ProviderRefund(
        id=row["id"],
        intent_id=mark_of(row),
        state=row["status"],
        amount_minor=row["amount"],
        currency=row["currency"],
        payment_id=_id_of(row.get("payment_intent")),
        failure_code=str(row.get("failure_reason") or ""),
        created_at=_instant(row["created"]),
    )


def transfer_of(row: Mapping[str, Any]) -> ProviderTransfer:
    """Read a transfer, or the reversal of one, of which nothing is reversed again."""
    return ProviderTransfer(
        id=row["id"],
        intent_id=mark_of(row),
        amount_minor=row["amount"],
        reversed_minor=row.get("amount_reversed", 0),
        currency=row["currency"],
        created_at=_instant(row["created"]),
    )


def account_of(row: Mapping[str, Any]) -> ProviderAccount:
    recipient = (row.get("configuration") or {}).get("recipient") or {}
    balance = (recipient.get("capabilities") or {}).get("stripe_balance") or {}
    wanted = (row.get("requirements") or {}).get("entries") or []
    return ProviderAccount(
        id=row["id"],
        intent_id=mark_of(row),
        receives=(balance.get("stripe_transfers") or {}).get("status") == "active",
        missing=[str(entry.get("description", "")) for entry in wanted],
    )


def dispute_of(row: Mapping[str, Any]) -> ProviderDispute:
    bookings = row.get("balance_transactions") or []
    return ProviderDispute(
        id=row["id"],
        state=row["status"],
        amount_minor=row["amount"],
        taken_minor=-sum(booked["amount"] for booked in bookings),
        fee_minor=sum(booked["fee"] for booked in bookings),
        currency=row["currency"],
        payment_id=_id_of(row.get("payment_intent")),
        created_at=_instant(row["created"]),
    )


def transaction_of(row: Mapping[str, Any]) -> ProviderTransaction:
    return ProviderTransaction(
        id=row["id"],
        balance=row.get("balance_type") or "payments",  # older versions of the API knew one only
        category=row["reporting_category"],
        amount_minor=row["amount"],
        fee_minor=row["fee"],
        currency=row["currency"],
        source_id=_id_of(row.get("source")),
        available_at=_instant(row["available_on"]),
        created_at=_instant(row["created"]),
    )


def event_of(row: Mapping[str, Any], *, payload: str) -> ProviderEvent:
    """Read an event of either generation: with a snapshot of its object, or with its id alone."""
    subject = (row.get("data") or {}).get("object") or row.get("related_object") or {}
    created = row["created"]
    return ProviderEvent(
        id=str(row["id"]),
        type=str(row["type"]),
        object_id=str(subject.get("id", "")),
        payload=payload,
        created_at=_instant(created)
        if isinstance(created, int)
        else dt.datetime.fromisoformat(created),
    )


def _instant(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC)


def _id_of(value: Any) -> str:  # noqa: ANN401 - an id, or the object in its place
    if value is None:
        return ""
    return str(value["id"]) if isinstance(value, Mapping) else str(value)
