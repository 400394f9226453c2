"""Another window before the start: shorter, earlier, later, longer; what it costs and where it stands."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

from agents.models import Node
from marketplace.core.errors import InvalidValue, NotFound, StateConflict
from marketplace.core.windows import Window, format_instant
from marketplace.models import Event, Listing
from scheduler import cancellations, change_rules, rebookings, reservations
from scheduler.calendar import (
    BeyondHorizon,
    CapacityTaken,
    WindowInPast,
    WindowOffGrid,
    WindowUpsideDown,
)
from scheduler.lots import Lots
from scheduler.models import Allocation, Change, ChangeQuote, Reservation, TenantLimit
from scheduler.quotas import LimitExceeded
from scheduler.quotes import NotEnoughCapacity, PriceAboveMax, WindowTooShort
from scheduler.rebookings import MoveTooLate, WindowWish
from tests.scheduler.factories import (
    NOW,
    hours,
    lots_of,
    make_listing,
    make_node,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    seconds,
    window_in,
)

pytestmark = pytest.mark.django_db

DAYS = 24


def ask(
    reservation: Reservation,
    *,
    starts: float | None = None,
    ends: float | None = None,
    max_rate: str | None = None,
    at: dt.datetime = NOW,
) -> ChangeQuote:
    """Ask for a start and an end so many hours from NOW."""
    return rebookings.quote(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        wish=WindowWish(
            starts_at=None if starts is None else NOW + hours(starts),
            ends_at=None if ends is None else NOW + hours(ends),
            max_rate=Decimal(max_rate) if max_rate else None,
        ),
        at=at,
    )


def take(reservation: Reservation, quote: ChangeQuote, *, at: dt.datetime = NOW) -> Change:
    return rebookings.rebook(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        at=at,
        actor="key_test",
    )


def places(reservation: Reservation) -> list[Allocation]:
    return list(Allocation.objects.filter(reservation=reservation, live=True).order_by("pk"))


def read(reservation: Reservation) -> Reservation:
    return Reservation.objects.get(pk=reservation.pk)


def as_it_was(reservation: Reservation) -> bool:
    now = read(reservation)
    columns = ("status", "starts_at", "ends_at", "lots", "rate", "total_minor")
    slots = sum(a.slots.upper - a.slots.lower for a in places(reservation))
    periods = {(a.period.lower, a.period.upper) for a in places(reservation)}
    return (
        all(getattr(now, c) == getattr(reservation, c) for c in columns)
        and slots == reservation.gpus
        and periods == {(reservation.starts_at, reservation.ends_at)}
    )


class TestShortening:
    def test_gives_back_the_hours_less_the_fee_of_the_ladder(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=2, window=window_in(10 * DAYS, length=4))
        quote = ask(reservation, ends=10 * DAYS + 3)
        assert (quote.kind, quote.fee_basis_points) == ("shortening", 2_500)
        moved = change_rules.difference(
            before=reservation.total_minor, after=quote.total_minor, fee_basis_points=2_500
        )
        assert (quote.charge_minor, quote.refund_minor, quote.fee_minor) == (
            0,
            moved.refund,
            moved.fee,
        )
        assert quote.added_rate is None

    def test_allocates_nothing_anew(self) -> None:
        """Blazar, `test_update_reservation_shorten`: a later start creates and removes no allocation."""
        make_pool()
        reservation = make_reservation(gpus=2, window=window_in(48, length=4))
        before = [(a.pk, a.node_id, a.slots) for a in places(reservation)]
        change = take(reservation, ask(reservation, starts=50))
        assert [(a.pk, a.node_id, a.slots) for a in places(reservation)] == before
        now = read(reservation)
        assert now.starts_at == NOW + hours(50)
        assert {(a.period.lower, a.period.upper) for a in places(now)} == {
            (now.starts_at, now.ends_at)
        }
        assert (change.gpu_seconds_added, change.gpu_seconds_released) == (0, 2 * 2 * 3600)

    def test_puts_the_hours_on_sale_at_once(self) -> None:
        make_pool(gpus=1)
        reservation = make_reservation(window=window_in(48, length=4))
        take(reservation, ask(reservation, ends=50))
        assert make_reservation(window=window_in(50, length=2))

    def test_keeps_the_price_of_what_is_kept(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(48, length=4))
        Listing.objects.update(floor_rate=Decimal("9.000000"))
        take(reservation, ask(reservation, starts=49, ends=51))
        lots = Lots.from_json(read(reservation).lots)
        old = Lots.from_json(reservation.lots)
        assert lots == old.clipped(window=Window(NOW + hours(49), NOW + hours(51)))

    def test_is_possible_on_the_last_day_for_nothing_back(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(2, length=4))
        quote = ask(reservation, ends=5)
        assert (quote.refund_minor, quote.fee_minor > 0) == (0, True)
        take(reservation, quote)

    def test_refuses_less_than_the_owner_sells(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(48, length=4))
        Listing.objects.update(duration_seconds_min=3 * 3600)
        assert ask(reservation, ends=51)
        with pytest.raises(WindowTooShort):
            ask(reservation, ends=50)

    def test_in_many_steps_costs_what_it_costs_in_one(self) -> None:
        make_pool()
        once = make_reservation(gpus=4, window=window_in(10 * DAYS, length=8))
        often = make_reservation(gpus=4, window=window_in(10 * DAYS, length=8))
        whole = ask(once, ends=10 * DAYS + 2)
        fees = 0
        for end in (7, 6, 5, 4, 3, 2):
            fees += take(often, ask(read(often), ends=10 * DAYS + end)).fee_minor
        assert abs(fees - whole.fee_minor) <= 6  # half a minor unit for each rounding
        assert read(often).total_minor == whole.total_minor


class TestMove:
    def test_later_at_the_same_price_costs_nothing(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=2, window=window_in(3 * DAYS, length=4))
        quote = ask(reservation, starts=9 * DAYS, ends=9 * DAYS + 4)
        assert (quote.kind, quote.charge_minor, quote.refund_minor, quote.fee_minor) == (
            "move",
            0,
            0,
            0,
        )
        change = take(reservation, quote)
        assert (change.gpu_seconds_added, change.gpu_seconds_released) == (8 * 3600, 8 * 3600)
        now = read(reservation)
        assert now.window == quote.window
        assert {(a.period.lower, a.period.upper) for a in places(now)} == {
            (now.starts_at, now.ends_at)
        }
        event = Event.objects.get(kind="reservation.changed")
        assert event.data["starts_at"] == format_instant(now.starts_at)

    def test_that_overlaps_keeps_the_price_of_what_it_keeps(self) -> None:
        cheap = make_organization()
        make_node(owner=cheap, gpus=1)
        make_listing(owner=cheap)
        reservation = make_reservation(window=window_in(3 * DAYS, length=4))
        Listing.objects.update(floor_rate=Decimal("4.000000"))
        quote = ask(reservation, starts=3 * DAYS + 1, ends=3 * DAYS + 5)
        (lot,) = lots_of(quote)
        assert [segment.rate_micros for segment in lot.tariff.segments] == [2_352_942, 4_705_883]
        # One hour at 2.352942 is given up, one at 4.705883 is added.
        assert (reservation.total_minor, quote.total_minor, quote.charge_minor) == (941, 1176, 235)

    def test_that_overlaps_goes_to_no_owner_whom_the_kept_hours_do_not_pay(self) -> None:
        cheap = make_organization()
        make_node(owner=cheap, gpus=1)
        make_listing(owner=cheap)
        reservation = make_reservation(window=window_in(3 * DAYS, length=4))
        make_reservation(window=window_in(3 * DAYS + 4, length=1))
        dear = make_organization()
        make_node(owner=dear, gpus=1)
        make_listing(owner=dear, floor_rate=Decimal("4.000000"))
        with pytest.raises(NotEnoughCapacity):
            ask(reservation, starts=3 * DAYS + 1, ends=3 * DAYS + 5)
        assert {place.node.organization for place in places(reservation)} == {cheap}

    def test_to_other_hours_costs_what_its_parts_would(self) -> None:
        for floor_rate in (2, 3):
            owner = make_organization()
            make_node(owner=owner)
            make_listing(owner=owner, floor_rate=Decimal(floor_rate))
        reservation = make_reservation(gpus=12, spread="any", window=window_in(3 * DAYS, length=4))
        quote = ask(reservation, starts=9 * DAYS, ends=9 * DAYS + 4)
        assert [(lot.gpus, lot.floor_rate) for lot in lots_of(quote)] == [
            (8, Decimal(2)),
            (4, Decimal(3)),
        ]
        assert (quote.total_minor, quote.charge_minor) == (reservation.total_minor, 0)
        take(reservation, quote)
        assert sorted(
            (place.lot, place.listing.floor_rate, place.slots.upper - place.slots.lower)
            for place in places(reservation)
        ) == [(0, Decimal(2), 8), (1, Decimal(3), 4)]

    def test_asks_for_a_dearer_listing_where_nothing_else_has_room(self) -> None:
        cheap = make_organization()
        make_node(owner=cheap, gpus=1)
        make_listing(owner=cheap)
        reservation = make_reservation(window=window_in(3 * DAYS, length=4))
        make_reservation(window=window_in(9 * DAYS, length=4))
        dear = make_organization()
        make_node(owner=dear, gpus=1)
        make_listing(owner=dear, floor_rate=Decimal("4.000000"))
        quote = ask(reservation, starts=9 * DAYS, ends=9 * DAYS + 4)
        (lot,) = lots_of(quote)
        assert (lot.floor_rate, quote.added_rate) == (Decimal(4), Decimal("4.705883"))
        assert quote.charge_minor == quote.total_minor - reservation.total_minor
        take(reservation, quote)
        assert {a.node.organization for a in places(reservation)} == {dear}
        with pytest.raises(PriceAboveMax):
            ask(read(reservation), starts=9 * DAYS + 1, ends=9 * DAYS + 5, max_rate="4.705882")

    def test_to_where_its_own_gpus_are_the_only_ones_is_possible(self) -> None:
        make_pool(gpus=8)
        reservation = make_reservation(gpus=8, window=window_in(3 * DAYS, length=10))
        take(reservation, ask(reservation, starts=3 * DAYS + 5, ends=3 * DAYS + 15))
        assert read(reservation).starts_at == NOW + hours(3 * DAYS + 5)

    def test_refuses_where_there_is_no_room_and_leaves_all_as_it_was(self) -> None:
        make_pool(gpus=8)
        reservation = make_reservation(gpus=8, window=window_in(3 * DAYS))
        make_reservation(gpus=1, window=window_in(5 * DAYS))
        with pytest.raises(NotEnoughCapacity):
            ask(reservation, starts=5 * DAYS, ends=5 * DAYS + 2)
        assert as_it_was(reservation)

    def test_refuses_when_a_rival_was_faster_and_leaves_all_as_it_was(self) -> None:
        make_pool(gpus=8)
        reservation = make_reservation(gpus=8, window=window_in(3 * DAYS))
        quote = ask(reservation, starts=5 * DAYS, ends=5 * DAYS + 2)
        make_reservation(gpus=1, window=window_in(5 * DAYS))
        with pytest.raises(CapacityTaken):
            take(reservation, quote)
        assert as_it_was(reservation)
        assert ChangeQuote.objects.get(pk=quote.pk).used_at is None

    def test_is_closed_on_the_last_day(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(24))
        assert ask(reservation, starts=40, ends=42)
        at = NOW + seconds(1)
        with pytest.raises(MoveTooLate):
            ask(reservation, starts=40, ends=42, at=at)

    def test_away_makes_leaving_no_cheaper(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(2 * DAYS))
        take(reservation, ask(reservation, starts=60 * DAYS, ends=60 * DAYS + 2))
        quote = cancellations.quote(
            organization=reservation.organization, reservation_id=reservation.pk, at=NOW
        )
        assert (quote.notice_seconds, quote.fee_basis_points) == (2 * DAYS * 3600, 5_000)
        with pytest.raises(MoveTooLate):
            ask(read(reservation), starts=70 * DAYS, ends=70 * DAYS + 2, at=NOW + hours(25))

    def test_may_be_longer_within_what_the_tenant_may_book(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=2, window=window_in(3 * DAYS, length=4))
        TenantLimit.objects.create(organization=reservation.organization, gpu_hours_max=10)
        quote = ask(reservation, ends=3 * DAYS + 5)
        with pytest.raises(LimitExceeded):
            ask(reservation, ends=3 * DAYS + 6)
        TenantLimit.objects.update(gpu_hours_max=9)
        with pytest.raises(LimitExceeded):
            take(reservation, quote)
        assert as_it_was(reservation)


class TestWindow:
    @pytest.mark.parametrize(
        ("wish", "refusal"),
        [
            ({}, InvalidValue),
            ({"starts": 72, "ends": 74}, InvalidValue),
            ({"starts": 72.5}, WindowOffGrid),
            ({"ends": 73.5}, WindowOffGrid),
            ({"starts": 74}, WindowUpsideDown),
            ({"ends": 72}, WindowUpsideDown),
            ({"starts": -1}, WindowInPast),
            ({"ends": 24 * 181}, BeyondHorizon),
        ],
    )
    def test_is_checked(self, wish: dict[str, Any], refusal: type[Exception]) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(72))
        with pytest.raises(refusal):
            ask(reservation, **wish)
        assert as_it_was(reservation)

    def test_may_cross_a_change_of_clocks_and_a_month(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(72))
        start = dt.datetime(2027, 3, 27, 22, tzinfo=dt.UTC)  # clocks change in Europe on the 28th
        starts = (start - NOW) / hours(1)
        quote = ask(reservation, starts=starts, ends=starts + 24 * 5)
        assert Lots.from_json(quote.lots).window.seconds == 5 * 86_400

    def test_of_what_is_not_paid_begun_or_over_does_not_change(self) -> None:
        make_pool()
        with pytest.raises(StateConflict, match="payment_pending"):
            ask(reserve(make_quote(window=window_in(72))), ends=73)
        reservation = make_reservation(window=window_in(72))
        quote = ask(reservation, ends=73)
        with pytest.raises(StateConflict, match="began at"):
            ask(reservation, ends=73, at=reservation.starts_at)
        Node.objects.update(last_report_at=reservation.starts_at)
        reservations.start_due(at=reservation.starts_at)
        with pytest.raises(StateConflict, match="active"):
            take(reservation, quote)

    def test_of_somebody_else_is_not_found(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(72))
        reservation.organization = make_organization()
        with pytest.raises(NotFound):
            ask(reservation, ends=73)
        with pytest.raises(NotFound):
            rebookings.rebook(
                organization=reservation.organization,
                reservation_id=reservation.pk,
                quote_id="qte_1",
                at=NOW,
                actor="test",
            )
