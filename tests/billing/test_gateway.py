"""The gateway, call by call: against the stand-in always, and against the provider's test mode with a key.

Set HEADROOM_STRIPE_TEST_KEY to a key that begins with `sk_test_` to run the same file there.
"""

import datetime as dt
import os
import secrets

import pytest
import stripe

from billing import stripe_gateway as gateway
from billing.provider_values import Refusal
from tests.fakes.stripe import StandIn

KEY = os.environ.get("HEADROOM_STRIPE_TEST_KEY", "")
SKIP = pytest.mark.skip(reason="HEADROOM_STRIPE_TEST_KEY is not set: no call leaves the machine")
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
        yield stripe.StripeClient(KEY)
        return
    with StandIn() as stand_in:
        settings.STRIPE_SECRET_KEY, settings.STRIPE_API_BASE = "sk_test_x", stand_in.base_url
        yield stripe.StripeClient("sk_test_x", base_addresses={"api": stand_in.base_url})


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
