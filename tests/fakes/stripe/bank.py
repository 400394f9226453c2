"""Bank transfers: money that arrives on a customer's cash balance, and the payments that take it."""

from __future__ import annotations

from tests.fakes.stripe import payments
from tests.fakes.stripe.world import (
    ApiError,
    Object,
    Request,
    World,
    positive,
    required,
)


def await_bank_transfer(world: World, intent: Object) -> Object:
    if not intent["customer"]:
        raise ApiError(400, "A customer is required for customer_balance payments.")
    method = world.put(
        "pm",
        "payment_method",
        type="customer_balance",
        customer=intent["customer"],
        _behaves="bank",
        _is_authenticated=True,
    )
    intent |= {
        "payment_method": method["id"],
        "status": "requires_action",
        "next_action": {
            "type": "display_bank_transfer_instructions",
            "display_bank_transfer_instructions": {
                "amount_remaining": intent["amount"],
                "currency": intent["currency"],
                "reference": intent["id"][-8:].upper(),
                "type": "us_bank_transfer",
                "financial_addresses": [
                    {
                        "type": "aba",
                        "aba": {"account_number": "11119999", "routing_number": "110000000"},
                    }
                ],
            },
        },
    }
    world.emit("payment_intent.requires_action", intent)
    _apply_cash(world, intent["customer"])
    return intent


def fund_cash(world: World, request: Request, customer_id: str) -> Object:
    """Let money arrive by bank transfer; open payments take it, the oldest first."""
    customer = world.get(customer_id, "customer")
    currency = required(request.params, "currency")
    amount = positive(request.params, "amount")
    customer["_cash"][currency] = customer["_cash"].get(currency, 0) + amount
    row = world.put(
        "ccsbtxn",
        "customer_cash_balance_transaction",
        customer=customer_id,
        currency=currency,
        net_amount=amount,
        ending_balance=customer["_cash"][currency],
        type="funded",
    )
    world.emit("customer_cash_balance_transaction.created", row)
    _apply_cash(world, customer_id)
    return row


def read_cash(world: World, _request: Request, customer_id: str) -> Object:
    customer = world.get(customer_id, "customer")
    return {
        "object": "cash_balance",
        "customer": customer_id,
        "available": {c: a for c, a in customer["_cash"].items() if a},
        "livemode": False,
    }


def _apply_cash(world: World, customer_id: str) -> None:
    cash = world.get(customer_id, "customer")["_cash"]
    for intent in reversed(world.all("payment_intent")):
        waits = (intent["next_action"] or {}).get("type") == "display_bank_transfer_instructions"
        if intent["customer"] != customer_id or not waits:
            continue
        details = intent["next_action"]["display_bank_transfer_instructions"]
        paid = min(details["amount_remaining"], cash.get(intent["currency"], 0))
        if not paid:
            continue
        cash[intent["currency"]] -= paid
        details["amount_remaining"] -= paid
        if details["amount_remaining"]:
            world.emit("payment_intent.partially_funded", intent)
            continue
        intent["next_action"] = None
        method = world.get(intent["payment_method"], "payment_method")
        charge = payments.charge_of(world, intent, method)
        payments.settle_charge(world, intent, charge, amount=intent["amount"])
