"""The balances of the platform and of connected accounts: every movement is a balance transaction."""

from __future__ import annotations

from typing import Any

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

CARD_FUNDS_PENDING_SECONDS = 2 * DAY_SECONDS
DISPUTE_FEE_MINOR = 1500
PAYOUT_ARRIVES_SECONDS = DAY_SECONDS


def card_fee(amount: int) -> int:
    """Return 2.9 % and 30 minor units."""
    return (amount * 29 + 500) // 1000 + 30


def move(
    world: World,
    *,
    source: Object,
    kind: str,
    category: str,
    amount: int,
    fee: int = 0,
    currency: str,
    pending_seconds: int = 0,
    account: str | None = None,
) -> Object:
    """Write a balance transaction; a negative amount leaves the balance."""
    available_on = world.now() + pending_seconds
    return world.put(
        "txn",
        "balance_transaction",
        amount=amount,
        fee=fee,
        net=amount - fee,
        currency=currency,
        type=kind,
        reporting_category=category,
        source=source["id"],
        available_on=available_on,
        status="available" if pending_seconds == 0 else "pending",
        fee_details=[{"amount": fee, "currency": currency, "type": "stripe_fee"}] if fee else [],
        _account=account,
    )


def amounts(world: World, *, account: str | None = None) -> tuple[dict[str, int], dict[str, int]]:
    """Return what is available and what is pending, per currency."""
    available: dict[str, int] = {}
    pending: dict[str, int] = {}
    for row in world.all("balance_transaction"):
        if row["_account"] != account:
            continue
        is_due = row["available_on"] <= world.now()
        row["status"] = "available" if is_due else "pending"
        side = available if is_due else pending
        side[row["currency"]] = side.get(row["currency"], 0) + row["net"]
    return available, pending


def available_of(world: World, currency: str, *, account: str | None = None) -> int:
    return amounts(world, account=account)[0].get(currency, 0)


def read_balance(world: World, request: Request) -> Object:
    available, pending = amounts(world, account=request.account)
    return {
        "object": "balance",
        "livemode": False,
        "available": [{"amount": a, "currency": c} for c, a in sorted(available.items())],
        "pending": [{"amount": a, "currency": c} for c, a in sorted(pending.items())],
    }


def list_transactions(world: World, request: Request) -> Object:
    amounts(world, account=request.account)
    rows = [r for r in world.all("balance_transaction") if r["_account"] == request.account]
    for name in ("source", "type", "currency", "payout"):
        if name in request.params:
            rows = [r for r in rows if r.get(name) == request.params[name]]
    return world.page(rows, request.params, url="/v1/balance_transactions")


def read_transaction(world: World, request: Request, object_id: str) -> Object:
    amounts(world, account=request.account)
    return world.get(object_id, "balance_transaction")


# --- payouts to a bank account --------------------------------------------------------------------


def create_payout(world: World, request: Request) -> Object:
    amount, currency = positive(request.params, "amount"), required(request.params, "currency")
    if available_of(world, currency, account=request.account) < amount:
        raise ApiError(
            400, "You have insufficient funds in your balance.", code="balance_insufficient"
        )
    payout = world.put(
        "po",
        "payout",
        amount=amount,
        currency=currency,
        status="pending",
        automatic=False,
        arrival_date=world.now() + PAYOUT_ARRIVES_SECONDS,
        reconciliation_status="not_applicable",
        failure_code=None,
        metadata=metadata_of(request.params),
        _account=request.account,
    )
    row = move(
        world,
        source=payout,
        kind="payout",
        category="payout",
        amount=-amount,
        currency=currency,
        account=request.account,
    )
    payout["balance_transaction"] = row["id"]
    world.emit("payout.created", payout, account=request.account)
    return payout


def settle_payouts(world: World) -> None:
    """Let the payouts arrive whose time has come."""
    for payout in world.all("payout"):
        if payout["status"] == "pending" and payout["arrival_date"] <= world.now():
            payout["status"] = "paid"
            world.emit("payout.paid", payout, account=payout["_account"])


def fail_payout(world: World, payout_id: str) -> Object:
    """Bring a payout back: the bank account is closed."""
    payout = world.get(payout_id, "payout")
    payout |= {"status": "failed", "failure_code": "account_closed"}
    move(
        world,
        source=payout,
        kind="payout_failure",
        category="payout_reversal",
        amount=payout["amount"],
        currency=payout["currency"],
        account=payout["_account"],
    )
    world.emit("payout.failed", payout, account=payout["_account"])
    return payout


# --- disputes -------------------------------------------------------------------------------------


def open_dispute(world: World, charge_id: str, *, amount: int | None = None) -> Object:
    """Let a card holder dispute a charge: the money and a fee leave at once."""
    dispute = _ask(world, charge_id, amount=amount, status="needs_response")
    world.emit("charge.dispute.created", dispute)
    _withdraw(world, dispute)
    return dispute


def open_inquiry(world: World, charge_id: str, *, amount: int | None = None) -> Object:
    """Let a card holder's bank ask about a charge before it disputes it: no money leaves."""
    inquiry = _ask(world, charge_id, amount=amount, status="warning_needs_response")
    world.emit("charge.dispute.created", inquiry)
    return inquiry


def close_inquiry(world: World, dispute_id: str) -> Object:
    """Let a bank be content with what it was told."""
    inquiry = _inquiry(world, dispute_id)
    inquiry["status"] = "warning_closed"
    world.emit("charge.dispute.closed", inquiry)
    return inquiry


def escalate_inquiry(world: World, dispute_id: str) -> Object:
    """Let a bank make a dispute of what it asked about: the money and a fee leave now."""
    inquiry = _inquiry(world, dispute_id)
    inquiry |= {"status": "needs_response", "is_charge_refundable": False}
    world.emit("charge.dispute.updated", inquiry)
    _withdraw(world, inquiry)
    return inquiry


def prevent_dispute(world: World, charge_id: str, *, refunded: bool) -> Object:
    """End a dispute before it is filed; `refunded` has the card's network give its holder the money."""
    dispute = _ask(world, charge_id, amount=None, status="prevented")
    world.emit("charge.dispute.created", dispute)
    if refunded:
        _withdraw(world, dispute, fee=0)
    world.emit("charge.dispute.closed", dispute)
    return dispute


def is_inquiry(dispute: Object) -> bool:
    return str(dispute["status"]).startswith("warning_")


def _inquiry(world: World, dispute_id: str) -> Object:
    inquiry = world.get(dispute_id, "dispute")
    if inquiry["status"] not in ("warning_needs_response", "warning_under_review"):
        raise ApiError(400, f"{dispute_id} is no open inquiry.")
    return inquiry


def _ask(world: World, charge_id: str, *, amount: int | None, status: str) -> Object:
    charge = world.get(charge_id, "charge")
    disputed = amount or charge["amount"] - charge["amount_refunded"]
    dispute = world.put(
        "dp",
        "dispute",
        amount=disputed,
        currency=charge["currency"],
        charge=charge["id"],
        payment_intent=charge["payment_intent"],
        reason="fraudulent",
        status=status,
        is_charge_refundable=status.startswith("warning_"),
        evidence={},
        evidence_details={"due_by": world.now() + 7 * DAY_SECONDS, "submission_count": 0},
        balance_transactions=[],
        metadata={},
    )
    charge |= {"disputed": True, "dispute": dispute["id"]}
    return dispute


def _withdraw(world: World, dispute: Object, *, fee: int = DISPUTE_FEE_MINOR) -> None:
    row = move(
        world,
        source=dispute,
        kind="adjustment",
        category="dispute",
        amount=-dispute["amount"],
        fee=fee,
        currency=dispute["currency"],
    )
    dispute["balance_transactions"].append(world.shown(row))
    world.emit("charge.dispute.funds_withdrawn", dispute)


def close_dispute(world: World, dispute_id: str, *, won: bool) -> Object:
    """Decide a dispute: won, the amount comes back and the fee does not."""
    dispute = world.get(dispute_id, "dispute")
    dispute["status"] = "won" if won else "lost"
    if won:
        row = move(
            world,
            source=dispute,
            kind="adjustment",
            category="dispute_reversal",
            amount=dispute["amount"],
            currency=dispute["currency"],
        )
        dispute["balance_transactions"].append(world.shown(row))
        world.emit("charge.dispute.funds_reinstated", dispute)
    world.emit("charge.dispute.closed", dispute)
    return dispute


def update_dispute(world: World, request: Request, dispute_id: str) -> Object:
    dispute = world.get(dispute_id, "dispute")
    evidence: dict[str, Any] = request.params.get("evidence") or {}
    dispute["evidence"] |= evidence
    if evidence and dispute["status"] in ("needs_response", "warning_needs_response"):
        dispute["status"] = dispute["status"].replace("needs_response", "under_review")
        dispute["evidence_details"]["submission_count"] += 1
    world.emit("charge.dispute.updated", dispute)
    return dispute


def accept_dispute(world: World, _request: Request, dispute_id: str) -> Object:
    return close_dispute(world, dispute_id, won=False)
