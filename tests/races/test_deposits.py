"""A balance is paid, asked for and left at one instant: it is bought once or goes back, never both."""

import pytest
from django.db import IntegrityError

from billing import changes, provider
from billing.deposits import collecting, plans
from billing.models import CardRefund, Deposit, Entry, Payment
from billing.payments import learning
from billing.provider_states import PaymentPurpose
from billing.states import EntryKind
from scheduler import cancellations
from tests.billing.card_market import CARD
from tests.billing.deposits.market import InTwoParts
from tests.races.interleaving import before, heard, unlocked
from tests.races.test_last_gpus import at_once

CALLS = 8

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


@pytest.fixture
def world(provider, clock, settings):
    """Return a tenant whose deposit is paid, and whose balance is open."""
    settings.DEPOSIT_PRICE_MINOR_MIN = 10_000
    made = InTwoParts(provider, clock)
    made.booked()
    return made


def asking(world):
    def ask():
        return collecting.pay_early(
            organization=world.tenant,
            reservation_id=world.reservation.pk,
            wishes=CARD,
            at=world.clock(),
        ).pk

    return ask


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


def hearing(world):
    """Return what a webhook does, and the poller at the same time: read the payment, and take it over."""
    payment = world.second
    return heard(
        lambda: provider.read_payment(
            payment_id=payment.pk, object_id=payment.provider_id, at=world.clock()
        )
    )


def a_paid_balance(world):
    """Let the balance be paid at the provider, and nobody here have heard of it."""
    asking(world)()
    provider.drive_payment(payment_id=world.second.pk, at=world.clock())
    world.pays(world.second)
    return hearing(world)


def balances_bought():
    return Entry.objects.filter(kind=EntryKind.BALANCE).count()


def goes_on_soundly(world):
    """Let the beat come round, and find every promise kept."""
    world.tick()
    world.tick(minutes=1)
    world.sound()
    for payment in Payment.objects.filter(status="succeeded"):
        assert payment.refunded_minor <= payment.received_minor


class TestABalance:
    def test_is_asked_for_once_however_many_ask(self, world):
        outcomes = at_once([asking(world)] * CALLS)

        assert list(outcomes.values()) == [CALLS]
        assert Payment.objects.filter(purpose=PaymentPurpose.BALANCE).count() == 1

    def test_is_bought_once_however_often_it_is_heard_of(self, world):
        hear = a_paid_balance(world)

        assert at_once([hear] * CALLS) == {"done": CALLS}

        world.see()
        assert (world.plan.status, balances_bought()) == ("paid", 1)
        assert not CardRefund.objects.exists()
        goes_on_soundly(world)

    def test_is_bought_before_somebody_leaves_who_comes_later(self, world, monkeypatch):
        hear = a_paid_balance(world)
        leaver = before(monkeypatch, plans.purchases, "post_balance", leaving(world))

        assert hear() == "done"
        assert leaver.outcome() == "state_conflict"
        assert balances_bought() == 1
        goes_on_soundly(world)

    @pytest.mark.parametrize(
        ("place", "name"),
        [(learning, "_lock_what_is_paid"), (changes, "post")],
        ids=["paid", "left"],
    )
    def test_goes_back_when_its_reservation_was_left_meanwhile(
        self, world, monkeypatch, place, name
    ):
        hear, leave = a_paid_balance(world), leaving(world)
        first, second = (hear, leave) if place is learning else (leave, hear)
        rival = before(monkeypatch, place, name, second)

        assert (first(), rival.outcome()) == ("done", "done")
        world.see()
        assert (world.reservation.status, balances_bought()) == ("cancelled", 0)
        (back,) = CardRefund.objects.filter(payment=world.second)
        assert back.amount_minor == world.second.received_minor
        goes_on_soundly(world)

    @pytest.mark.parametrize("seed", range(3))
    def test_and_who_leaves_end_soundly_whoever_is_first(self, world, seed):
        actions = [a_paid_balance(world), leaving(world), hearing(world)]

        outcomes = at_once(actions[seed:] + actions[:seed])

        assert sum(outcomes.values()) == len(actions)
        goes_on_soundly(world)


class TestTwins:
    def test_without_the_lock_two_ask_and_only_the_constraint_is_left(self, world, monkeypatch):
        unlocked(monkeypatch, Deposit)
        other = before(monkeypatch, collecting.payments, "open_for_balance", asking(world))

        with pytest.raises(IntegrityError, match="payment_is_open_once_per_purpose"):
            asking(world)()
        assert other.outcome() == world.second.pk

    def test_without_a_lock_on_what_is_left_a_balance_is_bought_all_the_same(
        self, world, monkeypatch
    ):
        """What is paid for is given up in between, by who was not kept waiting."""
        hear = a_paid_balance(world)
        leaver = before(monkeypatch, plans.purchases, "post_balance", leaving(world))
        monkeypatch.setattr(plans.reservations, "pay_up", lambda **_: None)

        assert hear() == "done"
        assert leaver.outcome() == "done"
        world.see()
        assert (world.reservation.status, balances_bought()) == ("cancelled", 1)
        with pytest.raises(AssertionError):
            goes_on_soundly(world)
