"""Which call of the provider's interface is answered by what."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.fakes.stripe import balance, bank, connect, invoices, methods, payments, refunds
from tests.fakes.stripe.world import ApiError, Object, Request, World


def _reads(kind: str) -> Callable[[World, Request, str], Object]:
    return lambda world, _request, object_id: world.get(object_id, kind)


def _lists(kind: str, url: str) -> Callable[[World, Request], Object]:
    def view(world: World, request: Request) -> Object:
        rows = world.all(kind)
        for name in ("customer", "charge", "payment_intent", "status"):
            if name in request.params:
                rows = [row for row in rows if row.get(name) == request.params[name]]
        return world.page(rows, request.params, url=url)

    return view


def _search(kind: str) -> Callable[[World, Request], Object]:
    """Find by metadata, which is all of the query language that anybody here speaks."""

    def view(world: World, request: Request) -> Object:
        match = re.fullmatch(
            r"metadata\[['\"](\w+)['\"]\]:\s*['\"]([^'\"]*)['\"]", request.params.get("query", "")
        )
        if match is None:
            raise ApiError(400, "The query cannot be read.", param="query")
        rows = [row for row in world.all(kind) if row["metadata"].get(match[1]) == match[2]]
        return {
            "object": "search_result",
            "url": request.path,
            "has_more": False,
            "next_page": None,
            "data": [world.shown(row) for row in rows],
        }

    return view


def _list_events(world: World, request: Request) -> Object:
    rows = list(reversed(world.events))
    types = request.params.get("types")
    if types:
        rows = [row for row in rows if row["type"] in types]
    return world.page(rows, request.params, url="/v1/events")


def _read_event(world: World, _request: Request, event_id: str) -> Object:
    for event in world.events:
        if event["id"] == event_id:
            return event
    raise ApiError(404, f"No such event: '{event_id}'", code="resource_missing")


def _update_metadata(kind: str) -> Callable[[World, Request, str], Object]:
    def view(world: World, request: Request, object_id: str) -> Object:
        row = world.get(object_id, kind)
        row["metadata"] |= request.params.get("metadata") or {}
        return row

    return view


ID = r"([A-Za-z0-9_]+)"
ROUTES: list[tuple[str, str, Callable[..., Object]]] = [
    ("POST", "/v1/customers", methods.create_customer),
    ("GET", "/v1/customers", _lists("customer", "/v1/customers")),
    ("GET", "/v1/customers/search", _search("customer")),
    ("GET", f"/v1/customers/{ID}", _reads("customer")),
    ("POST", f"/v1/customers/{ID}", methods.update_customer),
    ("GET", f"/v1/customers/{ID}/cash_balance", bank.read_cash),
    ("POST", f"/v1/test_helpers/customers/{ID}/fund_cash_balance", bank.fund_cash),
    ("GET", "/v1/payment_methods", methods.list_methods),
    ("GET", f"/v1/payment_methods/{ID}", _reads("payment_method")),
    ("POST", f"/v1/payment_methods/{ID}/attach", methods.attach_method),
    ("POST", f"/v1/payment_methods/{ID}/detach", methods.detach_method),
    ("POST", "/v1/setup_intents", methods.create_setup),
    ("GET", "/v1/setup_intents", _lists("setup_intent", "/v1/setup_intents")),
    ("GET", f"/v1/setup_intents/{ID}", _reads("setup_intent")),
    ("POST", f"/v1/setup_intents/{ID}/confirm", methods.confirm_setup),
    ("POST", "/v1/payment_intents", payments.create_intent),
    ("GET", "/v1/payment_intents", payments.list_intents),
    ("GET", "/v1/payment_intents/search", _search("payment_intent")),
    ("GET", f"/v1/payment_intents/{ID}", payments.read_intent),
    ("POST", f"/v1/payment_intents/{ID}", _update_metadata("payment_intent")),
    ("POST", f"/v1/payment_intents/{ID}/confirm", payments.confirm_intent),
    ("POST", f"/v1/payment_intents/{ID}/capture", payments.capture_intent),
    ("POST", f"/v1/payment_intents/{ID}/cancel", payments.cancel_intent),
    ("GET", "/v1/charges", _lists("charge", "/v1/charges")),
    ("GET", f"/v1/charges/{ID}", _reads("charge")),
    ("POST", "/v1/refunds", refunds.create_refund),
    ("GET", "/v1/refunds", refunds.list_refunds),
    ("GET", f"/v1/refunds/{ID}", _reads("refund")),
    ("GET", "/v1/balance", balance.read_balance),
    ("GET", "/v1/balance_transactions", balance.list_transactions),
    ("GET", f"/v1/balance_transactions/{ID}", balance.read_transaction),
    ("POST", "/v1/payouts", balance.create_payout),
    ("GET", "/v1/payouts", _lists("payout", "/v1/payouts")),
    ("GET", f"/v1/payouts/{ID}", _reads("payout")),
    ("GET", "/v1/disputes", _lists("dispute", "/v1/disputes")),
    ("GET", f"/v1/disputes/{ID}", _reads("dispute")),
    ("POST", f"/v1/disputes/{ID}", balance.update_dispute),
    ("POST", f"/v1/disputes/{ID}/close", balance.accept_dispute),
    ("POST", "/v2/core/accounts", connect.create_account),
    ("GET", "/v2/core/accounts", connect.list_accounts),
    ("GET", f"/v2/core/accounts/{ID}", connect.read_account),
    ("POST", "/v2/core/account_links", connect.create_link),
    ("POST", "/v1/transfers", connect.create_transfer),
    ("GET", "/v1/transfers", connect.list_transfers),
    ("GET", f"/v1/transfers/{ID}", _reads("transfer")),
    ("POST", f"/v1/transfers/{ID}/reversals", connect.create_reversal),
    ("GET", f"/v1/transfers/{ID}/reversals", connect.list_reversals),
    ("GET", f"/v1/transfers/{ID}/reversals/{ID}", connect.read_reversal),
    ("POST", "/v1/invoices", invoices.create_invoice),
    ("GET", "/v1/invoices", _lists("invoice", "/v1/invoices")),
    ("GET", f"/v1/invoices/{ID}", _reads("invoice")),
    ("POST", f"/v1/invoices/{ID}/finalize", invoices.finalize_invoice),
    ("POST", f"/v1/invoices/{ID}/pay", invoices.pay_invoice),
    ("POST", f"/v1/invoices/{ID}/void", invoices.void_invoice),
    ("POST", f"/v1/invoices/{ID}/mark_uncollectible", invoices.write_off_invoice),
    ("POST", "/v1/invoiceitems", invoices.create_item),
    ("GET", "/v1/events", _list_events),
    ("GET", f"/v1/events/{ID}", _read_event),
]
