"""What arrives by bank and fits no payment: late, in parts, too much. It ends where its tenant can use it."""

import pytest

from billing import chargeable, inbox, provider
from billing.models import CardRefund, Payer, Payment
from scheduler import reservations
from tests.billing.card_market import BANK, World, fund_cash

pytestmark = pytest.mark.django_db


@pytest.fixture
def world(provider, clock):
    return Market(provider, clock)


class Market(World):
    def turn(self, **passed):
        super().turn(**passed)
        inbox.poll(at=self.clock())
        inbox.process_due(at=self.clock())
        provider.drive_due(at=self.clock())

    def send(self, amount):
        customer = Payer.objects.get().customer_id
        fund_cash(self.stand_in, customer, {"amount": str(amount), "currency": "usd"})

    def turns(self, count=3):
        for _ in range(count):
            self.turn()

    def left(self):
        return sum(sum(row["_cash"].values()) for row in self.stand_in.world.all("customer"))


def test_what_is_sent_too_much_fills_the_wallet(world):
    world.top_up(amount=10_000, wishes=BANK)
    world.send(12_345)
    world.turns()
    assert (world.balance(), world.left()) == (12_345, 0)
    world.sound()


def test_a_part_waits_with_the_payment_that_it_is_for(world):
    payment = world.top_up(amount=10_000, wishes=BANK)
    world.send(4_000)
    world.turns()
    payment.refresh_from_db()
    assert (payment.status, payment.instructions["amount_remaining"]) == ("open", 6_000)
    assert (world.balance(), Payment.objects.count()) == (0, 1)


def test_a_part_fills_the_wallet_when_the_payment_is_given_up(world):
    payment = world.top_up(amount=10_000, wishes=BANK)
    world.send(4_000)
    world.turn(days=15)
    world.turns()
    payment.refresh_from_db()
    assert payment.status == "cancelled"
    assert (world.balance(), world.left()) == (4_000, 0)
    world.sound()


def test_what_comes_too_late_buys_the_reservation_at_its_locked_price(world):
    reservation, payment = world.reserve(BANK, starts_in=96)
    world.turn(hours=13)
    reservation.refresh_from_db()
    assert reservation.status == "expired"
    world.send(payment.amount_minor + 700)
    world.turns(4)
    reservation.refresh_from_db()
    assert reservation.status == "scheduled"
    assert (world.balance(), world.left()) == (700, 0)
    world.sound()


def test_what_comes_when_the_gpus_are_gone_is_asked_for_once(world):
    reservation, payment = world.reserve(BANK, starts_in=96)
    world.turn(hours=13)
    world.nodes_report = False
    world.clock(hours=1)
    world.send(payment.amount_minor)
    world.turns(4)
    reservation.refresh_from_db()
    assert reservation.status == "expired"
    assert CardRefund.objects.get().amount_minor == payment.amount_minor
    assert Payment.objects.filter(reservation=reservation).count() == 2
    world.sound()


def test_what_comes_after_the_start_fills_the_wallet(world):
    reservation, payment = world.reserve(BANK, starts_in=96)
    world.turn(hours=13)
    world.turn(days=5)
    world.send(payment.amount_minor)
    world.turns()
    assert world.balance() == payment.amount_minor
    assert reservation.payment_method == "bank_transfer"


def test_less_than_the_provider_takes_stays_until_more_comes(world):
    world.top_up(amount=10_000, wishes=BANK)
    world.send(10_000 + chargeable.least("usd") - 1)
    world.turns()
    assert (world.balance(), world.left()) == (10_000, chargeable.least("usd") - 1)
    world.send(1)
    world.turns()
    assert (world.balance(), world.left()) == (10_000 + chargeable.least("usd"), 0)


def test_an_event_is_reason_enough_to_look(world):
    world.top_up(amount=10_000, wishes=BANK)
    world.send(10_000)
    world.turn()
    world.send(1_000)
    inbox.poll(at=world.clock(minutes=1))
    inbox.process_due(at=world.clock())
    provider.drive_due(at=world.clock())
    assert world.balance() == 11_000


def test_a_cash_balance_that_cannot_be_read_is_read_later(world):
    world.top_up(amount=10_000, wishes=BANK)
    world.send(11_000)
    world.stand_in.fail("server_error", "GET /v1/customers", times=2)
    for _ in range(4):
        world.turn(minutes=5)
    assert world.balance() == 11_000


def test_an_expired_reservation_is_not_bought_twice(world):
    reservation, payment = world.reserve(BANK, starts_in=96)
    world.turn(hours=13)
    for _ in range(2):
        world.send(payment.amount_minor)
        world.turns(4)
    reservation.refresh_from_db()
    assert (reservation.status, world.balance()) == ("scheduled", payment.amount_minor)
    assert reservations.expire_unpaid(at=world.clock()) == 0
