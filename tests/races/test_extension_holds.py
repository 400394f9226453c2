"""Hours kept for a payment are paid, dropped and left at one instant: they are added once, or go back."""

import pytest
from django.db import IntegrityError

from billing import added_hours, changes, checkout, provider, receivables, wallet
from billing.models import CardRefund, Payment
from marketplace.core.money import Money
from scheduler import cancellations, extension_holds, extensions
from scheduler.details import ReservationDetails
from scheduler.models import Change, ExtensionHold, Reservation
from tests.billing.card_market import World
from tests.billing.test_added_hours import Extending
from tests.races.interleaving import before, heard, unlocked
from tests.races.test_last_gpus import at_once
from tests.scheduler import factories

CALLS = 6

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


class FromTheWallet(Extending):
    """A tenant whose reservation was bought from its wallet, and that adds hours to it by card."""

    def __init__(self, stand_in, clock):
        World.__init__(self, stand_in, clock)
        factories.make_pool()
        wallet.record_deposit(
            organization=self.tenant,
            amount=Money(1_000_000, "usd"),
            idempotency_key="first",
            at=clock(),
            actor="test",
        )
        self.reservation = checkout.purchase(
            organization=self.tenant,
            quote_id=factories.make_quote(tenant=self.tenant, gpus=2).pk,
            payment_method="wallet",
            details=ReservationDetails(),
            at=clock(),
            actor="test",
        )
        self.old_end = self.reservation.ends_at


@pytest.fixture(params=[Extending, FromTheWallet], ids=["by card", "from the wallet"])
def world(request, provider, clock):
    return request.param(provider, clock)


def ordering(world, *, hours=2):
    quote = world.quote(hours)
    return heard(
        lambda: added_hours.extend(
            organization=world.tenant,
            reservation_id=world.reservation.pk,
            quote_id=quote.pk,
            with_saved_card=False,
            saves_card=False,
            at=world.clock(),
            actor="test",
        )
    )


def extending_from_the_wallet(world):
    quote = world.quote(1)
    return heard(
        lambda: changes.extend(
            organization=world.tenant,
            reservation_id=world.reservation.pk,
            quote_id=quote.pk,
            payment_method="wallet",
            at=world.clock(),
            actor="test",
        )
    )


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


def paid_hours(world):
    """Let added hours be paid at the provider; return what hears of it, and the payment."""
    _, payment = world.order()
    world.pays(payment)
    return payment, heard(
        lambda: provider.read_payment(
            payment_id=payment.pk, object_id=payment.provider_id, at=world.clock()
        )
    )


def goes_on_soundly(world):
    world.turn()
    world.turn(minutes=1)
    world.sound()


def extensions_made():
    return Change.objects.filter(kind="extension").count()


class TestTwoOrders:
    def test_keep_hours_once(self, world):
        orders = [ordering(world, hours=1 + number % 2) for number in range(CALLS)]

        assert at_once(orders) == {"done": 1, "state_conflict": CALLS - 1}
        held = ExtensionHold.objects.get()
        assert world.kept_until() == {held.ends_at}
        assert Payment.objects.filter(extension=held).count() == 1
        goes_on_soundly(world)

    def test_of_one_quote_keep_hours_once(self, world):
        outcomes = at_once([ordering(world)] * 1 + [ordering(world)] * (CALLS - 1))

        assert outcomes["done"] == 1
        assert ExtensionHold.objects.count() == 1
        goes_on_soundly(world)

    def test_and_a_cancellation_leave_nothing_kept(self, world):
        outcomes = at_once([ordering(world), leaving(world)])

        assert outcomes in ({"done": 2}, {"done": 1, "state_conflict": 1})
        reservation = Reservation.objects.get(pk=world.reservation.pk)
        is_left = reservation.status == "cancelled"
        assert ExtensionHold.objects.open().exists() == (not is_left)
        assert world.kept_until() == (set() if is_left else {ExtensionHold.objects.get().ends_at})
        goes_on_soundly(world)


class TestPaidHours:
    def test_are_added_once_however_often_they_are_heard_of(self, world):
        payment, hear = paid_hours(world)

        assert at_once([hear] * CALLS) == {"done": CALLS}
        assert extensions_made() == 1
        assert not CardRefund.objects.filter(payment=payment).exists()
        goes_on_soundly(world)

    @pytest.mark.parametrize("rival", [leaving, extending_from_the_wallet])
    def test_keep_nobody_waiting_who_is_waited_for(self, world, monkeypatch, rival):
        """The money is in the wallet, and the reservation not taken yet, when somebody changes it."""
        payment, hear = paid_hours(world)
        other = before(monkeypatch, extensions, "make_held", rival(world))

        assert hear() == "done"
        assert other.outcome() in {"done", "state_conflict", "payment_required"}
        back = CardRefund.objects.filter(payment=payment)
        assert extensions_made() + back.count() >= 1
        goes_on_soundly(world)

    def test_go_back_when_the_reservation_was_left_meanwhile(self, world, monkeypatch):
        payment, hear = paid_hours(world)
        payer = before(monkeypatch, changes, "post", hear)

        assert leaving(world)() == "done"
        assert payer.outcome() == "done"
        assert extensions_made() == 0
        (back,) = CardRefund.objects.filter(payment=payment)
        assert back.amount_minor == payment.amount_minor
        goes_on_soundly(world)

    @pytest.mark.parametrize("seed", range(3))
    def test_are_added_or_dropped_when_their_time_is_up(self, world, seed):
        _, hear = paid_hours(world)
        held = ExtensionHold.objects.get()
        actions = [
            hear,
            lambda: f"dropped {extension_holds.drop_due(at=held.held_until)}",
            lambda: f"dropped {extension_holds.drop_due(at=held.held_until)}",
        ]

        at_once(actions[seed:] + actions[:seed])

        held.refresh_from_db()
        assert held.made_at is not None, "dropped or not, nobody else has the hours"
        assert (extensions_made(), world.end()) == (1, held.ends_at)
        goes_on_soundly(world)


class TestTwins:
    def test_without_the_lock_two_keep_hours_and_only_the_constraint_is_left(
        self, world, monkeypatch
    ):
        unlocked(monkeypatch, Reservation)
        other = before(monkeypatch, extension_holds, "held_until", ordering(world, hours=1))

        with pytest.raises(IntegrityError):
            ordering(world)()
        assert other.outcome() == "done"

    def test_without_the_lock_hours_that_are_paid_for_are_given_back(self, world, monkeypatch):
        """Nothing but an assertion is left: of who gives back what was made in between."""
        _, hear = paid_hours(world)
        leave = leaving(world)
        unlocked(monkeypatch, Reservation)
        monkeypatch.setattr(receivables, "lock_refund", lambda **_: None)
        payer = before(monkeypatch, extension_holds.calendar, "change_period", hear)

        with pytest.raises(AssertionError, match="ext_"):
            leave()
        assert payer.outcome() == "done"
        assert extensions_made() == 1
