"""What the tests of prices in two parts share."""

import pytest

from tests.billing.deposits.market import InTwoParts


@pytest.fixture
def world(provider, clock, settings):
    settings.DEPOSIT_PRICE_MINOR_MIN = 10_000
    return InTwoParts(provider, clock)
