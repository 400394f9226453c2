"""Half-open windows, the grid, and durations as clients write them."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.core.windows import (
    Window,
    format_duration,
    format_instant,
    grid_ceiling,
    grid_floor,
    is_on_grid,
    parse_duration,
)

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
instants = st.datetimes(
    min_value=dt.datetime(2000, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=dt.datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.just(dt.UTC),
)


class TestWindow:
    @pytest.mark.parametrize("ends_at", [NOON, NOON - HOUR])
    def test_refuses_to_be_empty_or_upside_down(self, ends_at):
        with pytest.raises(ValueError, match="end after it starts"):
            Window(NOON, ends_at)

    def test_refuses_instants_without_a_zone(self):
        with pytest.raises(ValueError, match="time zone"):
            Window(NOON.replace(tzinfo=None), NOON)

    def test_touching_windows_do_not_intersect(self):
        assert Window(NOON, NOON + HOUR).intersection(Window(NOON + HOUR, NOON + 2 * HOUR)) is None

    def test_intersection_is_what_both_cover(self):
        first, second = Window(NOON, NOON + 3 * HOUR), Window(NOON + HOUR, NOON + 5 * HOUR)

        both = first.intersection(second)

        assert both == Window(NOON + HOUR, NOON + 3 * HOUR)
        assert first.covers(both)
        assert second.covers(both)

    def test_seconds_are_those_of_utc_across_a_change_of_summer_time(self):
        night = Window(
            dt.datetime(2026, 3, 29, 0, tzinfo=dt.UTC), dt.datetime(2026, 3, 29, 3, tzinfo=dt.UTC)
        )

        assert night.seconds == 3 * 3600


class TestGrid:
    @given(instants, st.sampled_from([60, 300, 900, 1800, 3600]))
    def test_floor_and_ceiling_enclose_an_instant_within_one_step(self, instant, grid_seconds):
        floor = grid_floor(instant, grid_seconds=grid_seconds)
        ceiling = grid_ceiling(instant, grid_seconds=grid_seconds)

        assert floor <= instant <= ceiling
        assert ceiling - floor in (dt.timedelta(0), dt.timedelta(seconds=grid_seconds))
        assert is_on_grid(floor, grid_seconds=grid_seconds)
        assert is_on_grid(ceiling, grid_seconds=grid_seconds)
        assert is_on_grid(instant, grid_seconds=grid_seconds) == (floor == ceiling)


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("PT48H", 172_800),
            ("P2D", 172_800),
            ("P1DT1H1M1S", 90_061),
            ("48h", 172_800),
            ("90m", 5_400),
            ("2d", 172_800),
            ("30s", 30),
        ],
    )
    def test_reads_both_forms(self, text, seconds):
        assert parse_duration(text) == dt.timedelta(seconds=seconds)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "P",
            "PT",
            "P1DT",
            "0h",
            "PT0S",
            "-1h",
            "1.5h",
            "1w",
            "48",
            "P1Y",
            "99999d",
            "\u0661h",
            "1h ",
        ],
    )
    def test_refuses_everything_else(self, text):
        with pytest.raises(ValueError, match="must be"):
            parse_duration(text)

    @given(st.integers(min_value=1, max_value=10 * 366 * 86_400))
    def test_what_is_written_reads_back(self, seconds):
        duration = dt.timedelta(seconds=seconds)

        assert parse_duration(format_duration(duration)) == duration


class TestFormatInstant:
    def test_writes_utc_with_a_z(self):
        east = dt.timezone(dt.timedelta(hours=2))

        assert format_instant(dt.datetime(2026, 11, 23, 14, tzinfo=east)) == "2026-11-23T12:00:00Z"
