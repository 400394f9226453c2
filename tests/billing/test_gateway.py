"""The gateway, call by call: against the stand-in always, and against the provider's test mode with a key.

Set HEADROOM_STRIPE_TEST_KEY to a key that begins with `sk_test_` to run the same file there, and
HEADROOM_STRIPE_TEST_RECEIVER to an account there that may receive, for the tests that send money.
"""

import datetime as dt
import inspect
import json
import os
import re
import secrets
from pathlib import Path

import pytest
import stripe

from billing import stripe_gateway as gateway
from billing.provider_values import BadSignature, Refusal
from tests.fakes.stripe import StandIn
from tests.fakes.stripe.webhooks import sign

KEY = os.environ.get("HEADROOM_STRIPE_TEST_KEY", "")
SKIP = pytest.mark.skip(
    reason="HEADROOM_STRIPE_TEST_KEY holds no key that begins with sk_test_: no call leaves the machine"
)
RECEIVER = os.environ.get("HEADROOM_STRIPE_TEST_RECEIVER", "")
AN_HOUR_AGO = dt.datetime.now(tz=dt.UTC) - dt.timedelta(hours=1)
PROVIDER_HOSTS = ["api.stripe.com", "127.0.0.1"]


@pytest.fixture(
    params=[
        "stand-in",
        pytest.param(
            "test mode",
            marks=[pytest.mark.allow_hosts(PROVIDER_HOSTS)]
            if KEY.startswith("sk_test_")
            else [SKIP],
        ),
    ]
)
def client(request, settings):
    """Connect the market, and return what a browser and a bank would do, by the library itself."""
    if request.param == "test mode":
        settings.STRIPE_SECRET_KEY, settings.STRIPE_API_BASE = KEY, ""
        client = stripe.StripeClient(KEY)
        client.stand_in = None
        yield client
        return
    with StandIn() as stand_in:
        settings.STRIPE_SECRET_KEY, settings.STRIPE_API_BASE = "sk_test_x", stand_in.base_url
        client = stripe.StripeClient("sk_test_x", base_addresses={"api": stand_in.base_url})
        client.stand_in = stand_in
        yield client


def a_key():
    return f"int_{secrets.token_hex(8)}"


def a_customer():
    return gateway.create_customer(key=a_key(), name="Perceptron AG", metadata={"tenant": "org_1"})


def a_payment(customer_id, *, key=None, **changes):
    values = {
        "customer_id": customer_id,
        "amount_minor": 5000,
        "currency": "usd",
        "means": "card",
        "is_held": False,
        "saves_card": False,
        "saved_card_id": "",
        "description": "Headroom",
        "transfer_group": "rsv_1",
        "metadata": {"tenant": "org_1"},
        **changes,
    }
    return gateway.create_payment(key=key or a_key(), **values)


def confirm(client, payment_id, method="pm_card_bypassPending"):
    client.v1.payment_intents.confirm(
        payment_id, {"payment_method": method, "return_url": "https://example.com"}
    )
    return gateway.read_payment(payment_id=payment_id)


def test_a_payment_is_made_confirmed_found_and_returned(client):
    customer, key = a_customer(), a_key()
    made = a_payment(customer.id, key=key)
    assert (made.state, made.intent_id) == ("requires_payment_method", key)
    assert made.client_secret.startswith(made.id)
    assert a_payment(customer.id, key=key).id == made.id
    paid = confirm(client, made.id)
    assert (paid.state, paid.received_minor) == ("succeeded", 5000)
    assert paid.charge_id.startswith(("ch_", "py_"))
    found = gateway.find_payment(customer_id=customer.id, intent_id=key, since=AN_HOUR_AGO)
    assert found is not None
    assert found.id == made.id
    refund_key = a_key()
    refund = gateway.create_refund(
        key=refund_key, payment_id=made.id, amount_minor=2000, metadata={}
    )
    assert (refund.state, refund.amount_minor) == ("succeeded", 2000)
    assert gateway.find_refund(payment_id=made.id, intent_id=refund_key) == refund
    with pytest.raises(Refusal):
        gateway.create_refund(key=a_key(), payment_id=made.id, amount_minor=3001, metadata={})


def test_a_payment_can_be_held_and_taken(client):
    made = a_payment(a_customer().id, is_held=True)
    held = confirm(client, made.id)
    assert held.state == "requires_capture"
    assert held.capture_before is not None
    assert held.capture_before > dt.datetime.now(tz=dt.UTC)
    taken = gateway.capture_payment(key=a_key(), payment_id=made.id, amount_minor=5000)
    assert (taken.state, taken.received_minor) == ("succeeded", 5000)
    with pytest.raises(Refusal):
        gateway.cancel_payment(key=a_key(), payment_id=made.id)


def test_a_payment_can_be_given_up(client):
    made = a_payment(a_customer().id)
    assert gateway.cancel_payment(key=a_key(), payment_id=made.id).state == "canceled"


def test_a_decline_says_why(client):
    made = a_payment(a_customer().id)
    with pytest.raises(stripe.CardError):
        confirm(client, made.id, "pm_card_visa_chargeDeclined")
    declined = gateway.read_payment(payment_id=made.id)
    assert (declined.state, declined.failure_code) == ("requires_payment_method", "generic_decline")


def test_a_card_that_was_saved_pays_without_its_holder(client):
    customer = a_customer()
    first = confirm(client, a_payment(customer.id, saves_card=True).id, "pm_card_visa")
    again = a_payment(customer.id, saved_card_id=first.method_id)
    assert again.state == "succeeded"


def test_a_bank_transfer_says_where_to_send_it(client):
    made = a_payment(a_customer().id, means="bank_transfer")
    assert made.state == "requires_action"
    assert made.instructions is not None
    assert made.instructions["amount_remaining"] == 5000


def test_an_owner_is_made_a_receiver_and_sent_to_the_providers_form(client):
    key = a_key()
    made = gateway.create_account(
        key=key, name="Nordlicht", email="owner@example.com", country="DE", metadata={}
    )
    assert (made.receives, made.intent_id) == (False, key)
    assert gateway.account_link(
        account_id=made.id, refresh_url="https://example.com", return_url="https://example.com"
    ).startswith("http")
    with pytest.raises(Refusal):
        gateway.create_transfer(
            key=a_key(),
            account_id=made.id,
            amount_minor=100,
            currency="usd",
            transfer_group="pot_1",
            metadata={},
        )


def test_what_was_booked_and_told_can_be_listed(client):
    since = dt.datetime.now(tz=dt.UTC) - dt.timedelta(minutes=5)
    paid = confirm(client, a_payment(a_customer().id).id)
    until = dt.datetime.now(tz=dt.UTC) + dt.timedelta(minutes=5)
    booked = {row.source_id: row for row in gateway.transactions_between(since=since, until=until)}
    assert booked[paid.charge_id].category == "charge"
    assert paid.id in {
        event.object_id for event in gateway.events_between(since=since, until=until)
    }
    assert paid.id in {row.id for row in gateway.payments_since(since=since)}


def test_a_customer_is_found_by_our_mark(client):
    key = a_key()
    made = gateway.create_customer(key=key, name="Perceptron AG", metadata={"tenant": "org_1"})
    assert gateway.find_customer(intent_id=key, since=AN_HOUR_AGO) == made
    assert gateway.find_customer(intent_id=a_key(), since=AN_HOUR_AGO) is None
    assert gateway.read_customer(customer_id=made.id) == made
    assert gateway.read_cash(customer_id=made.id) == {}


def test_a_payment_waits_for_three_d_secure(client):
    asked = confirm(client, a_payment(a_customer().id).id, "pm_card_threeDSecure2Required")
    assert (asked.state, asked.received_minor) == ("requires_action", 0)


def test_a_saved_card_that_asks_its_holder_is_declined_and_names_the_payment(client):
    customer = a_customer()
    method = client.v1.payment_methods.attach(
        "pm_card_authenticationRequired", {"customer": customer.id}
    )
    with pytest.raises(Refusal) as refused:
        a_payment(customer.id, saved_card_id=method.id)
    assert refused.value.code == "authentication_required"
    assert gateway.read_payment(payment_id=refused.value.object_id).state in {
        "requires_action",
        "requires_payment_method",
    }


def test_a_refund_is_read_and_listed(client):
    paid = confirm(client, a_payment(a_customer().id).id)
    made = gateway.create_refund(key=a_key(), payment_id=paid.id, amount_minor=2000, metadata={})
    assert gateway.read_refund(refund_id=made.id) == made
    assert made.id in {row.id for row in gateway.refunds_since(since=AN_HOUR_AGO)}


def test_a_disputed_payment_is_read_listed_and_not_refunded(client):
    paid = confirm(client, a_payment(a_customer().id).id, "pm_card_createDispute")
    listed = {row.payment_id: row for row in gateway.disputes_since(since=AN_HOUR_AGO)}
    dispute = listed[paid.id]
    assert gateway.read_dispute(dispute_id=dispute.id) == dispute
    assert (dispute.amount_minor, dispute.currency) == (5000, "usd")
    with pytest.raises(Refusal) as refused:
        gateway.create_refund(key=a_key(), payment_id=paid.id, amount_minor=5000, metadata={})
    assert refused.value.code == "charge_disputed"


def test_a_bank_transfer_in_excess_stays_on_the_cash_balance(client):
    customer = a_customer()
    made = a_payment(customer.id, means="bank_transfer")
    client.v1.test_helpers.customers.fund_cash_balance(
        customer.id, {"amount": 7000, "currency": "usd"}
    )
    assert gateway.read_payment(payment_id=made.id).state == "succeeded"
    assert gateway.read_cash(customer_id=customer.id) == {"usd": 2000}
    taken = a_payment(customer.id, means="bank_transfer", amount_minor=2000)
    assert gateway.read_payment(payment_id=taken.id).state == "succeeded"
    assert gateway.read_cash(customer_id=customer.id) == {}


def test_a_part_of_a_bank_transfer_comes_back_when_its_payment_is_given_up(client):
    customer = a_customer()
    made = a_payment(customer.id, means="bank_transfer")
    client.v1.test_helpers.customers.fund_cash_balance(
        customer.id, {"amount": 3000, "currency": "usd"}
    )
    waits = gateway.read_payment(payment_id=made.id)
    assert waits.instructions is not None
    assert waits.instructions["amount_remaining"] == 2000
    gateway.cancel_payment(key=a_key(), payment_id=made.id)
    assert gateway.read_cash(customer_id=customer.id) == {"usd": 3000}


def a_receiver(client):
    """Return an account that may receive; in test mode one of which a person has filled in the form."""
    if client.stand_in is None:
        if not RECEIVER:
            pytest.skip("HEADROOM_STRIPE_TEST_RECEIVER names no account that may receive")
        return gateway.read_account(account_id=RECEIVER)
    made = gateway.create_account(
        key=a_key(), name="Nordlicht", email="owner@example.com", country="DE", metadata={}
    )
    client.stand_in.control("/_control/capability", {"id": made.id})
    return gateway.read_account(account_id=made.id)


def test_an_account_is_found_by_our_mark_and_read(client):
    key = a_key()
    made = gateway.create_account(
        key=key, name="Nordlicht", email="owner@example.com", country="DE", metadata={}
    )
    assert gateway.find_account(intent_id=key) == made
    assert gateway.find_account(intent_id=a_key()) is None


def test_a_transfer_is_sent_found_listed_and_taken_back_in_parts(client):
    account, key = a_receiver(client), a_key()
    assert account.receives
    confirm(client, a_payment(a_customer().id).id)  # brings what is sent
    available, _ = gateway.balances(currency="usd")
    assert available >= 400
    made = gateway.create_transfer(
        key=key,
        account_id=account.id,
        amount_minor=400,
        currency="usd",
        transfer_group="pot_1",
        metadata={},
    )
    assert gateway.read_transfer(transfer_id=made.id) == made
    found = gateway.find_transfer(account_id=account.id, intent_id=key, since=AN_HOUR_AGO)
    assert found == made
    assert made.id in {row.id for row in gateway.transfers_since(since=AN_HOUR_AGO)}
    keys = [a_key(), a_key()]
    parts = [
        gateway.reverse_transfer(key=each, transfer_id=made.id, amount_minor=150, metadata={})
        for each in keys
    ]
    assert gateway.find_reversal(transfer_id=made.id, intent_id=keys[0]) == parts[0]
    read = gateway.read_reversal(transfer_id=made.id, reversal_id=parts[1].id)
    assert read == parts[1]
    assert {row.id for row in gateway.reversals_of(transfer_id=made.id)} == {p.id for p in parts}
    assert gateway.read_transfer(transfer_id=made.id).reversed_minor == 300
    with pytest.raises(Refusal):
        gateway.reverse_transfer(key=a_key(), transfer_id=made.id, amount_minor=101, metadata={})


@pytest.mark.parametrize(
    ("amount", "currency"), [(49, "usd"), (49, "jpy"), (5_124, "kwd"), (100_000_000, "usd")]
)
def test_an_amount_that_the_provider_does_not_take_is_refused(client, amount, currency):
    with pytest.raises(Refusal):
        a_payment(a_customer().id, amount_minor=amount, currency=currency)


def test_an_event_is_verified_by_the_secret_that_signed_it(settings):
    settings.STRIPE_WEBHOOK_SECRETS = ["whsec_old", "whsec_new"]
    at = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)
    body = json.dumps(
        {"id": "evt_1", "type": "charge.updated", "created": 1, "data": {"object": {"id": "ch_1"}}}
    ).encode()
    signature = sign(body, secret="whsec_new", at=int(at.timestamp()))
    event = gateway.verified_event(body=body, signature=signature, at=at)
    assert (event.id, event.object_id) == ("evt_1", "ch_1")
    for forged in (
        {"body": body + b" ", "signature": signature, "at": at},
        {"body": body, "signature": signature, "at": at + dt.timedelta(minutes=6)},
        {"body": body, "signature": sign(body, secret="whsec_x", at=int(at.timestamp())), "at": at},
    ):
        with pytest.raises(BadSignature):
            gateway.verified_event(**forged)


def test_every_call_of_the_gateway_is_made_in_this_file():
    """A call that no test makes here is one whose shape nobody has compared with the provider's."""
    made = set(re.findall(r"gateway\.(\w+)\(", Path(__file__).read_text(encoding="utf-8")))
    calls = {
        name
        for name, value in vars(gateway).items()
        if inspect.isfunction(value)
        and value.__module__ == gateway.__name__
        and not name.startswith("_")
    }
    assert calls - made == {"is_configured"}
