"""What the tests of the books share."""

import contextlib
import datetime as dt
from collections.abc import Iterator

import pytest
from django.db import connection

from tests import lock_order
from tests.fakes.stripe import StandIn
from tests.fakes.stripe.server import SECRET
from tests.scheduler import factories


@pytest.fixture(autouse=True)
def in_the_order_of_locks() -> Iterator[None]:
    """Refuse a test whose transactions lock rows in another order than billing's README tells."""
    with lock_order.listening() as listener:
        yield
    assert not listener.breaches, listener.breaches


@pytest.fixture
def unguarded():
    """Return a context in which no trigger fires: how a breach is planted, and how a tamperer would."""

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with connection.cursor() as cursor:
            # What is still to be checked at commit is checked now, while it is sound.
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
            # Local to the transaction: a statement that fails in here takes the setting back with it.
            cursor.execute("SET LOCAL session_replication_role = replica")
            yield
            cursor.execute("SET LOCAL session_replication_role = DEFAULT")

    return context


@pytest.fixture
def provider(settings):
    """Return a stand-in for the payment provider that this market is connected to; its clock stands."""
    with StandIn(clock=int(factories.NOW.timestamp())) as stand_in:
        settings.STRIPE_SECRET_KEY = "sk_test_standin"
        settings.STRIPE_API_BASE = stand_in.base_url
        settings.STRIPE_WEBHOOK_SECRETS = [SECRET]
        yield stand_in


@pytest.fixture
def clock(provider):
    """Return a clock that the market and the stand-in share: `clock(hours=1)` moves it, `clock()` reads."""
    at: dt.datetime = factories.NOW

    def turn(**passed: float) -> dt.datetime:
        nonlocal at
        step = dt.timedelta(**passed)
        at += step
        if step:
            provider.advance(seconds=int(step.total_seconds()))
        return at

    return turn
