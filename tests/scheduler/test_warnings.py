"""Warnings before the end: when, how often, and what a change of the end makes of them."""

from typing import Any

import pytest

from marketplace.core.errors import InvalidValue
from marketplace.models import Event
from marketplace.states import EventKind
from scheduler import reservations, warnings
from scheduler.details import DetailChanges
from scheduler.models import Reservation
from tests.scheduler.factories import (
    NOW,
    hours,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    seconds,
    window_in,
)

pytestmark = pytest.mark.django_db


def an_active(*, length: float = 4, **details: Any) -> Reservation:
    reservation = reserve(make_quote(window=window_in(24, length=length)), **details)
    reservations.confirm(reservation_id=reservation.pk, at=NOW, actor="test")
    reservations.start_due(at=reservation.starts_at)
    reservation.refresh_from_db()
    return reservation


def told(reservation: Reservation) -> list[int]:
    """Return how many seconds before the end the tenant was told, in the order of time."""
    rows = Event.objects.filter(
        object_id=reservation.pk, kind=EventKind.RESERVATION_END_ANNOUNCED
    ).order_by("at")
    return [row.data["seconds_left"] for row in rows]


@pytest.fixture(autouse=True)
def _pool(db: None) -> None:
    make_pool(nodes=2)


class TestWarning:
    def test_comes_half_an_hour_before_the_end_and_once(self) -> None:
        reservation = an_active()
        assert warnings.warn_due(at=reservation.ends_at - seconds(1801)) == 0

        assert warnings.warn_due(at=reservation.ends_at - seconds(1800)) == 1
        assert warnings.warn_due(at=reservation.ends_at - seconds(1790)) == 0
        assert warnings.warn_due(at=reservation.ends_at - seconds(1)) == 0

        assert told(reservation) == [1800]

    def test_comes_as_often_as_the_tenant_chose(self) -> None:
        reservation = an_active(warn_before_seconds=[600, 7200])
        for minutes in range(4 * 60):
            warnings.warn_due(at=reservation.starts_at + seconds(60 * minutes))

        assert told(reservation) == [7200, 600]

    def test_does_not_come_when_the_tenant_wants_none(self) -> None:
        reservation = an_active(warn_before_seconds=[])

        assert warnings.warn_due(at=reservation.ends_at - seconds(60)) == 0

    def test_comes_late_after_the_market_was_away_and_for_all_notices_at_once(self) -> None:
        reservation = an_active(warn_before_seconds=[600, 1800, 7200])

        assert warnings.warn_due(at=reservation.ends_at - seconds(300)) == 1

        assert told(reservation) == [300]

    def test_does_not_come_after_the_end(self) -> None:
        reservation = an_active()

        assert warnings.warn_due(at=reservation.ends_at) == 0

    def test_of_a_later_end_is_told_again(self) -> None:
        reservation = an_active()
        warnings.warn_due(at=reservation.ends_at - seconds(1800))
        Reservation.objects.update(ends_at=reservation.ends_at + hours(1))

        assert warnings.warn_due(at=reservation.ends_at - seconds(1700)) == 0
        assert warnings.warn_due(at=reservation.ends_at + seconds(1800)) == 1

        assert told(reservation) == [1800, 1800]

    def test_of_what_has_not_begun_does_not_come(self) -> None:
        reservation = make_reservation(window=window_in(24))

        assert warnings.warn_due(at=reservation.ends_at - seconds(60)) == 0


class TestChoice:
    @pytest.mark.parametrize(
        "chosen", [[59], [7 * 86_400 + 1], [600, 600], [60, 120, 180, 240, 300, 360]]
    )
    def test_that_makes_no_sense_is_refused(self, chosen: list[int]) -> None:
        with pytest.raises(InvalidValue) as refusal:
            reserve(make_quote(), warn_before_seconds=chosen)
        assert str(refusal.value.pointer).startswith("/warn_before")

    def test_may_change_while_the_reservation_runs(self) -> None:
        reservation = an_active()
        reservations.change_details(
            reservation=reservation,
            changes=DetailChanges(warn_before_seconds=[3600]),
            at=reservation.starts_at,
        )

        assert warnings.warn_due(at=reservation.ends_at - seconds(3600)) == 1
