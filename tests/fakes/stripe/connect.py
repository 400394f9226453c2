"""Connected accounts that receive transfers, the links that onboard them, transfers and their reversals."""

from __future__ import annotations

import datetime as dt
from typing import Any

from tests.fakes.stripe import balance
from tests.fakes.stripe.world import (
    PAGE_DEFAULT,
    PAGE_MAX,
    ApiError,
    Object,
    Request,
    World,
    metadata_of,
    positive,
    required,
)

LINK_LIVES_SECONDS = 300


def _capability(account: Object) -> dict[str, Any]:
    found: dict[str, Any] = account["configuration"]["recipient"]["capabilities"]["stripe_balance"][
        "stripe_transfers"
    ]
    return found


def create_account(world: World, request: Request) -> Object:
    wanted = (request.params.get("configuration") or {}).get("recipient")
    account = world.put(
        "acct",
        "v2.core.account",
        applied_configurations=["recipient"] if wanted is not None else [],
        contact_email=request.params.get("contact_email"),
        display_name=request.params.get("display_name"),
        dashboard=request.params.get("dashboard", "express"),
        identity=request.params.get("identity") or {},
        defaults=request.params.get("defaults") or {},
        metadata=metadata_of(request.params),
        closed=False,
        configuration={
            "recipient": {
                "applied": True,
                "capabilities": {
                    "stripe_balance": {
                        "stripe_transfers": {"status": "restricted", "status_details": []}
                    }
                },
            }
        },
        requirements={"entries": [{"description": "external_account", "minimum_deadline": None}]},
        _destination=None,
    )
    account["created"] = _instant(world)
    world.emit("v2.core.account.created", account)
    return account


def list_accounts(world: World, request: Request) -> Object:
    """Return one page of the accounts, newest first, as lists of the second generation look."""
    limit = int(request.params.get("limit", PAGE_DEFAULT))
    if not 1 <= limit <= PAGE_MAX:
        raise ApiError(400, f"limit must be from 1 to {PAGE_MAX}", param="limit")
    rows = world.all("v2.core.account")
    token = request.params.get("page")
    start = 0 if token is None else [row["id"] for row in rows].index(token) + 1
    picked = rows[start : start + limit]
    has_more = len(rows) > start + limit
    following = f"/v2/core/accounts?limit={limit}&page={picked[-1]['id']}" if has_more else None
    return {"data": [world.shown(row) for row in picked], "next_page_url": following}


def read_account(world: World, _request: Request, account_id: str) -> Object:
    return world.get(account_id, "v2.core.account")


def create_link(world: World, request: Request) -> Object:
    account = world.get(required(request.params, "account"), "v2.core.account")
    number = world.new_id("link")
    expires = dt.datetime.fromtimestamp(world.now() + LINK_LIVES_SECONDS, tz=dt.UTC)
    return {
        "object": "v2.core.account_link",
        "account": account["id"],
        "created": _instant(world),
        "livemode": False,
        "expires_at": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "url": f"{world.base_url}/_pages/onboarding/{account['id']}?link={number}",
        "use_case": request.params.get("use_case") or {},
    }


def set_capability(world: World, account_id: str, *, status: str) -> Object:
    """Let an account finish its onboarding, or lose what it had."""
    account = world.get(account_id, "v2.core.account")
    capability = _capability(account)
    capability["status"] = status
    capability["status_details"] = (
        []
        if status == "active"
        else [{"code": "requirements_past_due", "resolution": "provide_info"}]
    )
    account["requirements"]["entries"] = (
        []
        if status == "active"
        else [{"description": "external_account", "minimum_deadline": None}]
    )
    world.emit(
        "v2.core.account[configuration.recipient].capability_status_updated",
        account,
        account=account_id,
    )
    return account


# --- transfers ------------------------------------------------------------------------------------


def create_transfer(world: World, request: Request) -> Object:
    params = request.params
    amount, currency = positive(params, "amount"), required(params, "currency")
    account = world.get(required(params, "destination"), "v2.core.account")
    if _capability(account)["status"] != "active" or account["closed"]:
        raise ApiError(
            400,
            "Your destination account needs to have the stripe_transfers capability enabled.",
            code="insufficient_capabilities_for_transfer",
            param="destination",
            stored=True,
        )
    if balance.available_of(world, currency) < amount:
        raise ApiError(
            400,
            "You have insufficient available funds in your account.",
            code="balance_insufficient",
            stored=True,
        )
    transfer = world.put(
        "tr",
        "transfer",
        amount=amount,
        amount_reversed=0,
        currency=currency,
        destination=account["id"],
        reversed=False,
        source_transaction=params.get("source_transaction"),
        transfer_group=params.get("transfer_group"),
        description=params.get("description"),
        metadata=metadata_of(params),
    )
    row = balance.move(
        world,
        source=transfer,
        kind="transfer",
        category="transfer",
        amount=-amount,
        currency=currency,
    )
    transfer["balance_transaction"] = row["id"]
    payment = balance.move(
        world,
        source=transfer,
        kind="payment",
        category="charge",
        amount=amount,
        currency=currency,
        account=account["id"],
    )
    transfer["destination_payment"] = payment["id"]
    world.emit("transfer.created", transfer)
    return transfer


def list_transfers(world: World, request: Request) -> Object:
    rows = world.all("transfer")
    for name in ("destination", "transfer_group"):
        if name in request.params:
            rows = [row for row in rows if row[name] == request.params[name]]
    return world.page(rows, request.params, url="/v1/transfers")


def create_reversal(world: World, request: Request, transfer_id: str) -> Object:
    transfer = world.get(transfer_id, "transfer")
    rest = transfer["amount"] - transfer["amount_reversed"]
    amount = positive(request.params, "amount", default=rest or 1)
    if amount > rest:
        raise ApiError(
            400, "The reversal is larger than what is left of the transfer.", param="amount"
        )
    currency = transfer["currency"]
    if balance.available_of(world, currency, account=transfer["destination"]) < amount:
        raise ApiError(
            400,
            "The connected account has insufficient available funds.",
            code="balance_insufficient",
            stored=True,
        )
    reversal = world.put(
        "trr",
        "transfer_reversal",
        amount=amount,
        currency=currency,
        transfer=transfer["id"],
        metadata=metadata_of(request.params),
    )
    row = balance.move(
        world,
        source=reversal,
        kind="transfer_refund",
        category="transfer_reversal",
        amount=amount,
        currency=currency,
    )
    balance.move(
        world,
        source=reversal,
        kind="payment_refund",
        category="refund",
        amount=-amount,
        currency=currency,
        account=transfer["destination"],
    )
    reversal["balance_transaction"] = row["id"]
    transfer["amount_reversed"] += amount
    transfer["reversed"] = transfer["amount_reversed"] == transfer["amount"]
    world.emit("transfer.reversed", transfer)
    return reversal


def list_reversals(world: World, request: Request, transfer_id: str) -> Object:
    rows = [row for row in world.all("transfer_reversal") if row["transfer"] == transfer_id]
    return world.page(rows, request.params, url=f"/v1/transfers/{transfer_id}/reversals")


def read_reversal(world: World, _request: Request, transfer_id: str, object_id: str) -> Object:
    reversal = world.get(object_id, "transfer_reversal")
    if reversal["transfer"] != transfer_id:
        raise ApiError(404, f"No such transfer reversal: '{object_id}'", code="resource_missing")
    return reversal


def _instant(world: World) -> str:
    return dt.datetime.fromtimestamp(world.now(), tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
