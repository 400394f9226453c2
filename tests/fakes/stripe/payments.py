"""Payment intents and their charges: automatic, held, asked for, declined."""

from __future__ import annotations

from typing import Any

from tests.fakes.stripe import balance, bank, currencies
from tests.fakes.stripe.methods import AUTHENTICATE, card_error, finish_setup, method_named
from tests.fakes.stripe.world import (
    DAY_SECONDS,
    ApiError,
    Object,
    Request,
    World,
    metadata_of,
    positive,
    required,
    truth,
)

HOLD_LIVES_SECONDS = 7 * DAY_SECONDS
OPEN = ("requires_payment_method", "requires_confirmation", "requires_action", "requires_capture")


def create_intent(world: World, request: Request) -> Object:
    params = request.params
    amount, currency = positive(params, "amount"), str(required(params, "currency"))
    currencies.require_charge(amount, currency)
    if params.get("customer"):
        world.get(params["customer"], "customer")
    types = params.get("payment_method_types")
    if not types and truth((params.get("automatic_payment_methods") or {}).get("enabled")):
        types = ["card", "customer_balance"] if params.get("customer") else ["card"]
    intent = world.put(
        "pi",
        "payment_intent",
        amount=amount,
        amount_capturable=0,
        amount_received=0,
        currency=currency,
        customer=params.get("customer"),
        capture_method=params.get("capture_method", "automatic"),
        confirmation_method="automatic",
        description=params.get("description"),
        last_payment_error=None,
        latest_charge=None,
        metadata=metadata_of(params),
        next_action=None,
        payment_method=None,
        payment_method_types=types or ["card"],
        setup_future_usage=params.get("setup_future_usage"),
        status="requires_payment_method",
        cancellation_reason=None,
        canceled_at=None,
        transfer_group=params.get("transfer_group"),
        _off_session=truth(params.get("off_session", "false")),
    )
    intent["client_secret"] = f"{intent['id']}_secret_standin"
    world.emit("payment_intent.created", intent)
    if truth(params.get("confirm", "false")):
        return confirm_intent(world, request, intent["id"])
    if params.get("payment_method"):
        intent["payment_method"] = method_named(world, params["payment_method"])["id"]
        intent["status"] = "requires_confirmation"
    return intent


def confirm_intent(world: World, request: Request, intent_id: str) -> Object:
    intent = _fresh(world, intent_id)
    if intent["status"] not in {
        "requires_payment_method",
        "requires_confirmation",
        "requires_action",
    }:
        raise _unexpected_state(intent, "confirm")
    params = request.params
    data = params.get("payment_method_data") or {}
    if data.get("type") == "customer_balance":
        return bank.await_bank_transfer(world, intent)
    name = params.get("payment_method") or intent["payment_method"]
    if not name:
        raise ApiError(
            400,
            "You cannot confirm this PaymentIntent because it's missing a payment method.",
            code="payment_intent_unexpected_state",
        )
    method = method_named(world, name)
    intent["_off_session"] = truth(params.get("off_session", "false"))
    if intent["_off_session"] and intent["customer"] and method["customer"] != intent["customer"]:
        raise ApiError(
            400,
            "The PaymentMethod does not belong to the Customer.",
            code="payment_method_unexpected_state",
        )
    intent["payment_method"] = method["id"]
    behaves = method["_behaves"]
    if behaves in {"generic_decline", "insufficient_funds", "expired_card"}:
        raise _decline(world, intent, reason=behaves)
    if behaves == "asks" or (behaves == "asks_once" and not method["_is_authenticated"]):
        if intent["_off_session"]:
            raise _decline(world, intent, reason=AUTHENTICATE)
        intent["status"] = "requires_action"
        intent["next_action"] = {"type": "use_stripe_sdk"}
        world.emit("payment_intent.requires_action", intent)
        return intent
    return _authorize(world, intent, method)


def authenticate(world: World, intent_id: str, *, passed: bool = True) -> Object:
    """Let a person answer the bank's question about a payment or a saved card."""
    if intent_id.startswith("seti_"):
        setup = world.get(intent_id, "setup_intent")
        return finish_setup(world, setup, world.get(setup["payment_method"], "payment_method"))
    intent = _fresh(world, intent_id)
    if intent["status"] != "requires_action":
        raise _unexpected_state(intent, "authenticate")
    if passed:
        method = world.get(intent["payment_method"], "payment_method")
        method["_is_authenticated"] = True
        return _authorize(world, intent, method)
    intent["next_action"] = None
    error = {
        "kind": "invalid_request_error",
        "code": "payment_intent_authentication_failure",
    }
    _fail_attempt(world, intent, error)
    return intent


def capture_intent(world: World, request: Request, intent_id: str) -> Object:
    intent = _fresh(world, intent_id)
    if intent["status"] != "requires_capture":
        raise _unexpected_state(intent, "capture")
    amount = positive(request.params, "amount_to_capture", default=intent["amount"])
    if amount > intent["amount_capturable"]:
        raise ApiError(
            400,
            "The amount to capture is larger than what is authorized.",
            code="amount_too_large",
        )
    charge = world.get(intent["latest_charge"], "charge")
    settle_charge(world, intent, charge, amount=amount)
    return intent


def cancel_intent(world: World, request: Request, intent_id: str) -> Object:
    intent = _fresh(world, intent_id)
    if intent["status"] not in OPEN:
        raise _unexpected_state(intent, "cancel")
    return _cancel(world, intent, reason=request.params.get("cancellation_reason"))


def read_intent(world: World, _request: Request, intent_id: str) -> Object:
    return _fresh(world, intent_id)


def list_intents(world: World, request: Request) -> Object:
    rows = world.all("payment_intent")
    if "customer" in request.params:
        rows = [row for row in rows if row["customer"] == request.params["customer"]]
    return world.page(rows, request.params, url="/v1/payment_intents")


def expire_holds(world: World) -> None:
    """Release the authorizations that nobody captured in time."""
    for intent in world.all("payment_intent"):
        _fresh(world, intent["id"])


def _fresh(world: World, intent_id: str) -> Object:
    intent = world.get(intent_id, "payment_intent")
    if intent["status"] == "requires_capture":
        charge = world.get(intent["latest_charge"], "charge")
        if charge["payment_method_details"]["card"]["capture_before"] <= world.now():
            _cancel(world, intent, reason="automatic")
    return intent


def _cancel(world: World, intent: Object, *, reason: str | None) -> Object:
    if intent["latest_charge"] and not intent["amount_received"]:
        charge = world.get(intent["latest_charge"], "charge")
        if charge["status"] == "succeeded" and not charge["captured"]:
            charge |= {"refunded": True, "amount_refunded": charge["amount"]}
    bank.give_back_cash(world, intent)
    intent |= {
        "status": "canceled",
        "cancellation_reason": reason,
        "canceled_at": world.now(),
        "amount_capturable": 0,
        "next_action": None,
    }
    world.emit("payment_intent.canceled", intent)
    if intent["customer"]:
        bank.tell_of_cash(world, intent["customer"])
    return intent


def charge_of(world: World, intent: Object, method: Object, **values: Any) -> Object:
    charge = world.put(
        "ch",
        "charge",
        amount=intent["amount"],
        amount_captured=0,
        amount_refunded=0,
        balance_transaction=None,
        captured=False,
        currency=intent["currency"],
        customer=intent["customer"],
        disputed=False,
        dispute=None,
        failure_code=None,
        failure_message=None,
        metadata=dict(intent["metadata"]),
        paid=True,
        payment_intent=intent["id"],
        payment_method=method["id"],
        payment_method_details={"type": method["type"]},
        refunded=False,
        status="succeeded",
        transfer_group=intent["transfer_group"],
        _behaves=method["_behaves"],
    )
    charge |= values
    intent["latest_charge"] = charge["id"]
    return charge


def _authorize(world: World, intent: Object, method: Object) -> Object:
    intent |= {"next_action": None, "last_payment_error": None}
    if intent["setup_future_usage"] and intent["customer"]:
        method |= {"customer": intent["customer"], "_is_authenticated": True}
    charge = charge_of(world, intent, method)
    card: dict[str, Any] = {"brand": "visa", "last4": "4242"}
    charge["payment_method_details"]["card"] = card
    if intent["capture_method"] == "manual":
        card["capture_before"] = world.now() + HOLD_LIVES_SECONDS
        intent |= {"status": "requires_capture", "amount_capturable": intent["amount"]}
        world.emit("payment_intent.amount_capturable_updated", intent)
        return intent
    settle_charge(world, intent, charge, amount=intent["amount"])
    return intent


def settle_charge(world: World, intent: Object, charge: Object, *, amount: int) -> None:
    behaves = charge["_behaves"]
    is_instant = behaves in {"pays_at_once", "bank"}
    row = balance.move(
        world,
        source=charge,
        kind="charge",
        category="charge",
        amount=amount,
        fee=0 if behaves == "bank" else balance.card_fee(amount),
        currency=charge["currency"],
        pending_seconds=0 if is_instant else balance.CARD_FUNDS_PENDING_SECONDS,
    )
    charge |= {"captured": True, "amount_captured": amount, "balance_transaction": row["id"]}
    intent |= {"status": "succeeded", "amount_received": amount, "amount_capturable": 0}
    world.emit("charge.succeeded", charge)
    world.emit("payment_intent.succeeded", intent)
    if behaves == "disputes":
        balance.open_dispute(world, charge["id"])


def _fail_attempt(world: World, intent: Object, error: dict[str, Any]) -> None:
    intent["last_payment_error"] = {
        "type": error["kind"],
        "code": error["code"],
        "decline_code": error.get("decline_code"),
        "message": error.get("message_text", "The bank did not confirm the payment."),
    }
    intent["status"] = "requires_payment_method"
    intent["payment_method"] = None
    world.emit("payment_intent.payment_failed", intent)


def _decline(world: World, intent: Object, *, reason: str) -> ApiError:
    error = card_error(reason)
    method = world.get(intent["payment_method"], "payment_method")
    charge = charge_of(
        world, intent, method, status="failed", paid=False, failure_code=error["code"]
    )
    _fail_attempt(world, intent, error)
    return ApiError(
        402,
        error["message_text"],
        kind="card_error",
        code=error["code"],
        stored=True,
        decline_code=error["decline_code"],
        charge=charge["id"],
        payment_intent=world.shown(intent),
    )


def _unexpected_state(intent: Object, verb: str) -> ApiError:
    return ApiError(
        400,
        f"You cannot {verb} this PaymentIntent because it has a status of {intent['status']}.",
        code="payment_intent_unexpected_state",
        payment_intent={"id": intent["id"], "object": "payment_intent", "status": intent["status"]},
    )
