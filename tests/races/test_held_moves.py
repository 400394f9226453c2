"""A window kept for a payment is paid, left, dropped and sold at one instant: it is taken, or all goes back.

Never both, and no GPU is in two places. The twins take out what keeps them apart.
"""

import datetime as dt

import pytest

from agents.models import Node
from billing import changes, checkout, provider, receivables, wallet
from billing.models import CardRefund
from marketplace.core.money import Money
from scheduler import cancellations, extension_holds, held_moves, quotes, rebookings
from scheduler.details import ReservationDetails
from scheduler.models import Change, ExtensionHold, Reservation
from scheduler.placement import assignment
from tests.billing.test_moves_by_card import AWAY, OVERLAPPING, Moving
from tests.races.interleaving import before, heard, unlocked
from tests.races.test_changes import nothing_overlaps
from tests.races.test_last_gpus import at_once, no_guards
from tests.scheduler import factories

CALLS = 6
KEPT_FOR = dt.timedelta(seconds=extension_holds.HELD_SECONDS)

__all__ = ["no_guards"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


@pytest.fixture
def world(provider, clock):
    return Moving(provider, clock)


def paid_move(world, *, by=AWAY):
    """Let another window be paid at the provider; return the payment, and what hears of it."""
    _, payment = world.order(by=by)
    world.pays(payment)
    return payment, hearing(world, payment)


def hearing(world, payment):
    """Return what a webhook does, and the poller at the same time: read the payment, and take it over."""
    at = world.clock()
    return heard(
        lambda: provider.read_payment(payment_id=payment.pk, object_id=payment.provider_id, at=at)
    )


def leaving(world):
    quote = cancellations.quote(
        organization=world.tenant, reservation_id=world.reservation.pk, at=world.clock()
    )
    return heard(lambda: changes.cancel(**world.of(quote)))


def shortening(world):
    quote = world.quote((0, -1))
    return heard(lambda: changes.rebook(**world.of(quote), payment_method="wallet"))


def dropping(at):
    """Return what two ticks of the beat do at an instant: of the hold, and of the quote that holds for it."""
    return lambda: f"dropped {extension_holds.drop_due(at=at)}, {quotes.expire_due(at=at)}"


def buying_there(world, *, gpus):
    """Return how somebody else buys GPUs in the window that was kept until now."""
    at = world.clock()
    Node.objects.update(last_report_at=at)
    rival = factories.make_organization()
    wallet.record_deposit(
        organization=rival,
        amount=Money(1_000_000, "usd"),
        idempotency_key="the rival's",
        at=at,
        actor="test",
    )
    quote = factories.make_quote(
        tenant=rival, gpus=gpus, window=factories.window_in(72 + 25, length=1), at=at
    )
    return heard(
        lambda: checkout.purchase(
            organization=rival,
            quote_id=quote.pk,
            payment_method="wallet",
            details=ReservationDetails(),
            at=at,
            actor="test",
        )
    )


def is_moved():
    return Change.objects.filter(kind="move").exists()


def ends_one_way(world, payment):
    """Let the beat come round: the window was taken, or exactly what was paid for it is back."""
    world.turn()
    world.turn(minutes=1)
    back = CardRefund.objects.filter(payment=payment)
    assert [each.amount_minor for each in back] == ([] if is_moved() else [payment.amount_minor])
    assert {each.status for each in back} <= {"succeeded"}
    assert world.kept() == set()
    held = ExtensionHold.objects.get()
    assert (held.made_at is not None) == is_moved()
    assert (world.window() == held.window) == is_moved()
    assert nothing_overlaps()
    world.sound()
    return is_moved()


class TestAPaidWindow:
    @pytest.mark.parametrize("by", [AWAY, OVERLAPPING], ids=["away", "overlapping"])
    def test_is_taken_once_however_often_it_is_heard_of(self, world, by):
        payment, hear = paid_move(world, by=by)

        assert at_once([hear] * CALLS) == {"done": CALLS}
        assert Change.objects.count() == 1
        assert ends_one_way(world, payment)

    @pytest.mark.parametrize("rival", [leaving, shortening])
    def test_keeps_who_changes_it_waiting(self, world, monkeypatch, rival):
        payment, hear = paid_move(world)
        other = before(monkeypatch, rebookings, "write", rival(world))

        assert hear() == "done"
        assert other.outcome() == "state_conflict"
        assert ends_one_way(world, payment)

    @pytest.mark.parametrize("rival", [leaving, shortening])
    def test_goes_back_when_its_reservation_was_changed_meanwhile(self, world, monkeypatch, rival):
        payment, hear = paid_move(world)
        payer = before(monkeypatch, changes, "post", hear)

        assert rival(world)() == "done"
        assert payer.outcome() == "done"
        assert not ends_one_way(world, payment)

    @pytest.mark.parametrize("seed", range(3))
    def test_and_who_leaves_have_one_winner(self, world, seed):
        payment, hear = paid_move(world)
        actions = [hear, leaving(world), hear]

        outcomes = at_once(actions[seed:] + actions[:seed])

        assert outcomes in ({"done": 3}, {"done": 2, "state_conflict": 1})
        assert ends_one_way(world, payment) == (outcomes["done"] == 2)
        assert (world.reservation.status == "cancelled") == (outcomes["done"] == 3)

    @pytest.mark.parametrize("seed", range(3))
    def test_is_taken_all_the_same_when_its_time_is_up(self, world, seed):
        """Nobody else has it: dropped or not, the money takes it."""
        payment, hear = paid_move(world)
        lapse = dropping(world.clock() + KEPT_FOR)
        actions = [hear, lapse, lapse]

        at_once(actions[seed:] + actions[:seed])

        assert ends_one_way(world, payment)

    def test_is_not_dropped_while_it_is_taken(self, world, monkeypatch):
        payment, hear = paid_move(world)
        tick = before(monkeypatch, rebookings, "write", dropping(world.clock() + KEPT_FOR))

        assert hear() == "done"
        assert tick.outcome() == "dropped 0, 0"
        assert ends_one_way(world, payment)

    def test_is_taken_again_by_who_waited_for_its_drop(self, world, monkeypatch):
        payment, hear = paid_move(world)
        payer = before(monkeypatch, extension_holds.holds, "release", hear)

        assert extension_holds.drop_due(at=world.clock() + KEPT_FOR) == 1
        assert payer.outcome() == "done"
        assert ends_one_way(world, payment)

    @pytest.mark.parametrize("seed", range(4))
    def test_that_came_late_is_taken_or_sold_to_somebody_else(self, world, seed):
        payment, _ = paid_move(world)
        late = world.clock(seconds=KEPT_FOR.total_seconds())
        buy = buying_there(world, gpus=7)
        actions = [hearing(world, payment), buy, dropping(late), hearing(world, payment)]

        outcomes = at_once(actions[seed:] + actions[:seed])

        assert outcomes["done"] + outcomes["capacity_taken"] == 3
        assert ends_one_way(world, payment) == (outcomes["capacity_taken"] == 1)

    def test_that_came_late_goes_back_when_somebody_takes_it_first(self, world, monkeypatch):
        payment, _ = paid_move(world)
        world.clock(seconds=KEPT_FOR.total_seconds())
        buy, hear = buying_there(world, gpus=7), hearing(world, payment)
        payer = before(monkeypatch, checkout.purchases, "post", hear)

        assert buy() == "done"
        assert payer.outcome() == "done"
        assert not ends_one_way(world, payment)


class TestTwins:
    def test_without_the_lock_a_reservation_is_moved_that_was_left(self, world, monkeypatch):
        unlocked(monkeypatch, Reservation)
        monkeypatch.setattr(receivables, "lock_refund", lambda **_: None)
        _, hear = paid_move(world)
        leaver = before(monkeypatch, held_moves.rebookings, "check_start", leaving(world))

        hear()

        assert leaver.outcome() == "done"
        world.reservation.refresh_from_db()
        assert (world.reservation.status, is_moved()) == ("cancelled", True)
        with pytest.raises(AssertionError):
            world.sound()

    def test_without_the_guards_of_the_calendar_its_gpus_are_sold_twice(
        self, world, monkeypatch, request
    ):
        payment, _ = paid_move(world)
        extension_holds.drop_due(at=world.clock(seconds=KEPT_FOR.total_seconds()))
        actions = [buying_there(world, gpus=7), hearing(world, payment)]
        request.getfixturevalue("no_guards")
        monkeypatch.setattr(assignment, "_clear", lambda **_: None)

        assert at_once(actions) == {"done": 2}
        assert is_moved()
        assert not nothing_overlaps()
