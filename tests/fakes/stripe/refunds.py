"""Refunds: at once, pending, and failed after they had seemed to succeed."""

from __future__ import annotations

from tests.fakes.stripe import balance, currencies
from tests.fakes.stripe.world import (
    DAY_SECONDS,
    ApiError,
    Object,
    Request,
    World,
    metadata_of,
    positive,
    required,
)

REFUND_PENDING_SECONDS = DAY_SECONDS


def create_refund(world: World, request: Request) -> Object:
    params = request.params
    if params.get("charge"):
        charge = world.get(params["charge"], "charge")
    else:
        intent = world.get(required(params, "payment_intent"), "payment_intent")
        if not intent["latest_charge"] or not intent["amount_received"]:
            raise ApiError(400, "This PaymentIntent does not have a successful charge to refund.")
        charge = world.get(intent["latest_charge"], "charge")
    rest = charge["amount_captured"] - charge["amount_refunded"]
    if not rest:
        raise ApiError(
            400, "This charge has already been refunded.", code="charge_already_refunded"
        )
    amount = positive(params, "amount", default=rest)
    currencies.require_step(amount, charge["currency"])
    if amount > rest:
        raise ApiError(
            400,
            f"Refund amount ({amount}) is greater than unrefunded amount on charge ({rest}).",
            code="amount_too_large",
            param="amount",
        )
    if charge["disputed"]:
        dispute = world.get(charge["dispute"], "dispute")
        is_taken = dispute["status"] != "won" and not balance.is_inquiry(dispute)
        if is_taken and amount > rest - dispute["amount"]:
            raise ApiError(400, "This charge has been charged back.", code="charge_disputed")
    refund = world.put(
        "re",
        "refund",
        amount=amount,
        charge=charge["id"],
        payment_intent=charge["payment_intent"],
        currency=charge["currency"],
        metadata=metadata_of(params),
        reason=params.get("reason"),
        status="pending",
        failure_reason=None,
        balance_transaction=None,
        failure_balance_transaction=None,
    )
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount_captured"]
    short = balance.available_of(world, charge["currency"]) < amount
    _, pending = balance.amounts(world)
    # The provider takes refunds out of what is still on its way to the balance as well.
    covered = not short or pending.get(charge["currency"], 0) >= amount
    refund["_charge_waits"] = not covered
    world.emit("refund.created", refund)
    if charge["_behaves"] != "refund_pending" and covered:
        _finish_refund(world, refund)
    world.emit("charge.refunded", charge)
    return refund


def _finish_refund(world: World, refund: Object) -> None:
    row = balance.move(
        world,
        source=refund,
        kind="refund",
        category="refund",
        amount=-refund["amount"],
        currency=refund["currency"],
    )
    refund |= {"status": "succeeded", "balance_transaction": row["id"]}
    world.emit("refund.updated", refund)


def settle_refunds(world: World) -> None:
    """Finish the pending refunds, and fail those of cards that cannot take money back."""
    for refund in reversed(world.all("refund")):
        age = world.now() - refund["created"]
        charge = world.get(refund["charge"], "charge")
        if refund["status"] == "pending" and age >= REFUND_PENDING_SECONDS:
            if balance.available_of(world, refund["currency"]) >= refund["amount"]:
                _finish_refund(world, refund)
        elif (
            refund["status"] == "succeeded"
            and charge["_behaves"] == "refund_fails"
            and age >= REFUND_PENDING_SECONDS
        ):
            fail_refund(world, refund["id"])


def fail_refund(world: World, refund_id: str) -> Object:
    """Let a refund come back: the card is closed."""
    refund = world.get(refund_id, "refund")
    if refund["status"] == "failed":
        return refund
    charge = world.get(refund["charge"], "charge")
    if refund["status"] == "succeeded":
        row = balance.move(
            world,
            source=refund,
            kind="refund_failure",
            category="refund_failure",
            amount=refund["amount"],
            currency=refund["currency"],
        )
        refund["failure_balance_transaction"] = row["id"]
    refund |= {"status": "failed", "failure_reason": "lost_or_stolen_card"}
    charge["amount_refunded"] -= refund["amount"]
    charge["refunded"] = False
    world.emit("refund.failed", refund)
    return refund


def list_refunds(world: World, request: Request) -> Object:
    rows = world.all("refund")
    for name in ("payment_intent", "charge"):
        if name in request.params:
            rows = [row for row in rows if row[name] == request.params[name]]
    return world.page(rows, request.params, url="/v1/refunds")
