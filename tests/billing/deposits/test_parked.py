"""Nothing is charged and nothing given up of parked money; afterwards it goes on."""

import datetime as dt

import pytest
from django.db import transaction

from billing import ledger, parking, settlements
from billing.models import CardRefund
from billing.states import AccountKind
from scheduler import reservations
from tests.billing import factories as books_factories

pytestmark = pytest.mark.django_db


class TestParked:
    """Nothing is charged and nothing given up of parked money; afterwards it goes on."""

    def park(self, world):
        parking.park(breaches={world.tenant.pk: "why"}, at=world.clock())

    def unpark(self, world):
        parking.end(organization=world.tenant, at=world.clock(), actor="two people")

    def asked(self, world):
        """Let a balance be asked for that the bank of the saved card declines."""
        world.booked()
        world.behave("insufficient_funds")
        world.until_due()
        assert world.plan.status == "asked"

    def test_balance_is_charged_when_it_moves_again(self, world):
        world.booked()
        self.park(world)
        world.until_due()
        assert (world.plan.status, world.second) == ("open", None)
        world.tick(days=1)
        assert (world.plan.status, world.reservation.status) == ("open", "scheduled")
        self.unpark(world)
        world.tick()
        assert (world.plan.status, world.reservation.unpaid_minor) == ("paid", 0)
        world.sound()

    def test_balance_that_is_paid_meanwhile_waits_in_the_wallet_and_buys_afterwards(self, world):
        self.asked(world)
        self.park(world)
        world.pays(world.second)
        world.tick(hours=80)
        assert (world.plan.status, world.reservation.status) == ("asked", "scheduled")
        assert world.balance() == world.second.amount_minor
        assert not CardRefund.objects.exists()
        world.sound()
        self.unpark(world)
        world.tick()
        assert (world.plan.status, world.reservation.unpaid_minor) == ("paid", 0)
        assert (world.balance(), world.kinds()[-1]) == (0, "balance.paid")
        world.sound()

    def test_balance_that_was_paid_meanwhile_and_then_spent_is_still_owed(self, world):
        self.asked(world)
        self.park(world)
        world.pays(world.second)
        world.tick(hours=1)
        self.unpark(world)
        other = books_factories.reservation(
            buyer=world.tenant, total_minor=world.second.amount_minor
        )
        assert world.balance() == 0
        world.tick()
        assert (world.plan.status, world.reservation.status) == ("asked", "scheduled")
        assert other.status == "active"

    def test_time_to_return_begins_anew(self, world):
        self.asked(world)
        world.tick(hours=10)
        self.park(world)
        world.tick(hours=100)
        assert (world.plan.status, world.reservation.status) == ("asked", "scheduled")
        self.unpark(world)
        world.tick()
        assert world.reservation.status == "scheduled"
        assert world.plan.return_by == world.clock() + dt.timedelta(hours=72)
        world.tick()
        assert world.second.status == "open"
        assert world.second.due_at == world.plan.return_by
        world.pays(world.second)
        world.tick()
        assert (world.plan.status, world.reservation.unpaid_minor) == ("paid", 0)
        world.sound()

    def test_time_to_return_is_given_anew_once(self, world):
        self.asked(world)
        self.park(world)
        world.tick(hours=100)
        self.unpark(world)
        world.tick()
        world.tick(hours=72)
        assert (world.reservation.status, world.plan.status) == ("cancelled", "ended")
        world.tick()
        world.ends_empty()

    def test_reservation_cannot_be_left_and_is_left_afterwards(self, world):
        world.booked()
        self.park(world)
        with pytest.raises(parking.MoneyParked), transaction.atomic():
            world.leave()
        world.see()
        assert (world.reservation.status, world.plan.status) == ("scheduled", "open")
        self.unpark(world)
        quote = world.leave()
        world.tick()
        world.tick()
        assert world.reservation.status == "cancelled"
        world.first.refresh_from_db()
        assert world.first.refunded_minor == quote.refund_minor
        world.ends_empty()

    def test_until_the_end_gives_back_both_parts_and_costs_nothing(self, world):
        self.asked(world)
        self.park(world)
        world.pays(world.second)
        world.tick(seconds=(world.reservation.ends_at - world.clock()).total_seconds())
        reservations.start_due(at=world.clock())
        world.tick()
        assert (world.reservation.status, world.plan.status) == ("failed", "ended")
        assert world.balance() == world.second.amount_minor
        self.unpark(world)
        settlements.settle_ended(at=world.clock())
        for _ in range(3):
            world.tick()
        for payment in (world.first, world.second):
            payment.refresh_from_db()
            assert payment.refunded_minor == payment.amount_minor
        # What is left is the credit for what was not delivered.
        credit = ledger.balance(account=ledger.AccountRef(AccountKind.SLA_CREDITS, "usd"))
        assert (world.balance(), world.deferred()) == (credit, 0)

    def test_beyond_the_time_to_ask_costs_nothing(self, world):
        world.booked()
        self.park(world)
        start = world.reservation.starts_at
        world.tick(seconds=(start - world.clock()).total_seconds() - 1800)
        assert world.reservation.status == "scheduled"
        self.unpark(world)
        for _ in range(3):
            world.tick()
        assert world.reservation.status == "cancelled"
        world.first.refresh_from_db()
        assert world.first.refunded_minor == world.first.amount_minor
        world.ends_empty()
