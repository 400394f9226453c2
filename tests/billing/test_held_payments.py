"""A booking whose price is only held: nothing of it counts as paid, and it begins paid or not at all."""

import datetime as dt

import pytest

from billing import books, changes, ledger, parking, payments, provider
from billing.models import CardRefund, Payment
from billing.states import AccountKind
from marketplace.core.errors import StateConflict
from marketplace.states import Tier
from scheduler import cancellations, extensions, rebookings, reservations
from scheduler.changes import PaymentHeld
from scheduler.models import Allocation, Lease, Reservation
from scheduler.rebookings import WindowWish
from tests.billing.card_market import World
from tests.scheduler import factories

pytestmark = pytest.mark.django_db


class HeldWorld(World):
    """A market in which a tenant has booked best-effort GPUs, and its card is held."""

    def book(self):
        self.reservation, self.payment = self.reserve(tier=Tier.RECLAIMABLE)
        self.pays(self.payment)
        self.turn()
        assert self.read() == ("scheduled", "authorized")

    def read(self):
        self.reservation = Reservation.objects.get(pk=self.reservation.pk)
        self.payment.refresh_from_db()
        return self.reservation.status, self.payment.status

    def before_start(self, **lead):
        """Turn the clock to some time before the start, and let the beat come round."""
        at = self.reservation.starts_at - dt.timedelta(**lead)
        self.turn(seconds=(at - self.clock()).total_seconds())
        return self.read()

    def capture_unheard(self):
        """Let the provider take the price 15 minutes before the start, and its answer be lost."""
        call = f"POST /v1/payment_intents/{self.payment.provider_id}/capture"
        self.stand_in.fail("timeout_after", call)
        at = self.reservation.starts_at - dt.timedelta(minutes=15)
        self.clock(seconds=(at - self.clock()).total_seconds())
        assert payments.capture_due(at=at) == 1
        assert provider.drive_due(at=at) == 0
        assert self.read() == ("scheduled", "authorized")
        assert self.on_card() == ("succeeded", self.payment.amount_minor)

    def start(self):
        left = self.reservation.starts_at - self.clock()
        reservations.start_due(at=self.clock(seconds=left.total_seconds()))
        return self.read()

    def deferred(self):
        account = ledger.AccountRef(AccountKind.DEFERRED, "usd", self.reservation.pk)
        return ledger.balance(account=account)

    def park(self):
        parking.park(breaches={self.tenant.pk: "looked into"}, at=self.clock())

    def unpark(self):
        parking.end(organization=self.tenant, at=self.clock(), actor="two people")

    def on_card(self):
        """Return what the provider says of the payment, and what of the card holder's money it has."""
        (intent,) = self.stand_in.world.all("payment_intent")
        refunds = self.stand_in.world.all("refund")
        return intent["status"], intent["amount_received"] - sum(r["amount"] for r in refunds)


@pytest.fixture
def world(provider, clock):
    made = HeldWorld(provider, clock)
    made.book()
    return made


def broken(world):
    return [check.name for check in books.check(at=world.clock()).checks if not check.ok]


class TestBooks:
    def test_are_sound_while_the_price_is_held(self, world):
        world.sound()

    def test_are_sound_once_it_was_taken(self, world):
        world.before_start(minutes=10)
        world.sound()

    def test_are_not_where_no_payment_is_held(self, world, unguarded):
        with unguarded():
            Payment.objects.update(status="cancelled")
        assert broken(world) == ["prices_are_locked", "held_prices_are_held"]
        assert books.breaches_of(books.check(at=world.clock())).keys() == {world.tenant.pk}

    def test_are_not_where_what_is_held_is_not_the_price_of_the_quote(self, world):
        Reservation.objects.update(total_minor=world.reservation.total_minor + 1)
        assert broken(world) == ["prices_are_locked"]

    def test_are_not_where_a_held_price_counts_as_paid(self, world):
        Reservation.objects.update(is_payment_held=False)
        assert broken(world) == ["held_prices_are_held"]


class TestCapture:
    def test_comes_before_the_start(self, world):
        assert world.before_start(minutes=16) == ("scheduled", "authorized")
        assert world.before_start(minutes=15) == ("scheduled", "succeeded")
        assert world.reservation.is_paid
        assert world.deferred() == world.reservation.total_minor
        assert world.start() == ("active", "succeeded")
        world.sound()

    def test_that_the_provider_never_makes_ends_the_booking_before_the_start(self, world):
        call = f"POST /v1/payment_intents/{world.payment.provider_id}/capture"
        world.stand_in.fail("server_error", call, times=1000)
        assert world.before_start(minutes=15) == ("scheduled", "authorized")
        assert world.before_start(minutes=3) == ("scheduled", "authorized")
        assert world.before_start(minutes=2)[0] == "payment_failed"
        assert world.reservation.transitions.last().reason == "payment_not_taken"
        assert not Allocation.objects.filter(live=True).exists()
        world.turn(seconds=1)
        assert (world.read()[1], world.on_card()) == ("cancelled", ("canceled", 0))
        assert world.start()[0] == "payment_failed"
        world.sound()

    def test_that_was_made_for_a_booking_that_is_over_goes_back_to_the_card(self, world):
        world.capture_unheard()
        world.clock(minutes=14)
        assert payments.end_untaken(at=world.clock()) == 1
        world.turn(seconds=1)
        assert world.read() == ("payment_failed", "succeeded")
        assert world.on_card() == ("succeeded", 0)
        assert (world.balance(), world.deferred()) == (0, 0)
        world.sound()

    def test_is_not_waited_for_beyond_the_start(self, world):
        assert world.start() == ("payment_failed", "authorized")
        assert not Lease.objects.exists()
        assert not Allocation.objects.filter(live=True).exists()
        world.turn(seconds=2)
        assert (world.read()[1], world.on_card()) == ("cancelled", ("canceled", 0))

    def test_that_buys_nothing_ends_the_booking_and_goes_back(self, world):
        # Against all rules the price is another one than what is held.
        Reservation.objects.update(total_minor=world.reservation.total_minor + 1)
        assert world.before_start(minutes=15) == ("payment_failed", "succeeded")
        assert world.reservation.transitions.last().reason == "payment_returned"
        assert not Allocation.objects.filter(live=True).exists()
        refund = CardRefund.objects.get()
        assert (refund.status, refund.amount_minor) == ("succeeded", world.payment.amount_minor)
        assert world.start()[0] == "payment_failed"

    def test_is_not_made_while_the_money_is_parked_and_the_booking_ends_unpaid(self, world):
        world.park()
        assert world.before_start(minutes=3) == ("scheduled", "authorized")
        assert world.on_card() == ("requires_capture", 0)
        assert world.before_start(minutes=2)[0] == "payment_failed"
        world.turn(seconds=2)
        assert world.on_card() == ("canceled", 0)

    def test_that_was_made_when_the_money_was_parked_is_given_back_afterwards(self, world):
        world.capture_unheard()
        world.park()
        world.turn(minutes=1)
        assert world.read() == ("payment_failed", "succeeded")
        # It came, so it is the tenant's; but nothing of the tenant moves.
        taken = world.payment.received_minor
        assert (world.balance(), world.deferred()) == (taken, 0)
        assert world.on_card() == ("succeeded", taken)
        world.sound()
        world.unpark()
        world.turn(seconds=2)
        assert (world.balance(), world.on_card()) == (0, ("succeeded", 0))
        world.sound()


class TestCancellation:
    def quote(self, world):
        return cancellations.quote(
            organization=world.tenant, reservation_id=world.reservation.pk, at=world.clock()
        )

    def cancel(self, world, quote):
        return changes.cancel(
            organization=world.tenant,
            reservation_id=world.reservation.pk,
            quote_id=quote.pk,
            at=world.clock(),
            actor="key_1",
        )

    def test_costs_nothing_and_releases_the_hold(self, world):
        quote = self.quote(world)
        assert (quote.fee_minor, quote.refund_minor, quote.fee_waived_because) == (0, 0, "not_paid")
        change = self.cancel(world, quote)
        assert (change.refunded_minor, change.fee_minor, change.gpu_seconds_released) == (0, 0, 0)
        world.turn(seconds=2)
        assert world.read() == ("cancelled", "cancelled")
        assert world.on_card() == ("canceled", 0)
        assert not Allocation.objects.filter(live=True).exists()
        world.sound()

    def test_is_possible_while_the_money_is_parked(self, world):
        world.park()
        self.cancel(world, self.quote(world))
        world.turn(seconds=2)
        assert world.on_card() == ("canceled", 0)

    def test_by_a_quote_from_before_the_capture_is_refused(self, world):
        world.before_start(minutes=15.2)
        quote = self.quote(world)
        assert world.before_start(minutes=15) == ("scheduled", "succeeded")
        with pytest.raises(StateConflict, match="changed since the quote"):
            self.cancel(world, quote)
        assert world.deferred() == world.reservation.total_minor

    def test_that_meets_a_capture_under_way_gives_the_money_back(self, world):
        world.capture_unheard()
        self.cancel(world, self.quote(world))
        world.turn(seconds=1)
        assert world.read() == ("cancelled", "succeeded")
        assert world.on_card() == ("succeeded", 0)
        world.sound()


class TestOtherChanges:
    @pytest.fixture
    def asks(self, world):
        who = {"organization": world.tenant, "reservation_id": world.reservation.pk}
        later = world.reservation.ends_at + factories.hours(1)
        sooner = world.reservation.ends_at - factories.hours(1)
        return [
            lambda: extensions.quote(**who, ends_at=later, max_rate=None, at=world.clock()),
            lambda: rebookings.quote(**who, wish=WindowWish(ends_at=sooner), at=world.clock()),
        ]

    def test_are_refused_until_the_price_was_taken(self, world, asks):
        for ask in asks:
            with pytest.raises(PaymentHeld):
                ask()
        assert world.before_start(minutes=15) == ("scheduled", "succeeded")
        assert all(ask() for ask in asks)
