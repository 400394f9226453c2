"""The first part of a price in two: who may pay so, what it books, and the start that waits for the rest."""

import datetime as dt

import pytest
from django.db import IntegrityError, transaction

from billing import deposits, purchases, settlements, tax
from billing.deposits import PaymentPlanUnavailable
from billing.models import Deposit, Entry, Payer, ProviderTransition
from billing.payments import Wishes
from billing.provider_states import PaymentMeans
from billing.states import GPU_SECONDS, AccountKind
from scheduler import reservations
from scheduler.models import Allocation, Lease, Reservation
from tests.billing import factories as books_factories
from tests.billing.deposits.market import DAY

pytestmark = pytest.mark.django_db


class TestDeposit:
    def test_confirms_the_reservation_and_saves_the_card(self, world):
        world.booked()
        total = world.reservation.total_minor
        assert world.reservation.status == "scheduled"
        assert (world.plan.status, world.plan.net_minor) == ("open", total // 4)
        assert (world.first.purpose, world.first.amount_minor) == ("deposit", total // 4)
        assert world.reservation.unpaid_minor == total - total // 4
        assert world.deferred() == total // 4
        assert world.account(AccountKind.U_BOUGHT, GPU_SECONDS) == 8 * DAY * 3600
        assert world.plan.balance_due_at == world.reservation.starts_at - dt.timedelta(days=14)
        assert Payer.objects.get().saved_card_id
        world.sound()

    def test_is_bought_by_nobody_who_does_not_pay_it(self, world):
        world.buy()
        world.turn(minutes=16)
        world.see()
        assert (world.reservation.status, world.plan.status) == ("expired", "awaited")
        assert not Entry.objects.filter(subject_id=world.reservation.pk).exists()
        world.sound()

    def test_that_comes_late_books_again(self, world):
        world.buy()
        reservations.expire_unpaid(at=world.clock(minutes=16))
        world.pays(world.first)
        world.turn()
        world.see()
        assert (world.reservation.status, world.plan.status) == ("scheduled", "open")
        world.sound()

    @pytest.mark.parametrize(
        ("wish", "why"),
        [
            ({"ahead_days": 30}, "30 days"),
            ({"length": 1, "gpus": 1}, "10000 minor units"),
            ({"method": "wallet"}, "by card"),
        ],
    )
    def test_is_refused_where_it_is_not_possible(self, world, wish, why):
        with pytest.raises(PaymentPlanUnavailable, match=why):
            world.buy(**wish)
        assert not Allocation.objects.exists()

    def test_is_refused_where_the_market_takes_none(self, world, settings):
        settings.DEPOSIT_BASIS_POINTS = 0
        with pytest.raises(PaymentPlanUnavailable, match="takes no deposits"):
            world.buy()

    def test_is_stored_as_it_was_told_and_stays_so(self, world):
        world.booked()
        with (
            pytest.raises(IntegrityError, match="only"),
            transaction.atomic(),
        ):
            Deposit.objects.update(balance_net_minor=1)


class TestStart:
    def test_waits_for_the_balance(self, world):
        world.booked()
        world.turn(seconds=(world.reservation.starts_at - world.clock()).total_seconds())
        assert reservations.start_due(at=world.clock()) == 0
        world.see()
        assert world.reservation.status == "scheduled"
        assert not Lease.objects.exists()

    def test_is_refused_by_the_database_while_it_is_open(self, world):
        world.booked()
        with (
            pytest.raises(IntegrityError, match="reservation_is_paid_before_it_begins"),
            transaction.atomic(),
        ):
            Reservation.objects.filter(pk=world.reservation.pk).update(status="active")

    def test_that_never_came_gives_the_deposit_back(self, world):
        world.booked()
        end = world.reservation.ends_at
        world.turn(seconds=(end - world.clock()).total_seconds())
        reservations.start_due(at=world.clock())
        settlements.settle_ended(at=world.clock())
        world.see()
        assert world.reservation.status == "failed"
        world.tick()
        world.first.refresh_from_db()
        assert world.first.refunded_minor == world.first.amount_minor
        assert world.plan.status == "ended"


class TestTax:
    def test_of_both_parts_is_the_tax_of_the_price(self, world):
        books_factories.taxed(buyer=world.tenant)
        world.booked()
        world.until_due()
        total = world.reservation.total_minor
        gross = tax.gross_minor(net_minor=total, terms=tax.terms_of(reservation=world.reservation))
        assert world.first.amount_minor + world.second.amount_minor == gross
        assert world.first.amount_minor == world.plan.gross_minor
        assert purchases.price_with_tax(reservation=world.reservation) == gross
        assert tax.net_kept(reservation=world.reservation) == total
        assert (world.balance(), world.plan.status) == (0, "paid")
        world.sound()


def test_every_move_is_written_down(world):
    world.booked()
    world.until_due()
    moves = ProviderTransition.objects.filter(machine="deposit", subject_id=world.reservation.pk)
    assert list(moves.order_by("id").values_list("from_status", "to_status")) == [
        ("awaited", "open"),
        ("open", "asked"),
        ("asked", "paid"),
    ]


def test_wishes_to_save_a_card_are_made_for_a_deposit(world):
    assert not Wishes(means=PaymentMeans.CARD).saves_card
    world.buy()
    assert world.first.saves_card
    assert deposits.rules.BASIS_POINTS == 10_000
