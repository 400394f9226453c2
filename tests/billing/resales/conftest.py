"""An owner's node, and what a tenant has left of it for a fee."""

import pytest

from marketplace.models import Organization
from scheduler.models import Reservation
from tests.billing.bookings import leave
from tests.billing.resales.market import buy
from tests.scheduler.factories import make_pool


@pytest.fixture
def owner() -> Organization:
    return make_pool()


@pytest.fixture
def left(owner: Organization) -> Reservation:
    """Return what its tenant has left for a fee of 1882."""
    reservation = buy()
    leave(reservation)
    return reservation
