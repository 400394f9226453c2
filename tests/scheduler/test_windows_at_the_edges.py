"""Searches at the edges of calendars and of the market: clock changes, month ends, the horizon, one step."""

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from django.test import override_settings

from agents.models import Node
from marketplace.core.windows import Window
from marketplace.models import Listing
from scheduler import availability, quotes
from scheduler.availability import OfferingQuery, SearchResult
from tests.scheduler.factories import (
    MODEL,
    NOW,
    a_request,
    hours,
    make_organization,
    make_pool,
    make_reservation,
    seconds,
)

pytestmark = pytest.mark.django_db


def search(
    *, at: dt.datetime, window: Window, duration: dt.timedelta, gpus: int = 1
) -> SearchResult:
    Node.objects.update(last_report_at=at)
    return availability.search(
        query=OfferingQuery(
            gpu_model=MODEL,
            gpus=gpus,
            duration=duration,
            earliest_start=window.starts_at,
            latest_end=window.ends_at,
        ),
        at=at,
    )


class TestEdges:
    @pytest.mark.parametrize(
        ("zone", "day"),
        [("Europe/Berlin", (2027, 3, 28)), ("America/New_York", (2026, 11, 1))],
    )
    def test_the_day_of_a_clock_change_has_as_many_hours_as_it_has(
        self, zone: str, day: tuple[int, int, int]
    ) -> None:
        make_pool()
        midnight = dt.datetime(*day, tzinfo=ZoneInfo(zone))
        window = Window(midnight, midnight + dt.timedelta(days=1))  # wall time: 23 or 25 hours
        at = midnight.astimezone(dt.UTC) - hours(24)
        Listing.objects.update(starts_at=at)

        length = window.ends_at.astimezone(dt.UTC) - window.starts_at.astimezone(dt.UTC)
        whole = Window(midnight.astimezone(dt.UTC), midnight.astimezone(dt.UTC) + length)
        offers = search(at=at, window=whole, duration=length).offers

        assert length in (hours(23), hours(25))
        assert [offer.window for offer in offers] == [whole]
        assert offers[0].window.seconds == length.total_seconds()

    @pytest.mark.parametrize(
        ("starts_at", "days"),
        [
            (dt.datetime(2028, 2, 28, tzinfo=dt.UTC), 2),  # over 29 February
            (dt.datetime(2027, 2, 28, tzinfo=dt.UTC), 1),  # a year without one
            (dt.datetime(2026, 12, 31, tzinfo=dt.UTC), 1),
            (dt.datetime(2027, 4, 30, tzinfo=dt.UTC), 1),
        ],
    )
    def test_months_end_where_they_end(self, starts_at: dt.datetime, days: int) -> None:
        make_pool()
        at = starts_at - hours(30)
        Listing.objects.update(starts_at=at)
        first_of_month = starts_at + dt.timedelta(days=days)
        Node.objects.update(last_report_at=at)
        make_reservation(window=Window(starts_at, first_of_month), gpus=8, at=at)

        window = Window(starts_at - hours(2), first_of_month + hours(2))
        starts = [
            o.window.starts_at for o in search(at=at, window=window, duration=hours(1)).offers
        ]

        assert first_of_month.day == 1
        assert sorted(starts) == [
            starts_at - hours(2),
            starts_at - hours(1),
            first_of_month,
            first_of_month + hours(1),
        ]

    def test_the_horizon_is_reached_and_not_passed(self) -> None:
        make_pool()
        last = NOW + dt.timedelta(days=180)

        within = search(at=NOW, window=Window(last - hours(2), last), duration=hours(2))
        beyond = search(at=NOW, window=Window(last - hours(1), last + hours(1)), duration=hours(2))

        assert [offer.window.ends_at for offer in within.offers] == [last]
        assert (beyond.offers, beyond.no_offer_reason) == ([], "beyond_horizon")

    @pytest.mark.parametrize("grid_seconds", [60, 900, 3600])
    def test_a_window_of_one_grid_step_is_found_in_a_gap_of_one(self, grid_seconds: int) -> None:
        step = seconds(grid_seconds)
        with override_settings(GRID_SECONDS=grid_seconds):
            make_pool()
            make_reservation(gpus=8, window=Window(NOW + step, NOW + 5 * step))
            make_reservation(gpus=8, window=Window(NOW + 6 * step, NOW + 20 * step))
            window = Window(NOW + step, NOW + 20 * step)

            found = search(at=NOW, window=window, duration=step)
            longer = search(at=NOW, window=window, duration=2 * step)

        assert [o.window for o in found.offers] == [Window(NOW + 5 * step, NOW + 6 * step)]
        assert longer.offers == []
        assert longer.nearest is not None
        assert longer.nearest.window.starts_at == NOW + 20 * step

    def test_ten_thousand_gpus_in_one_request_are_answered(self) -> None:
        make_pool(nodes=3)
        window = Window(NOW + hours(1), NOW + hours(48))

        found = search(at=NOW, window=window, duration=hours(24), gpus=10_000)

        assert (found.offers, found.no_offer_reason) == ([], "not_enough_capacity")
        assert found.nearest is not None
        assert (found.nearest.gpus, found.nearest_change) == (24, "fewer_gpus")
        with pytest.raises(quotes.NotEnoughCapacity):
            quotes.create(
                organization=make_organization(),
                request=a_request(gpus=10_000),
                at=NOW,
            )


class TestPeers:
    """Scenarios of peers' own tests, told of GPUs; each is named after its source."""

    def test_blazar_free_periods_are_the_gaps_between_bookings(self) -> None:
        """Blazar, db/sqlalchemy/test_utils: bookings 09:00-10:30 and 13:00-14:00 leave three gaps."""
        day = dt.datetime(2026, 12, 1, tzinfo=dt.UTC)
        with override_settings(GRID_SECONDS=1800):
            make_pool(gpus=1)
            at = day + hours(7)
            Node.objects.update(last_report_at=at)
            for begin, end in ((9, 10.5), (13, 14)):
                window = Window(day + hours(begin), day + hours(end))
                make_reservation(gpus=1, window=window, at=at)

            def gaps(length: float) -> list[tuple[dt.datetime, dt.datetime]]:
                """Join the windows that are found to the gaps that they fill."""
                found: list[tuple[dt.datetime, dt.datetime]] = []
                for half_hours in range(16, 40):
                    start = day + hours(half_hours / 2)
                    window = Window(start, start + hours(length))
                    if search(at=at, window=window, duration=hours(length)).offers:
                        if found and found[-1][1] >= window.starts_at:
                            found[-1] = (found[-1][0], window.ends_at)
                        else:
                            found.append((window.starts_at, window.ends_at))
                return found

            assert [start for start, _ in gaps(1)] == [day + hours(h) for h in (8, 10.5, 14)]
            assert [start for start, _ in gaps(2.5)] == [day + hours(h) for h in (10.5, 14)]
            assert [start for start, _ in gaps(3)] == [day + hours(14)]

    def test_blazar_what_fits_is_decided_by_the_peak_and_not_by_the_sum(self) -> None:
        """Blazar, instances/test_instance_plugin: demands one after the other need the larger of both."""
        make_pool(gpus=8)
        make_reservation(gpus=2, window=Window(NOW + hours(8), NOW + hours(11)))
        make_reservation(gpus=3, window=Window(NOW + hours(12), NOW + hours(14)))
        window = Window(NOW + hours(8), NOW + hours(14))

        assert search(at=NOW, window=window, duration=hours(6), gpus=5).offers
        assert not search(at=NOW, window=window, duration=hours(6), gpus=6).offers
        make_reservation(gpus=3, window=Window(NOW + hours(10), NOW + hours(14)))
        assert not search(at=NOW, window=window, duration=hours(6), gpus=3).offers
        assert search(at=NOW, window=window, duration=hours(6), gpus=2).offers

    def test_sf_compute_a_gpu_hour_costs_the_same_however_many_are_asked_for(self) -> None:
        """SF Compute, helpers/test/quote: totals were once eight times too high, by the node."""
        make_pool(nodes=4)
        window = Window(NOW + hours(1), NOW + hours(3))

        offers = [
            search(at=NOW, window=window, duration=hours(2), gpus=gpus).offers[0]
            for gpus in (1, 7, 8, 16, 32)
        ]

        assert len({offer.rate for offer in offers}) == 1
        one = offers[0].total.amount_minor
        for offer, gpus in zip(offers, (1, 7, 8, 16, 32), strict=True):
            assert abs(offer.total.amount_minor - gpus * one) <= gpus
