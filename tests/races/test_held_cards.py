"""A price that is held on a card is taken, and its booking left, at one instant: the card pays for nothing.

The twin lets the money stay where the booking is gone.
"""

import pytest

from billing import card_refunds, changes, payments, provider
from billing.models import CardRefund
from scheduler import cancellations, reservations
from tests.billing.test_held_payments import HeldWorld
from tests.races.interleaving import before, heard
from tests.races.test_last_gpus import at_once

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


@pytest.fixture
def world(provider, clock):
    """Return a tenant whose card is held, an instant before the market takes the price."""
    made = HeldWorld(provider, clock)
    made.book()
    at = made.payment.capture_due_at
    made.clock(seconds=(at - made.clock()).total_seconds())
    return made


def leaving(world):
    quote = cancellations.quote(
        organization=world.tenant, reservation_id=world.reservation.pk, at=world.clock()
    )
    return heard(
        lambda: changes.cancel(
            organization=world.tenant,
            reservation_id=world.reservation.pk,
            quote_id=quote.pk,
            at=world.clock(),
            actor="test",
        )
    )


def capturing(world):
    def capture():
        payments.capture_due(at=world.clock())
        provider.drive_due(at=world.clock())

    return heard(capture)


def ends_even(world):
    """Let the beat come round: what was taken for a booking that is gone is on the card again."""
    for _ in range(3):
        world.turn(minutes=1)
    status, _ = world.read()
    taken = world.payment.amount_minor if status == "scheduled" else 0
    assert world.on_card()[1] == taken
    assert world.balance() == 0
    assert world.deferred() == taken
    world.sound()
    return status


class TestAHeldPrice:
    @pytest.mark.parametrize("seed", range(4))
    def test_is_taken_or_let_go_whoever_is_first(self, world, seed):
        actions = [leaving(world), capturing(world), capturing(world)]

        at_once(actions[seed % 3 :] + actions[: seed % 3])

        ends_even(world)

    def test_that_is_taken_while_its_booking_is_left_goes_back(self, world, monkeypatch):
        """The provider has taken it, and nobody here has heard of that, when the tenant leaves."""
        leaver = before(monkeypatch, payments, "apply", leaving(world))

        assert capturing(world)() == "done"
        assert leaver.outcome() == "done"
        assert ends_even(world) == "cancelled"
        assert CardRefund.objects.get().amount_minor == world.payment.amount_minor

    def test_is_heard_of_before_somebody_leaves_who_comes_later(self, world, monkeypatch):
        leaver = before(monkeypatch, reservations, "take_held", leaving(world))

        assert capturing(world)() == "done"
        assert leaver.outcome() == "state_conflict"
        assert ends_even(world) == "scheduled"

    def test_is_let_go_by_whoever_leaves_before_it_is_heard_of(self, world, monkeypatch):
        capture = before(monkeypatch, changes, "post", capturing(world))

        assert leaving(world)() == "done"
        assert capture.outcome() == "done"
        assert ends_even(world) == "cancelled"


def test_without_the_way_back_the_market_keeps_what_it_has_no_booking_for(world, monkeypatch):
    capture = before(monkeypatch, changes, "post", capturing(world))
    monkeypatch.setattr(card_refunds, "write", lambda **_: None)

    assert leaving(world)() == "done"
    assert capture.outcome() == "done"
    with pytest.raises(AssertionError):
        ends_even(world)
