"""What a change gives back is written down: GPUs, time and price; and since when somebody had what it has."""

import datetime as dt

import pytest
from django.db import IntegrityError, connection, transaction

from scheduler import checks, given_back, leases, rebookings
from scheduler.models import Change, ReleasedPlace, Reservation
from scheduler.rebookings import WindowWish
from scheduler.states import ChangeKind
from tests.scheduler.factories import (
    NOW,
    hours,
    make_lease,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    say_handed_over,
    seconds,
    window_in,
)
from tests.scheduler.test_cancellations import leave

pytestmark = pytest.mark.django_db


def rebook(reservation: Reservation, *, starts: float, ends: float) -> Change:
    organization = reservation.organization
    quote = rebookings.quote(
        organization=organization,
        reservation_id=reservation.pk,
        wish=WindowWish(starts_at=NOW + hours(starts), ends_at=NOW + hours(ends)),
        at=NOW,
    )
    return rebookings.rebook(
        organization=organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        at=NOW,
        actor="test",
    )


def left_by(change: Change) -> list[tuple[int, dt.datetime, dt.datetime]]:
    """Return of each place how many GPUs were left, from when to when."""
    return [
        (place.slots.upper - place.slots.lower, place.period.lower, place.period.upper)
        for place in change.released_places.order_by("node", "period")
    ]


def breaches() -> list[str]:
    found = checks.check(at=NOW).checks
    return [
        c.detail for c in found if c.name == "released_places_weigh_what_changes_say" and not c.ok
    ]


class TestWhatIsWrittenDown:
    def test_is_all_of_a_reservation_that_is_cancelled(self) -> None:
        make_pool(gpus=4)
        make_pool(gpus=4)
        reservation = make_reservation(gpus=8, spread="any", window=window_in(48))
        change = leave(reservation)
        assert left_by(change) == [(4, NOW + hours(48), NOW + hours(50))] * 2
        assert change.from_lots == reservation.lots
        assert breaches() == []

    def test_is_nothing_where_no_fee_was_kept(self) -> None:
        make_pool()
        change = leave(reserve(make_quote(gpus=8)))
        assert (change.fee_minor, change.from_lots, left_by(change)) == (0, [], [])

    def test_is_what_a_shorter_window_cuts_off_at_both_ends(self) -> None:
        make_pool()
        change = rebook(make_reservation(window=window_in(48, length=6)), starts=49, ends=52)
        assert change.kind == ChangeKind.SHORTENING
        assert left_by(change) == [
            (1, NOW + hours(48), NOW + hours(49)),
            (1, NOW + hours(52), NOW + hours(54)),
        ]
        assert breaches() == []

    def test_is_what_a_moved_window_leaves(self) -> None:
        make_pool()
        change = rebook(make_reservation(window=window_in(48, length=4)), starts=51, ends=53)
        assert change.kind == ChangeKind.MOVE
        assert left_by(change) == [(1, NOW + hours(48), NOW + hours(51))]
        assert breaches() == []

    def test_is_the_time_after_an_early_return(self) -> None:
        make_pool()
        lease = make_lease(gpus=8, window=window_in(48, length=4))
        say_handed_over(lease)
        leases.advance(at=lease.starts_at + seconds(5))
        change = leave(lease.reservation, at=lease.starts_at + hours(1))
        assert change.kind == ChangeKind.EARLY_RETURN
        assert left_by(change) == [(8, NOW + hours(49) + seconds(1), NOW + hours(52))]
        assert breaches() == []

    def test_is_never_changed(self) -> None:
        make_pool()
        change = leave(make_reservation(window=window_in(48)))
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            ReleasedPlace.objects.filter(change=change).update(lot=1)
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            change.released_places.all()._raw_delete("default")

    def test_that_weighs_something_else_is_found(self) -> None:
        make_pool()
        change = leave(make_reservation(gpus=2, window=window_in(48)))
        assert breaches() == []
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")
            change.released_places.update(slots=(0, 1))
            cursor.execute("SET LOCAL session_replication_role = DEFAULT")
        (found,) = breaches()
        assert change.pk in found


class TestSinceWhen:
    def test_a_reservation_has_had_all_of_it(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(48))
        assert given_back.bought_at(reservation=reservation) == [(reservation.window, NOW)]

    def test_what_was_kept_and_added_is_told_apart(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(48, length=4), at=NOW - hours(2))
        change = rebook(reservation, starts=50, ends=54)
        reservation.refresh_from_db()
        assert given_back.bought_at(reservation=reservation) == [
            (window_in(50, length=2), NOW - hours(2)),
            (window_in(52, length=2), change.at),
        ]

    def test_of_one_that_was_cancelled_is_nothing(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(48))
        leave(reservation)
        assert given_back.bought_at(reservation=reservation) == []


def test_windows_without_a_part_are_what_is_left_on_both_sides() -> None:
    whole = window_in(10, length=10)
    assert whole.less(window_in(12, length=2)) == [window_in(10), window_in(14, length=6)]
    assert whole.less(window_in(5, length=7)) == [window_in(12, length=8)]
    assert whole.less(window_in(30)) == [whole]
    assert whole.less(window_in(9, length=20)) == []
