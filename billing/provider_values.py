"""What the provider says, as values of ours, and what a call to it can end in."""

import datetime as dt
from dataclasses import dataclass
from typing import Any


class GatewayError(Exception):
    """Base of what a call to the provider can end in, other than its effect."""


class OutcomeUnknown(GatewayError):
    """No answer, or one of the provider's own faults: it may have happened or not."""


class TryLater(GatewayError):
    """It has not happened, and the provider says nothing of why it could not."""


class KeyMismatch(GatewayError):
    """The idempotency key was used with other parameters: a fault of ours that a person must look at."""


class Refusal(GatewayError):
    """It has not happened: the provider, or a bank, says no."""

    def __init__(self, *, code: str, message: str, object_id: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.object_id = object_id


class BadSignature(GatewayError):
    """A webhook that the provider did not sign with any of our secrets, or signed too long ago."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderPayment:
    id: str
    intent_id: str
    state: str
    amount_minor: int
    received_minor: int
    currency: str
    client_secret: str
    charge_id: str
    method_id: str
    capture_before: dt.datetime | None
    failure_code: str
    failure_message: str
    instructions: dict[str, Any] | None
    created_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRefund:
    id: str
    intent_id: str
    state: str
    amount_minor: int
    currency: str
    payment_id: str
    failure_code: str
    created_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTransfer:
    """A transfer to an owner, or the reversal of one: then `id` is the reversal's."""

    id: str
    intent_id: str
    amount_minor: int
    reversed_minor: int
    currency: str
    created_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderAccount:
    id: str
    intent_id: str
    receives: bool
    missing: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCustomer:
    id: str
    intent_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderDispute:
    """A dispute, or what may become one; `taken_minor` is what left our balance for it and is not back."""

    id: str
    state: str
    amount_minor: int
    taken_minor: int
    fee_minor: int
    currency: str
    payment_id: str
    created_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTransaction:
    id: str
    balance: str
    category: str
    amount_minor: int
    fee_minor: int
    currency: str
    source_id: str
    available_at: dt.datetime
    created_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderEvent:
    id: str
    type: str
    object_id: str
    payload: str
    created_at: dt.datetime
