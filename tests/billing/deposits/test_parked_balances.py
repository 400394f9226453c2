"""Whose parking gives a tenant its time to return anew: its own, and one that fell into that time."""

import pytest

from billing import parking
from tests.billing.deposits.market import InTwoParts
from tests.scheduler import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def world(provider, clock, settings):
    """Return a tenant that has paid its deposit, and whose card will be declined for the balance."""
    settings.DEPOSIT_PRICE_MINOR_MIN = 10_000
    made = InTwoParts(provider, clock)
    made.booked()
    made.behave("insufficient_funds")
    return made


def park(world, organization):
    """Park an organization for an hour."""
    parking.park(breaches={organization.pk: "looked into"}, at=world.clock())
    world.tick(hours=1)
    parking.end(organization=organization, at=world.clock(), actor="two people")


def is_given_up_in_time(world):
    assert world.plan.status == "asked"
    world.tick(seconds=(world.plan.return_by - world.clock()).total_seconds())
    return (world.reservation.status, world.plan.status) == ("cancelled", "ended")


class TestTimeToReturn:
    def test_is_no_longer_for_who_was_parked_before_it_was_asked(self, world):
        park(world, world.tenant)
        world.until_due()
        assert is_given_up_in_time(world)

    def test_is_no_longer_because_somebody_else_was_parked(self, world):
        world.until_due()
        park(world, factories.make_organization())
        assert is_given_up_in_time(world)
