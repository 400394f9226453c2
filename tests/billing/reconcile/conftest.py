"""What the tests of the provider's books share."""

import pytest

from tests.billing.reconcile.market import Market


@pytest.fixture
def world(provider, clock):
    return Market(provider, clock)
