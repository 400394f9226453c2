"""Leaving after the start: what was used is settled, and the rest is given back less its fee."""

import pytest

from billing import releases, settlements
from billing.models import FeeShare
from billing.states import AccountKind
from scheduler import leases, reservations
from scheduler.models import Lease, Reservation
from tests.billing.bookings import FUNDS_MINOR, LONG_AFTER, buy, finish, gpu_seconds, leave, start
from tests.billing.readings import balance, breaches, purse
from tests.scheduler import factories
from tests.scheduler.factories import NOW, hours, make_pool, seconds, window_in

pytestmark = pytest.mark.django_db


class TestEarlyReturn:
    def test_settles_what_was_used_and_keeps_the_rest_as_the_fee(self) -> None:
        owner = make_pool()
        reservation = buy(gpus=2, window=window_in(1))
        price = reservation.total_minor
        start(reservation)
        left_at = reservation.starts_at + hours(1) - seconds(1)
        change = leave(reservation, at=left_at)
        assert (change.refunded_minor, change.charged_minor) == (0, 0)
        reservation.refresh_from_db()
        assert reservation.total_minor + change.fee_minor == price
        finish(reservation, at=left_at + seconds(5))

        reservation.refresh_from_db()
        assert reservation.status == "completed"
        settlement = reservation.leases.get().settlement
        assert (settlement.bought_minor, settlement.refunded_minor) == (
            reservation.total_minor,
            0,
        )
        assert settlement.gpu_seconds_delivered == 2 * 3600
        assert gpu_seconds(AccountKind.U_RELEASED, of=reservation) == 2 * 3600
        assert gpu_seconds(AccountKind.U_OPEN, of=reservation) == 0
        assert balance(AccountKind.DEFERRED, reservation.pk) == 0
        assert FeeShare.objects.get().owner == owner
        assert breaches(at=NOW + LONG_AFTER) == []

    def test_gives_back_what_the_ladder_says(self) -> None:
        make_pool()
        factories.publish_ladder((0, 2_500))
        reservation = buy(gpus=2, window=window_in(1))
        start(reservation)
        left_at = reservation.starts_at + seconds(1799)
        change = leave(reservation, at=left_at)
        given_back = change.refunded_minor + change.fee_minor
        assert change.fee_minor == round(given_back / 4)
        finish(reservation, at=left_at + seconds(5))
        assert purse(reservation.organization) == (
            FUNDS_MINOR - Reservation.objects.get(pk=reservation.pk).total_minor - change.fee_minor
        )
        assert breaches(at=NOW + LONG_AFTER) == []

    def test_of_a_block_that_lost_a_node_refunds_it_whole(self) -> None:
        make_pool(nodes=2)
        reservation = buy(gpus=16, window=window_in(1))
        reservations.start_due(at=reservation.starts_at)
        kept, lost = Lease.objects.filter(reservation=reservation).order_by("pk")
        factories.say_handed_over(kept, at=kept.starts_at)
        factories.say_failed(lost)
        leases.advance(at=reservation.starts_at + seconds(2))
        left_at = reservation.starts_at + hours(1) - seconds(1)
        change = leave(reservation, at=left_at)
        assert change.fee_minor == 0
        assert change.gpu_seconds_released == 16 * 3600
        finish(reservation, at=left_at + seconds(5))
        used = Lease.objects.get(pk=kept.pk).settlement
        assert used.gpu_seconds_delivered == 8 * 3600
        # The lost node's hour is refunded, with a credit of a tenth of it; what is given back has none.
        assert purse(reservation.organization) == FUNDS_MINOR - used.earned_minor + 188
        assert balance(AccountKind.DEFERRED, reservation.pk) == 0
        assert gpu_seconds(AccountKind.U_OPEN, of=reservation) == 0
        assert breaches(at=NOW + LONG_AFTER) == []

    def test_after_a_lost_node_was_settled_still_closes_at_zero(self) -> None:
        make_pool(nodes=2)
        reservation = buy(gpus=16, window=window_in(1, length=3))
        reservations.start_due(at=reservation.starts_at)
        kept, lost = Lease.objects.filter(reservation=reservation).order_by("pk")
        factories.say_handed_over(kept, at=kept.starts_at)
        factories.say_failed(lost)
        leases.advance(at=reservation.starts_at + seconds(2))
        settlements.settle_ended(at=reservation.starts_at + LONG_AFTER)
        left_at = reservation.starts_at + hours(1) - seconds(1)
        leave(reservation, at=left_at)
        finish(reservation, at=left_at + seconds(5))
        used = Lease.objects.get(pk=kept.pk).settlement
        # The lost node's hour is refunded, with a credit of a tenth of it; what is given back has none.
        assert purse(reservation.organization) == FUNDS_MINOR - used.earned_minor + 188
        assert balance(AccountKind.DEFERRED, reservation.pk) == 0
        assert gpu_seconds(AccountKind.U_OPEN, of=reservation) == 0
        assert breaches(at=NOW + LONG_AFTER) == []
        releases.release_due(at=NOW + 2 * LONG_AFTER)
        assert breaches(at=NOW + 2 * LONG_AFTER) == []
