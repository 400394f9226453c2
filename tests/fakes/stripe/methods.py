"""Customers, the cards they save, and the intents by which they save them."""

from __future__ import annotations

from typing import Any

from tests.fakes.stripe.world import (
    ApiError,
    Object,
    Request,
    World,
    metadata_of,
    required,
    truth,
)

AUTHENTICATE = "authentication_required"
# How a card behaves, by the name of the provider's own test cards.
CARDS: dict[str, str] = {
    "pm_card_visa": "pays",
    "pm_card_mastercard": "pays",
    "pm_card_bypassPending": "pays_at_once",
    "pm_card_visa_chargeDeclined": "generic_decline",
    "pm_card_chargeDeclined": "generic_decline",
    "pm_card_chargeDeclinedInsufficientFunds": "insufficient_funds",
    "pm_card_visa_chargeDeclinedInsufficientFunds": "insufficient_funds",
    "pm_card_chargeDeclinedExpiredCard": "expired_card",
    "pm_card_authenticationRequired": "asks",
    "pm_card_threeDSecure2Required": "asks",
    "pm_card_authenticationRequiredOnSetup": "asks_once",
    "pm_card_createDispute": "disputes",
    "pm_card_pendingRefund": "refund_pending",
    "pm_card_refundFail": "refund_fails",
}


def create_customer(world: World, request: Request) -> Object:
    customer = world.put(
        "cus",
        "customer",
        name=request.params.get("name"),
        email=request.params.get("email"),
        description=request.params.get("description"),
        metadata=metadata_of(request.params),
        invoice_settings={"default_payment_method": None},
        _cash={},
    )
    world.emit("customer.created", customer)
    return customer


def update_customer(world: World, request: Request, customer_id: str) -> Object:
    customer = world.get(customer_id, "customer")
    for name in ("name", "email", "description"):
        if name in request.params:
            customer[name] = request.params[name]
    customer["metadata"] |= metadata_of(request.params)
    chosen = (request.params.get("invoice_settings") or {}).get("default_payment_method")
    if chosen is not None:
        customer["invoice_settings"]["default_payment_method"] = chosen
    return customer


def method_named(world: World, name: str) -> Object:
    """Return a payment method, made on first use for the name of a test card.

    As at the provider itself, the name of a test card makes a new method each time.
    """
    if name in world.objects:
        return world.get(name, "payment_method")
    if name not in CARDS:
        raise ApiError(400, f"No such PaymentMethod: '{name}'", code="resource_missing")
    return world.put(
        "pm",
        "payment_method",
        type="card",
        customer=None,
        card={"brand": "visa", "last4": "4242", "exp_month": 12, "exp_year": 2040},
        _behaves=CARDS[name],
        _is_authenticated=False,
    )


def attach_method(world: World, request: Request, name: str) -> Object:
    method = method_named(world, name)
    method["customer"] = required(request.params, "customer")
    world.emit("payment_method.attached", method)
    return method


def detach_method(world: World, _request: Request, name: str) -> Object:
    method = world.get(name, "payment_method")
    method["customer"] = None
    return method


def list_methods(world: World, request: Request) -> Object:
    customer = required(request.params, "customer")
    rows = [m for m in world.all("payment_method") if m["customer"] == customer]
    return world.page(rows, request.params, url="/v1/payment_methods")


def create_setup(world: World, request: Request) -> Object:
    setup = world.put(
        "seti",
        "setup_intent",
        customer=request.params.get("customer"),
        usage=request.params.get("usage", "off_session"),
        status="requires_payment_method",
        payment_method=None,
        payment_method_types=["card"],
        last_setup_error=None,
        metadata=metadata_of(request.params),
    )
    setup["client_secret"] = f"{setup['id']}_secret_standin"
    world.emit("setup_intent.created", setup)
    if truth(request.params.get("confirm", "false")):
        return confirm_setup(world, request, setup["id"])
    return setup


def confirm_setup(world: World, request: Request, setup_id: str) -> Object:
    setup = world.get(setup_id, "setup_intent")
    method = method_named(world, required(request.params, "payment_method"))
    setup["payment_method"] = method["id"]
    if method["_behaves"] in {"generic_decline", "expired_card"}:
        setup["status"] = "requires_payment_method"
        setup["last_setup_error"] = card_error(method["_behaves"])
        world.emit("setup_intent.setup_failed", setup)
        raise ApiError(402, "Your card was declined.", stored=True, **setup["last_setup_error"])
    if method["_behaves"] in {"asks", "asks_once"}:
        setup["status"] = "requires_action"
        setup["next_action"] = {"type": "use_stripe_sdk"}
        return setup
    return finish_setup(world, setup, method)


def finish_setup(world: World, setup: Object, method: Object) -> Object:
    setup |= {"status": "succeeded", "next_action": None}
    method |= {"customer": setup["customer"], "_is_authenticated": True}
    world.emit("setup_intent.succeeded", setup)
    return setup


def card_error(reason: str) -> dict[str, Any]:
    messages = {
        AUTHENTICATE: "Your card was declined. This transaction requires authentication.",
        "insufficient_funds": "Your card has insufficient funds.",
        "expired_card": "Your card has expired.",
    }
    is_code = reason in {"expired_card", AUTHENTICATE}
    return {
        "kind": "card_error",
        "code": reason if is_code else "card_declined",
        "decline_code": None if reason == "expired_card" else reason,
        "message_text": messages.get(reason, "Your card was declined."),
    }
