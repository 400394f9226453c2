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
    currency = required(request.params, "currency")
    amount = positive(request.params, "amount")
    row = _move(world, customer_id, currency=currency, amount=amount, kind="funded")
    _apply_cash(world, customer_id)
    return row


def read_cash(world: World, _request: Request, customer_id: str) -> Object:
    customer = world.get(customer_id, "customer")
    return {
        "object": "cash_balance",
        "customer": customer_id,
        "available": {c: a for c, a in customer["_cash"].items() if a} or None,
        "livemode": False,
        "settings": {"reconciliation_mode": "automatic", "using_merchant_default": True},
    }


def give_back_cash(world: World, intent: Object) -> None:
    """Put what a payment had taken of a bank transfer back on the customer's cash balance."""
    details = (intent["next_action"] or {}).get("display_bank_transfer_instructions")
    if details is None or details["amount_remaining"] == intent["amount"]:
        return
    taken = intent["amount"] - details["amount_remaining"]
    _move(
        world,
        intent["customer"],
        currency=intent["currency"],
        amount=taken,
        kind="unapplied_from_payment",
    )


def tell_of_cash(world: World, customer_id: str) -> None:
    """Say that money is left when every payment has taken its part."""
    cash = read_cash(world, Request("GET", ""), customer_id)
    if cash["available"]:
        world.emit("cash_balance.funds_available", cash)


def _move(world: World, customer_id: str, *, currency: str, amount: int, kind: str) -> Object:
    """Write one movement of a cash balance; a negative amount leaves it."""
    cash = world.get(customer_id, "customer")["_cash"]
    cash[currency] = cash.get(currency, 0) + amount
    row = world.put(
        "ccsbtxn",
        "customer_cash_balance_transaction",
        customer=customer_id,
        currency=currency,
        net_amount=amount,
        ending_balance=cash[currency],
        type=kind,
    )
    world.emit("customer_cash_balance_transaction.created", row)
    return row


def _apply_cash(world: World, customer_id: str) -> None:
    cash = world.get(customer_id, "customer")["_cash"]
    for intent in reversed(world.all("payment_intent")):
        waits = (intent["next_action"] or {}).get("type") == "display_bank_transfer_instructions"
        if intent["customer"] != customer_id or not waits:
            continue
        details = intent["next_action"]["display_bank_transfer_instructions"]
        currency = intent["currency"]
        paid = min(details["amount_remaining"], cash.get(currency, 0))
        if not paid:
            continue
        _move(world, customer_id, currency=currency, amount=-paid, kind="applied_to_payment")
        details["amount_remaining"] -= paid
        if details["amount_remaining"]:
            world.emit("payment_intent.partially_funded", intent)
            continue
        intent["next_action"] = None
        method = world.get(intent["payment_method"], "payment_method")
        charge = payments.charge_of(world, intent, method)
        payments.settle_charge(world, intent, charge, amount=intent["amount"])
    tell_of_cash(world, customer_id)
