"""Events of all that the market reacts to: late, thrice, in any order and with gaps, they end the same.

What is expected is what a market comes to that hears of every event at once. Another one hears of none while
the same happens, and then of all: in order, and shuffled. It works them off as they come, a few at a time, so
that what it does of one comes before the next; and what was lost on the way it finds in the provider's list.

Not in the stories, because they end by when they are heard of and may: two who pay late for the last GPUs, a
wallet that is empty when it has to bear a dispute and is filled later, and a refund that comes back while its
payment is disputed.
"""

import datetime as dt

import pytest

from billing import provider, top_up_disputes
from billing import stripe_gateway as gateway
from billing.models import Payment
from tests.billing.histories import (
    A_CUT,
    STORIES,
    Market,
    Restless,
    TakenBack,
    final_state,
    play,
    told,
)
from tests.billing.histories.reservations import late_payment_disputed_unheard
from tests.billing.histories.top_ups import top_up_disputed_unheard
from tests.fakes.stripe import StandIn
from tests.fakes.stripe.server import SECRET
from tests.scheduler import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def opened(settings):
    """Return a function that opens a market with a provider of its own, to whose events it listens or not."""
    settings.DEPOSIT_PRICE_MINOR_MIN = 10_000
    settings.STRIPE_SECRET_KEY = "sk_test_standin"
    settings.STRIPE_WEBHOOK_SECRETS = [SECRET]
    running = []

    def open_market(*, listens):
        stand_in = StandIn(clock=int(factories.NOW.timestamp())).__enter__()
        running.append(stand_in)
        settings.STRIPE_API_BASE = stand_in.base_url
        return Market(stand_in, listens=listens)

    yield open_market
    for stand_in in running:
        stand_in.__exit__(None, None, None)


def heard_at_once(opened, stories):
    """Return what a market that listens comes to; nothing of it stays in the database."""
    with TakenBack():
        market = opened(listens=True)
        play(market, stories=stories)
        market.comes_to_rest()
        return final_state(market)


def unheard(opened, stories):
    market = opened(listens=False)
    play(market, stories=stories)
    return market


def heard_late(market, *, seed):
    with TakenBack(market):
        market.hear(seed=seed)
        market.comes_to_rest()
        return final_state(market)


def statuses(state, *names):
    return {row[-1] if name == "deposits" else row[1] for name in names for row in state[name]}


def end_the_same(opened, *, stories, events_min, seeds):
    expected = heard_at_once(opened, stories)
    for what in ("breaches", "differences", "calls without outcome"):
        assert expected[what] == []
    market = unheard(opened, stories)
    assert len(market.stand_in.world.events) >= events_min
    for seed in (None, *seeds):
        assert heard_late(market, seed=seed) == expected, f"seed {seed}"
    return expected


@pytest.mark.timeout(600)  # sixteen people and four histories
def test_a_hundred_events_in_any_order_end_the_same(opened):
    expected = end_the_same(opened, stories=A_CUT, events_min=100, seeds=range(2))
    assert statuses(expected, "card refunds", "refunds") == {"failed", "succeeded"}
    assert statuses(expected, "disputes", "top-up disputes") == {"lost", "won"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_hundred_events_of_everything_in_any_order_end_the_same(opened):
    expected = end_the_same(
        opened, stories=(*STORIES, *STORIES[::2]), events_min=500, seeds=range(20)
    )
    assert {row[3] for row in expected["payments"]} == {
        "authorized",
        "cancelled",
        "failed",
        "open",
        "succeeded",
    }
    assert statuses(expected, "card refunds") == {"failed", "succeeded"}
    assert statuses(expected, "refunds") == {"failed", "settled"}
    for name in ("disputes", "top-up disputes"):
        assert statuses(expected, name) == {"lost", "open", "won"}
    assert statuses(expected, "reservations") >= {"expired", "payment_failed", "scheduled"}
    assert statuses(expected, "deposits") == {"open", "paid"}


def without_waiting(object_id: str, at: dt.datetime) -> bool:
    """Take over a dispute by what is known of its payment at this moment, whatever that is."""
    made = gateway.read_dispute(dispute_id=object_id)
    payment = Payment.objects.get(provider_id=made.payment_id)
    top_up_disputes.apply(payment=payment, made=made, at=at)
    return True


def ends_otherwise(market, *, seed, than):
    """Say whether a history ends in another state, or not at all."""
    try:
        return heard_late(market, seed=seed) != than
    except Restless:
        return True


def test_the_order_matters_where_a_dispute_does_not_wait_for_its_payment(opened, monkeypatch):
    stories = (
        told(top_up_disputed_unheard, won=False),
        told(late_payment_disputed_unheard, won=False),
    )
    expected = heard_at_once(opened, stories)
    market = unheard(opened, stories)
    assert heard_late(market, seed=0) == expected
    monkeypatch.setitem(provider.READERS, "dispute", without_waiting)
    assert heard_late(market, seed=None) == expected
    assert any(ends_otherwise(market, seed=seed, than=expected) for seed in range(5))
