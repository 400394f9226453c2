"""The one file that speaks to Stripe. It knows no table and no rule of ours: values in, values out.

Facts are from docs.stripe.com (API version below). The library's own retries are off: a call that may have
happened is looked up before it is made again, and that is decided by `billing.intents`.
"""

import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import stripe
from django.conf import settings

from billing import stripe_shapes as shapes
from billing.provider_values import (
    BadSignature,
    KeyMismatch,
    OutcomeUnknown,
    ProviderAccount,
    ProviderCustomer,
    ProviderDispute,
    ProviderEvent,
    ProviderPayment,
    ProviderRefund,
    ProviderTransaction,
    ProviderTransfer,
    Refusal,
    TryLater,
)

# The version whose shapes this file reads. The library pins the same one; a test compares them.
API_VERSION = "2026-10-28.endive"
# A person waits at the other end of some calls; what takes longer is found again by recovery.
CALL_LIMIT_SECONDS = 10
LIST_PAGE = 100  # the provider's largest page
SIGNATURE_TOLERANCE_SECONDS = 300  # the library's own default


def is_configured() -> bool:
    """Say whether there is a key to call the provider with."""
    return bool(settings.STRIPE_SECRET_KEY)


# --- what we ask for ------------------------------------------------------------------------------


def create_customer(*, key: str, name: str, metadata: Mapping[str, str]) -> ProviderCustomer:
    """Make a tenant known; the name is what its receipts show."""
    params: Any = {"name": name, "metadata": _marked(key, metadata)}
    return shapes.customer_of(_made(lambda: _client().v1.customers.create(params, _keyed(key))))


def create_payment(
    *,
    key: str,
    customer_id: str,
    amount_minor: int,
    currency: str,
    means: str,
    is_held: bool,
    saves_card: bool,
    saved_card_id: str,
    description: str,
    transfer_group: str,
    metadata: Mapping[str, str],
) -> ProviderPayment:
    """Ask for money: of a tenant who is present, of a saved card, or by bank transfer.

    :raises Refusal: when the saved card's bank says no; `object_id` names the payment that stays.
    """
    params: dict[str, Any] = {
        "amount": amount_minor,
        "currency": currency,
        "customer": customer_id,
        "description": description,
        "transfer_group": transfer_group,
        "metadata": _marked(key, metadata),
        "expand": ["latest_charge"],
    }
    if means == "bank_transfer":
        params |= {
            "payment_method_types": ["customer_balance"],
            "payment_method_data": {"type": "customer_balance"},
            "payment_method_options": {
                "customer_balance": {
                    "funding_type": "bank_transfer",
                    "bank_transfer": _bank_transfer_of(currency),
                }
            },
            "confirm": True,
        }
    else:
        params |= {
            "payment_method_types": ["card"],
            "capture_method": "manual" if is_held else "automatic",
        }
    if saves_card:
        params["setup_future_usage"] = "off_session"
    if saved_card_id:
        params |= {"payment_method": saved_card_id, "confirm": True, "off_session": True}
    sent: Any = params
    return shapes.payment_of(_made(lambda: _client().v1.payment_intents.create(sent, _keyed(key))))


def capture_payment(*, key: str, payment_id: str, amount_minor: int) -> ProviderPayment:
    """Take what is held; what is not taken is released."""
    params: Any = {"amount_to_capture": amount_minor, "expand": ["latest_charge"]}
    return shapes.payment_of(
        _made(lambda: _client().v1.payment_intents.capture(payment_id, params, _keyed(key)))
    )


def cancel_payment(*, key: str, payment_id: str) -> ProviderPayment:
    """Give up a payment; what is held is released.

    :raises Refusal: when it is too late: the tenant has paid.
    """
    params: Any = {"cancellation_reason": "abandoned", "expand": ["latest_charge"]}
    return shapes.payment_of(
        _made(lambda: _client().v1.payment_intents.cancel(payment_id, params, _keyed(key)))
    )


def create_refund(
    *, key: str, payment_id: str, amount_minor: int, metadata: Mapping[str, str]
) -> ProviderRefund:
    params: Any = {
        "payment_intent": payment_id,
        "amount": amount_minor,
        "metadata": _marked(key, metadata),
    }
    return shapes.refund_of(_made(lambda: _client().v1.refunds.create(params, _keyed(key))))


def create_account(
    *, key: str, name: str, email: str, country: str, metadata: Mapping[str, str]
) -> ProviderAccount:
    """Make an owner a receiver of transfers: not a merchant, with fees and losses at our charge."""
    params: Any = {
        "display_name": name,
        "contact_email": email,
        "dashboard": "express",
        "identity": {"country": country},
        "defaults": {
            "responsibilities": {"fees_collector": "application", "losses_collector": "application"}
        },
        "configuration": {
            "recipient": {
                "capabilities": {"stripe_balance": {"stripe_transfers": {"requested": True}}}
            }
        },
        "include": ["configuration.recipient", "requirements"],
        "metadata": _marked(key, metadata),
    }
    return shapes.account_of(_made(lambda: _client().v2.core.accounts.create(params, _keyed(key))))


def account_link(*, account_id: str, refresh_url: str, return_url: str) -> str:
    """Return the address of the provider's own form for an owner; it lives for minutes."""
    params: Any = {
        "account": account_id,
        "use_case": {
            "type": "account_onboarding",
            "account_onboarding": {
                "configurations": ["recipient"],
                "refresh_url": refresh_url,
                "return_url": return_url,
            },
        },
    }
    return str(_call(lambda: _client().v2.core.account_links.create(params)).url)


def create_transfer(
    *,
    key: str,
    account_id: str,
    amount_minor: int,
    currency: str,
    transfer_group: str,
    metadata: Mapping[str, str],
) -> ProviderTransfer:
    """Send money to an owner out of what is available.

    :raises Refusal: when the account may not receive or the balance does not suffice.
    """
    params: Any = {
        "destination": account_id,
        "amount": amount_minor,
        "currency": currency,
        "transfer_group": transfer_group,
        "metadata": _marked(key, metadata),
    }
    return shapes.transfer_of(_made(lambda: _client().v1.transfers.create(params, _keyed(key))))


def reverse_transfer(
    *, key: str, transfer_id: str, amount_minor: int, metadata: Mapping[str, str]
) -> ProviderTransfer:
    """Take money back from an owner.

    :raises Refusal: when it is no longer there.
    """
    params: Any = {"amount": amount_minor, "metadata": _marked(key, metadata)}
    return shapes.transfer_of(
        _made(lambda: _client().v1.transfers.reversals.create(transfer_id, params, _keyed(key)))
    )


# --- what became of it: one object by its id, or by our id in its metadata -----------------------


def read_payment(*, payment_id: str) -> ProviderPayment:
    params: Any = {"expand": ["latest_charge"]}
    return shapes.payment_of(
        _made(lambda: _client().v1.payment_intents.retrieve(payment_id, params))
    )


def read_refund(*, refund_id: str) -> ProviderRefund:
    return shapes.refund_of(_made(lambda: _client().v1.refunds.retrieve(refund_id)))


def read_transfer(*, transfer_id: str) -> ProviderTransfer:
    return shapes.transfer_of(_made(lambda: _client().v1.transfers.retrieve(transfer_id)))


def read_customer(*, customer_id: str) -> ProviderCustomer:
    return shapes.customer_of(_made(lambda: _client().v1.customers.retrieve(customer_id)))


def read_reversal(*, transfer_id: str, reversal_id: str) -> ProviderTransfer:
    return shapes.transfer_of(
        _made(lambda: _client().v1.transfers.reversals.retrieve(transfer_id, reversal_id))
    )


def read_account(*, account_id: str) -> ProviderAccount:
    params: Any = {"include": ["configuration.recipient", "requirements"]}
    return shapes.account_of(_made(lambda: _client().v2.core.accounts.retrieve(account_id, params)))


def read_dispute(*, dispute_id: str) -> ProviderDispute:
    return shapes.dispute_of(_made(lambda: _client().v1.disputes.retrieve(dispute_id)))


def read_cash(*, customer_id: str) -> dict[str, int]:
    """Return what a tenant sent by bank and no payment has taken, by currency, in minor units."""
    balance = _made(lambda: _client().v1.customers.cash_balance.retrieve(customer_id))
    return dict(balance.get("available") or {})


def find_customer(*, intent_id: str, since: dt.datetime) -> ProviderCustomer | None:
    rows = _listed(lambda p: _client().v1.customers.list(p), created=_between(since))
    return next((c for c in map(shapes.customer_of, rows) if c.intent_id == intent_id), None)


def find_payment(*, customer_id: str, intent_id: str, since: dt.datetime) -> ProviderPayment | None:
    rows = _listed(
        lambda p: _client().v1.payment_intents.list(p),
        customer=customer_id,
        created=_between(since),
        expand=["data.latest_charge"],
    )
    return next((p for p in map(shapes.payment_of, rows) if p.intent_id == intent_id), None)


def find_refund(*, payment_id: str, intent_id: str) -> ProviderRefund | None:
    rows = _listed(lambda p: _client().v1.refunds.list(p), payment_intent=payment_id)
    return next((r for r in map(shapes.refund_of, rows) if r.intent_id == intent_id), None)


def find_account(*, intent_id: str) -> ProviderAccount | None:
    """Look through all accounts: their list can be narrowed by nothing that we know."""
    for row in _listed(lambda p: _client().v2.core.accounts.list(p)):
        if shapes.mark_of(row) == intent_id:
            return read_account(account_id=row["id"])
    return None


def find_transfer(
    *, account_id: str, intent_id: str, since: dt.datetime
) -> ProviderTransfer | None:
    rows = _listed(
        lambda p: _client().v1.transfers.list(p), destination=account_id, created=_between(since)
    )
    return next((t for t in map(shapes.transfer_of, rows) if t.intent_id == intent_id), None)


def find_reversal(*, transfer_id: str, intent_id: str) -> ProviderTransfer | None:
    rows = reversals_of(transfer_id=transfer_id)
    return next((row for row in rows if row.intent_id == intent_id), None)


def reversals_of(*, transfer_id: str) -> Iterator[ProviderTransfer]:
    """Yield what was taken back of a transfer, newest first."""
    rows = _listed(lambda p: _client().v1.transfers.reversals.list(transfer_id, p))
    return map(shapes.transfer_of, rows)


# --- what the provider tells ----------------------------------------------------------------------


def payments_since(*, since: dt.datetime) -> Iterator[ProviderPayment]:
    """Yield the payments that were made since an instant, newest first."""
    rows = _listed(
        lambda p: _client().v1.payment_intents.list(p),
        created=_between(since),
        expand=["data.latest_charge"],
    )
    return map(shapes.payment_of, rows)


def refunds_since(*, since: dt.datetime) -> Iterator[ProviderRefund]:
    return map(
        shapes.refund_of, _listed(lambda p: _client().v1.refunds.list(p), created=_between(since))
    )


def transfers_since(*, since: dt.datetime) -> Iterator[ProviderTransfer]:
    return map(
        shapes.transfer_of,
        _listed(lambda p: _client().v1.transfers.list(p), created=_between(since)),
    )


def disputes_since(*, since: dt.datetime) -> Iterator[ProviderDispute]:
    return map(
        shapes.dispute_of, _listed(lambda p: _client().v1.disputes.list(p), created=_between(since))
    )


def transactions_between(
    *, since: dt.datetime, until: dt.datetime
) -> Iterator[ProviderTransaction]:
    """Yield what was booked on our balance in `[since, until)`, newest first."""
    rows = _listed(
        lambda p: _client().v1.balance_transactions.list(p), created=_between(since, until)
    )
    return map(shapes.transaction_of, rows)


def balances(*, currency: str) -> tuple[int, int]:
    """Return what is available and what is pending, in minor units."""
    balance = _call(lambda: _client().v1.balance.retrieve())
    available, pending = (
        sum(row.amount for row in rows if row.currency == currency)
        for rows in (balance.available, balance.pending)
    )
    return available, pending


def events_between(*, since: dt.datetime, until: dt.datetime) -> Iterator[ProviderEvent]:
    """Yield the events of `[since, until)`, newest first; the provider keeps them for 30 days."""
    rows = _listed(lambda p: _client().v1.events.list(p), created=_between(since, until))
    return (shapes.event_of(row, payload=json.dumps(row)) for row in rows)


def verified_event(*, body: bytes, signature: str, at: dt.datetime) -> ProviderEvent:
    """Return the event of a webhook that the provider signed with one of our secrets.

    :raises BadSignature: when it did not, or longer than five minutes from `at`.
    """
    try:
        text = body.decode()
        # Exactly one: with several, the one whose age is compared might not be the one that was signed.
        (stamp,) = (part[2:] for part in signature.split(",") if part.startswith("t="))
        signed_at = dt.datetime.fromtimestamp(int(stamp), tz=dt.UTC)
    except (UnicodeDecodeError, ValueError, OverflowError, OSError):
        raise BadSignature("the signature cannot be read") from None
    if abs(at - signed_at) > dt.timedelta(seconds=SIGNATURE_TOLERANCE_SECONDS):
        raise BadSignature("it was signed too long ago")
    for secret in settings.STRIPE_WEBHOOK_SECRETS:
        try:
            # The age was compared with our clock above.
            stripe.WebhookSignature.verify_header(text, signature, secret, None)
        except stripe.SignatureVerificationError:
            continue
        try:
            return shapes.event_of(json.loads(text), payload=text)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadSignature("the body is no event") from None
    raise BadSignature("none of our secrets signed it")


# --- the library ----------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _client_of(key: str, base: str) -> stripe.StripeClient:
    return stripe.StripeClient(
        key,
        stripe_version=API_VERSION,
        base_addresses={"api": base} if base else {},
        max_network_retries=0,
        http_client=stripe.RequestsClient(timeout=CALL_LIMIT_SECONDS),
    )


def _client() -> stripe.StripeClient:
    return _client_of(settings.STRIPE_SECRET_KEY, settings.STRIPE_API_BASE)


def _keyed(key: str) -> Any:  # noqa: ANN401 - the library's own dictionary of options
    return {"idempotency_key": key}


def _marked(key: str, metadata: Mapping[str, str]) -> dict[str, str]:
    return {**metadata, shapes.INTENT_MARK: key, "env": settings.PROFILE}


def _bank_transfer_of(currency: str) -> dict[str, Any]:
    """Return the kind of bank transfer that a currency's customers make."""
    kinds = {"usd": "us_bank_transfer", "gbp": "gb_bank_transfer", "jpy": "jp_bank_transfer"}
    if currency == "eur":
        return {"type": "eu_bank_transfer", "eu_bank_transfer": {"country": "DE"}}
    return {"type": kinds.get(currency, "us_bank_transfer")}


def _made(action: Callable[[], Any]) -> dict[str, Any]:
    """Make one call and return the object that it answers with, as plain values."""
    made: dict[str, Any] = _call(action).to_dict()
    return made


def _call(action: Callable[[], Any]) -> Any:  # noqa: ANN401 - any of the library's objects
    """Make one call and say what its failure means."""
    try:
        return action()
    except stripe.APIConnectionError as error:
        raise OutcomeUnknown(str(error)) from error
    except stripe.IdempotencyError as error:
        raise KeyMismatch(str(error)) from error
    except (stripe.RateLimitError, stripe.AuthenticationError, stripe.PermissionError) as error:
        raise TryLater(str(error)) from error
    except (stripe.CardError, stripe.InvalidRequestError) as error:
        raise _refusal(error) from error
    except stripe.StripeError as error:
        if error.http_status is not None and error.http_status < 500:
            raise TryLater(str(error)) from error
        raise OutcomeUnknown(str(error)) from error


def _refusal(error: stripe.StripeError) -> Refusal:
    body = error.json_body if isinstance(error.json_body, dict) else {}
    detail = body.get("error", {})
    declined = detail.get("payment_intent") or {}
    return Refusal(
        code=str(detail.get("decline_code") or error.code or "refused"),
        message=str(error.user_message or "The provider refused."),
        object_id=str(declined.get("id", "")),
    )


def _listed(page: Callable[[Any], Any], **params: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """Yield the rows of a list to its end, one page in memory at a time; whoever asks narrows it."""
    rows = iter(_call(lambda: page({"limit": LIST_PAGE, **params})).auto_paging_iter())
    while (row := _call(lambda: next(rows, None))) is not None:
        yield row.to_dict()


def _between(since: dt.datetime, until: dt.datetime | None = None) -> dict[str, int]:
    """Return the bounds of a list in whole seconds, `[since, until)`: the unit of the provider's clock."""
    bounds = {"gte": int(since.timestamp())}
    return bounds if until is None else bounds | {"lt": int(until.timestamp())}
