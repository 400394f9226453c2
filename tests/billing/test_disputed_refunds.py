"""What a bank took back does not go back by the same charge: it takes another way, and no try is for ever."""

import datetime as dt

import pytest

from billing import disputes, provider, settlements, watch
from billing.models import Dispute, Intent, Refund
from billing.states import AccountKind
from marketplace.console import waiting
from scheduler import reservations
from tests.billing.deposits.market import InTwoParts
from tests.fakes.stripe import balance as standin_balance

pytestmark = pytest.mark.django_db


class Disputed(InTwoParts):
    """A reservation whose deposit and balance were paid by card, and of which nothing was delivered."""

    def undelivered(self):
        self.booked()
        self.until_due()
        assert self.plan.status == "paid"
        reservations.start_due(at=self.clock(seconds=self.seconds_left()))
        settlements.settle_ended(at=self.clock())
        self.credit = self.balance()  # beside the price
        self.see()
        assert self.account(AccountKind.REFUND_PAYABLE) == self.reservation.total_minor

    def seconds_left(self):
        return (self.reservation.ends_at - self.clock()).total_seconds()

    def dispute(self, payment, *, amount=None):
        """Let a card holder dispute a payment; return the provider's object, of which we know nothing."""
        payment.refresh_from_db()
        return standin_balance.open_dispute(self.stand_in.world, payment.charge_id, amount=amount)

    def learn(self, made, *, won=None):
        if won is not None:
            self.stand_in.control("/_control/close-dispute", {"id": made["id"], "won": won})
        assert provider.READERS["dispute"](made["id"], self.clock())

    def lose(self, payment, *, amount=None):
        made = self.dispute(payment, amount=amount)
        self.learn(made)
        self.learn(made, won=False)
        return made

    def ticks(self, times=3, **passed):
        for _ in range(times):
            self.tick(**passed)

    def refunds(self):
        rows = Refund.objects.order_by("pk").values_list("payment", "amount_minor", "status")
        return [row for row in rows if row[2] != "set_off"]

    def refused(self):
        (found,) = (each for each in watch.people(at=self.clock()) if each.kind == "refused_refund")
        cards = {each.title: each.count for each in waiting.for_people(username="admin")}
        assert cards["Refunds refused"] == found.count
        return found.count, found.oldest_seconds


@pytest.fixture
def world(provider, clock, settings):
    settings.DEPOSIT_PRICE_MINOR_MIN = 10_000
    made = Disputed(provider, clock)
    made.undelivered()
    return made


def test_the_rest_of_a_disputed_balance_goes_back_by_the_deposit(world):
    world.lose(world.second)
    world.ticks(6, seconds=5)
    assert world.refunds() == [(world.first.pk, world.first.amount_minor, "settled")]
    assert Dispute.objects.get().set_off_minor == world.second.amount_minor
    assert (world.account(AccountKind.REFUND_PAYABLE), world.balance()) == (0, world.credit)
    world.sound()


def test_what_a_bank_left_of_a_charge_goes_back_by_it(world):
    world.lose(world.second, amount=100)
    world.ticks(seconds=5)
    left = world.second.amount_minor - 100
    assert set(world.refunds()) == {
        (world.second.pk, left, "settled"),
        (world.first.pk, world.first.amount_minor, "settled"),
    }
    assert world.balance() == world.credit
    world.sound()


def test_what_no_charge_takes_fills_the_wallet(world):
    made = world.lose(world.second, amount=100)
    # The provider takes no refund of the charge at all any more.
    theirs = world.stand_in.world.get(made["id"], "dispute")
    theirs["amount"] = world.second.amount_minor
    world.ticks(6, seconds=5)
    left = world.second.amount_minor - 100
    assert sorted(world.refunds(), key=str) == sorted(
        [
            (world.second.pk, left, "failed"),
            (world.first.pk, world.first.amount_minor, "settled"),
            (None, left, "failed"),
        ],
        key=str,
    )
    assert (world.account(AccountKind.REFUND_PAYABLE), world.balance()) == (0, world.credit + left)
    assert "refund.failed" in world.told()
    world.sound()


def test_a_dispute_that_we_have_not_heard_of_is_waited_for_beside_another_one(world):
    world.lose(world.second)
    other = world.dispute(world.first)
    world.ticks(6, seconds=5)
    assert world.refunds() == [(world.first.pk, world.first.amount_minor, "failed")]
    assert world.account(AccountKind.REFUND_PAYABLE) == world.first.amount_minor
    world.learn(other)
    world.learn(other, won=False)
    world.ticks(seconds=5)
    assert len(world.refunds()) == 1
    assert (world.account(AccountKind.REFUND_PAYABLE), world.balance()) == (0, world.credit)
    world.sound()


def test_a_refusal_that_nothing_explains_is_tried_a_week_long_and_seen_by_an_operator(world):
    world.dispute(world.second)
    assert world.refused() == (0, 0)
    world.ticks(seconds=5)
    first_at = Intent.objects.get(refusal_code=disputes.REFUSED_AS_DISPUTED).closed_at
    assert world.refused() == (1, (world.clock() - first_at).total_seconds())
    for tries in range(2, disputes.REFUSALS_MAX + 1):
        world.tick(days=1)
        world.ticks(seconds=5)
        assert Refund.objects.filter(payment=world.second).count() == tries
    world.ticks(seconds=5)
    world.tick(days=1)
    assert Refund.objects.filter(payment=world.second).count() == disputes.REFUSALS_MAX
    assert world.account(AccountKind.REFUND_PAYABLE) == 0
    assert world.balance() == world.credit + world.second.amount_minor
    assert world.refused() == (0, 0)
    limit = next(each for each in watch.people(at=world.clock()) if each.kind == "refused_refund")
    assert limit.limit_seconds == dt.timedelta(days=1).total_seconds()
    world.sound()


def test_a_charge_whose_dispute_was_won_takes_it_again(world):
    made = world.lose(world.second)
    other = world.dispute(world.first)
    world.ticks(seconds=5)
    world.learn(other)
    world.learn(other, won=True)
    world.ticks(seconds=5)
    assert made["id"] != other["id"]
    assert world.refunds() == [
        (world.first.pk, world.first.amount_minor, "failed"),
        (world.first.pk, world.first.amount_minor, "settled"),
    ]
    world.sound()
