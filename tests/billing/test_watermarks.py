"""How far the provider's lists are read: to their ends, however long, and on from where it failed."""

import datetime as dt

import pytest

from billing import inbox, intents, provider_books
from billing import stripe_gateway as gateway
from billing.models import BalanceTransaction, InboxEvent, Watermark
from tests.fakes.stripe import balance as standin_balance

pytestmark = pytest.mark.django_db

MANY = 2_100  # more than twenty of the provider's largest pages


def happen(stand_in, count):
    for number in range(count):
        stand_in.world.emit("payment_intent.created", {"id": f"pi_{number}"})


def book(stand_in, count):
    for _ in range(count):
        standin_balance.move(
            stand_in.world,
            source={"id": "tu_1"},
            kind="topup",
            category="topup",
            amount=1,
            currency="usd",
        )


def test_events_are_read_to_the_end_of_the_list(provider, clock):
    happen(provider, MANY)
    assert inbox.poll(at=clock(minutes=5)) == MANY
    assert InboxEvent.objects.count() == MANY


def test_bookings_are_read_to_the_end_of_the_list(provider, clock):
    book(provider, MANY)
    assert provider_books.fetch(at=clock(minutes=5)) == MANY
    assert BalanceTransaction.objects.count() == MANY


def test_what_failed_in_the_middle_goes_on_from_there(provider, clock):
    inbox.poll(at=clock())
    started_at = clock()
    for _ in range(3):
        happen(provider, 150)
        clock(hours=6)
    provider.fail("server_error", "GET /v1/events", skip=3)
    assert inbox.poll(at=clock()) == 0
    reached = Watermark.objects.get(pk=inbox.WATERMARK).at
    assert started_at < reached < clock()
    inbox.poll(at=clock())
    assert InboxEvent.objects.count() == 450
    assert Watermark.objects.get(pk=inbox.WATERMARK).at == clock()


def test_the_mark_stays_where_nothing_could_be_read(provider, clock):
    inbox.poll(at=clock())
    before = Watermark.objects.get(pk=inbox.WATERMARK).at
    provider.fail("server_error", "GET /v1/events", times=9)
    assert inbox.poll(at=clock(hours=1)) == 0
    assert Watermark.objects.get(pk=inbox.WATERMARK).at == before


def test_a_lost_answer_is_looked_for_among_all_objects(provider, clock):
    customer = gateway.create_customer(key="int_c", name="Perceptron AG", metadata={})
    made = provider.world.put(
        "pi", "payment_intent", customer=customer.id, metadata={"intent_id": "int_1"}, **PAYMENT
    )
    for _ in range(MANY):
        provider.world.put("pi", "payment_intent", customer=customer.id, metadata={}, **PAYMENT)
    since = clock() - dt.timedelta(seconds=intents.CLOCKS_DIFFER_SECONDS)
    found = gateway.find_payment(customer_id=customer.id, intent_id="int_1", since=since)
    assert found is not None
    assert found.id == made["id"]
    later = clock(hours=2)
    assert gateway.find_payment(customer_id=customer.id, intent_id="int_1", since=later) is None


PAYMENT = {
    "amount": 500,
    "amount_received": 0,
    "currency": "usd",
    "status": "requires_payment_method",
    "latest_charge": None,
    "payment_method": None,
}
