"""What the tests of payments share."""

import pytest

from tests.billing.card_market import World


@pytest.fixture
def world(provider, clock):
    return World(provider, clock)
