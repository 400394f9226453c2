"""Meter windows: they touch, they add up, and they claim nothing that nobody saw."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.node.metering import GpuMeter, window_seconds
from agents.node.reader import Sample, lost_sample

START = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)


def at(seconds: int) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


def sample(
    seconds: int, *, load: int | None = 50, energy: int | None = 0, memory: int | None = 4 << 20
) -> Sample:
    return Sample(
        gpu_uuid="GPU-0",
        measured_at=at(seconds),
        utilization_percent=load,
        energy_millijoules=energy,
        memory_used_bytes=memory,
        temperature_celsius=40,
    )


def meter(*, blind: bool = False) -> GpuMeter:
    return GpuMeter(gpu_uuid="GPU-0", starts_at=START, sample=sample(0), blind=blind)


class TestAdvance:
    def test_closes_a_window_when_it_is_full(self) -> None:
        watched = meter()
        closed = [
            watched.advance(at=at(s), sample=sample(s, energy=s * 1000), window_max=60)
            for s in (15, 30, 45, 60)
        ]
        assert closed[:3] == [[], [], []]
        (window,) = closed[3]
        assert (window.starts_at, window.ends_at) == (at(0), at(60))
        assert (window.up_seconds, window.busy_seconds) == (60, 30)
        assert window.energy_millijoules == 60_000
        assert window.memory_used_bytes_max == 4 << 20

    def test_never_makes_a_window_longer_than_its_limit(self) -> None:
        watched = meter()
        assert watched.advance(at=at(50), sample=sample(50), window_max=60) == []
        (window,) = watched.advance(at=at(75), sample=sample(75), window_max=60)
        assert (window.starts_at, window.ends_at) == (at(0), at(50))

    def test_does_nothing_within_the_same_second(self) -> None:
        assert meter().advance(at=at(0), sample=sample(0), window_max=1) == []

    def test_has_no_busy_seconds_where_a_sample_is_missing(self) -> None:
        watched = meter()
        watched.advance(at=at(5), sample=sample(5), window_max=60)
        watched.advance(at=at(10), sample=None, window_max=60)
        (window,) = watched.finish(at=at(20), sample=sample(20, energy=9))
        assert (window.up_seconds, window.busy_seconds) == (20, None)

    def test_has_no_busy_seconds_where_the_load_cannot_be_read(self) -> None:
        (window,) = meter().finish(at=at(20), sample=sample(20, load=None))
        assert window.busy_seconds is None

    def test_has_no_busy_seconds_before_its_first_own_sample(self) -> None:
        (window,) = meter(blind=True).finish(at=at(20), sample=sample(20))
        assert window.busy_seconds is None

    @pytest.mark.parametrize(
        ("counters", "gained"),
        [
            ([100, 160, 200], 100),
            (
                [100, 160, 7, 10],
                60 + 3,
            ),  # the driver was loaded again between the second and the third
            ([100, 7], 0),
            ([100, 160, 7, 50, 3, 4], 60 + 43 + 1),
            ([100, None, 160], 60),
            ([100, 160, None, 7, 9], 60 + 2),
            ([None, 160, 200], None),
            ([100, 160, None], None),
        ],
    )
    def test_keeps_the_energy_of_each_segment_of_the_counter(
        self, counters: list[int | None], gained: int | None
    ) -> None:
        first, *others = counters
        watched = GpuMeter(gpu_uuid="GPU-0", starts_at=START, sample=sample(0, energy=first))
        for number, counter in enumerate(others, start=1):
            watched.advance(at=at(number), sample=sample(number, energy=counter), window_max=60)
        (window,) = watched.finish(at=at(len(others)), sample=None)
        assert window.energy_millijoules == gained

    def test_starts_the_next_window_where_the_new_segment_is(self) -> None:
        watched = GpuMeter(gpu_uuid="GPU-0", starts_at=START, sample=sample(0, energy=100))
        (first,) = watched.advance(at=at(60), sample=sample(60, energy=7), window_max=60)
        (second,) = watched.finish(at=at(80), sample=sample(80, energy=27))
        assert (first.energy_millijoules, second.energy_millijoules) == (0, 20)

    @pytest.mark.parametrize(
        ("memories", "attached"),
        [
            ([65 << 20, 65 << 20], 60),
            ([65 << 20, 64 << 20], 30),
            ([4 << 20, 4 << 20], 0),
            ([65 << 20, None], None),
        ],
    )
    def test_counts_the_seconds_with_memory_in_use(
        self, memories: list[int | None], attached: int | None
    ) -> None:
        watched = meter()
        windows = []
        for seconds, memory in zip((30, 60), memories, strict=True):
            windows += watched.advance(
                at=at(seconds), sample=sample(seconds, memory=memory), window_max=60
            )
        assert [window.attached_seconds for window in windows] == [attached]

    def test_counts_no_attached_seconds_where_nobody_looked(self) -> None:
        watched = meter()
        watched.advance(at=at(20), sample=None, window_max=60)
        (window,) = watched.finish(at=at(40), sample=sample(40, memory=1 << 30))
        assert window.attached_seconds is None

    def test_closes_one_window_a_minute_when_a_leased_gpu_is_read_every_30_seconds(self) -> None:
        watched = meter()
        windows = [
            window
            for late in (0, 30, 60, 90, 120, 150, 180)
            for window in watched.advance(
                at=at(late), sample=sample(late, load=20 if late % 60 else 60), window_max=60
            )
        ]
        assert [(w.up_seconds, w.busy_seconds) for w in windows] == [(60, 24)] * 3

    def test_counts_a_lost_gpu_as_down(self) -> None:
        gone = lost_sample(gpu_uuid="GPU-0", measured_at=at(10))
        (window,) = meter().finish(at=at(10), sample=gone)
        assert (window.up_seconds, window.busy_seconds) == (0, None)
        assert window.attached_seconds is None

    @given(
        steps=st.lists(
            st.tuples(st.integers(0, 200), st.booleans(), st.integers(0, 100)), max_size=40
        ),
        window_max=st.sampled_from([10, 60]),
    )
    def test_windows_touch_and_span_the_whole_time(
        self, steps: list[tuple[int, bool, int]], window_max: int
    ) -> None:
        watched, now, windows = meter(), 0, []
        for pause, seen, load in steps:
            now += pause
            look = sample(now, load=load) if seen else None
            windows += watched.advance(at=at(now), sample=look, window_max=window_max)
        windows += watched.finish(at=at(now), sample=None)
        bounds = [START, *(window.ends_at for window in windows)]
        assert [window.starts_at for window in windows] == bounds[:-1]
        assert bounds[-1] == at(now)
        for window in windows:
            length = (window.ends_at - window.starts_at).total_seconds()
            assert 0 < length <= 60
            assert window.up_seconds == length
            assert window.busy_seconds is None or 0 <= window.busy_seconds <= length


class TestWindowSeconds:
    def test_is_short_where_reports_come_every_few_seconds(self) -> None:
        assert (
            window_seconds(report_interval_seconds=5),
            window_seconds(report_interval_seconds=6),
        ) == (10, 60)
