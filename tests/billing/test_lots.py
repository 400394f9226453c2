"""Two owners with different floors in one request: each is paid its own price, to the cent."""

from decimal import Decimal

import pytest

from billing import books
from billing.models import Settlement
from marketplace.models import Organization
from scheduler import prices
from scheduler.models import Lease, Reservation
from scheduler.prices import replay
from tests.billing.bookings import buy, extend, finish, leave, start
from tests.scheduler.factories import (
    NOW,
    floors_of,
    hours,
    lots_of,
    make_listing,
    make_node,
    make_organization,
    say_returned,
    window_in,
)

pytestmark = pytest.mark.django_db


def two_owners() -> tuple[Organization, Organization]:
    """Eight GPUs at a floor of 2.00, and eight at 3.00."""
    cheap, dear = make_organization(), make_organization()
    for owner, floor in ((cheap, 2), (dear, 3)):
        make_node(owner=owner)
        make_listing(owner=owner, floor_rate=Decimal(floor))
    return cheap, dear


def deliver(reservation: Reservation) -> None:
    """Let the nodes return everything at the last second, and settle it."""
    for lease in Lease.objects.filter(reservation=reservation, closed_at__isnull=True):
        say_returned(lease)
    finish(reservation, at=reservation.ends_at)


class TestTwoOwners:
    """Twelve GPUs for two hours. With the fee of 15 % on top the floors are 2.352942 and 3.529412.

    8 × 2 × 2.352942 = 37.647072 and 4 × 2 × 3.529412 = 28.235296 make 65.882368.
    """

    def test_cost_the_sum_of_their_lots(self) -> None:
        two_owners()

        reservation = buy(gpus=12, spread="any")

        assert floors_of(reservation) == [(8, Decimal(2)), (4, Decimal(3))]
        assert reservation.total_minor == 6_588
        assert reservation.rate == Decimal("2.745099")  # 65.882368 ÷ 24, rounded up
        lines = reservation.quote.price_breakdown["lots"]
        assert [(line["gpus"], line["rate"], line["owner_rate"]) for line in lines] == [
            (8, "2.352942", "2.000000"),
            (4, "3.529412", "3.000000"),
        ]
        published = prices.__doc__ or ""
        assert all(f in published for f in ("3.529412", "65.882368", "65.88", "2.745099"))
        assert all(figure.agrees for figure in replay.replay(quote=reservation.quote))

    def test_are_each_paid_their_own_price_less_the_fee(self) -> None:
        cheap, dear = two_owners()
        reservation = buy(gpus=12, spread="any")
        start(reservation)

        deliver(reservation)

        paid = {
            row.owner_id: (row.earned_minor, row.fee_minor, row.owner_minor)
            for row in Settlement.objects.all()
        }
        # 15 % of 37.65 and of 28.23, rounded: what is left is the floors exactly, 16 × 2 and 8 × 3.
        assert paid == {cheap.pk: (3_765, 565, 3_200), dear.pk: (2_823, 423, 2_400)}
        assert sum(earned for earned, _, _ in paid.values()) == reservation.total_minor
        assert books.check(at=reservation.ends_at + hours(1)).ok

    def test_are_each_extended_at_their_own_floor(self) -> None:
        two_owners()
        reservation = buy(gpus=12, spread="any")

        change = extend(reservation, by=1)

        reservation.refresh_from_db()
        # 8 × 2.352942 + 4 × 3.529412 = 32.941184 for the third hour; 98.823552 for all three.
        assert (change.charged_minor, reservation.total_minor) == (3_294, 9_882)
        assert [lot.tariff.window for lot in lots_of(reservation)] == [reservation.window] * 2
        start(reservation)
        deliver(reservation)
        assert sorted(Settlement.objects.values_list("owner_minor", flat=True)) == [3_600, 4_800]
        assert books.check(at=reservation.ends_at + hours(1)).ok

    def test_share_the_fee_of_a_cancellation_by_the_worth_of_what_they_had_kept(self) -> None:
        cheap, dear = two_owners()
        reservation = buy(gpus=12, spread="any", window=window_in(12))

        change = leave(reservation)

        assert change.refunded_minor + change.fee_minor == 6_588
        parts = dict(change.fee_shares.values_list("owner_id", "amount_minor"))
        of_owners = sum(parts.values())
        assert parts[cheap.pk] == round(of_owners * 37.647072 / 65.882368)
        assert parts[dear.pk] == of_owners - parts[cheap.pk] > 0
        assert books.check(at=NOW + hours(1)).ok

    def test_price_what_is_returned_early_over_all_lots(self) -> None:
        two_owners()
        reservation = buy(gpus=12, spread="any")
        start(reservation)

        leave(reservation, at=reservation.starts_at + hours(1))

        reservation.refresh_from_db()
        assert abs(reservation.total_minor - 3_294) <= 1  # an hour, and the second that began
        deliver(reservation)
        assert books.check(at=reservation.ends_at + hours(1)).ok

    def test_on_one_node_are_one_lease_of_two_lots(self) -> None:
        """An owner asks less for what is idle: two floors on one machine, and one handover."""
        owner = make_organization()
        node = make_node(owner=owner)
        make_listing(owner=owner, floor_rate=Decimal(3))
        make_listing(
            owner=owner,
            floor_rate=Decimal(2),
            mode="when_idle",
            idle_for_seconds=60,
            rolling_seconds=86_400,
        )
        busy = node.gpus.filter(slot__lt=node.slot_base + 3)
        busy.update(idle_state="busy", idle_since=None)

        reservation = buy(gpus=8, window=window_in(1))

        assert floors_of(reservation) == [(5, Decimal(2)), (3, Decimal(3))]
        # 2 × (5 × 2.352942 + 3 × 3.529412) = 44.705892
        assert reservation.total_minor == 4_471
        (lease,) = start(reservation)
        assert lease.gpu_lots == [1, 1, 1, 0, 0, 0, 0, 0]
        deliver(reservation)
        settled = Settlement.objects.get()
        assert (settled.earned_minor, settled.owner_minor) == (4_471, 3_800)  # 2 × (5 × 2 + 3 × 3)
        assert books.check(at=reservation.ends_at + hours(1)).ok
