"""Interval arithmetic: every second of a GPU is counted once, whatever was sent, how often and when."""

import datetime as dt
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import metering
from agents.metering import GpuMeter, Sample
from agents.models import Grant, MeterReading
from marketplace.core.errors import InvalidValue
from marketplace.core.windows import Window
from tests.agents import factories as make
from tests.agents.factories import NOW


def window(start: float, end: float) -> Window:
    return Window(NOW + make.seconds(start), NOW + make.seconds(end))


def sample(start: float, end: float, up: int, busy: int | None = None, **changes: Any) -> Sample:
    return Sample(window=window(start, end), up_seconds=up, busy_seconds=busy, **changes)


def total(*samples: Sample, within: Window) -> GpuMeter:
    return metering.total(samples=samples, window=within)


class TestTotal:
    def test_nothing_measured_is_unknown_not_zero(self) -> None:
        meter = total(within=window(0, 60))
        assert (meter.covered_seconds, meter.up_seconds, meter.busy_seconds) == (0, 0, 0)
        assert meter.energy_millijoules is None
        assert meter.memory_used_bytes_max is None

    def test_adds_up_neighbours(self) -> None:
        meter = total(sample(0, 60, 60, 10), sample(60, 120, 60, 50), within=window(0, 120))
        assert (meter.up_seconds, meter.busy_seconds, meter.covered_seconds) == (120, 60, 120)

    def test_counts_a_repeated_reading_once(self) -> None:
        one = sample(0, 60, 60, 30, energy_millijoules=900)
        assert total(one, one, one, within=window(0, 60)) == total(one, within=window(0, 60))

    def test_an_overlap_counts_for_the_reading_that_began_first(self) -> None:
        meter = total(sample(0, 60, 60, 0), sample(30, 90, 60, 60), within=window(0, 90))
        assert (meter.up_seconds, meter.busy_seconds) == (90, 30)

    def test_a_reading_inside_another_counts_nothing(self) -> None:
        meter = total(sample(0, 60, 60, 6), sample(10, 20, 10, 10), within=window(0, 60))
        assert (meter.up_seconds, meter.busy_seconds) == (60, 6)

    def test_clips_to_the_window_in_proportion(self) -> None:
        meter = total(sample(0, 60, 60, 30, energy_millijoules=600), within=window(30, 45))
        assert (meter.up_seconds, meter.busy_seconds, meter.energy_millijoules) == (15, 7, 150)

    def test_a_reading_outside_the_window_counts_nothing(self) -> None:
        meter = total(sample(60, 120, 60, 60), within=window(0, 60))
        assert meter.covered_seconds == 0

    def test_readings_of_broken_seconds_lose_nothing(self) -> None:
        samples = [sample(n * 59.9, (n + 1) * 59.9, 59, 59) for n in range(60)]
        meter = total(*samples, within=window(0, 60 * 59.9))
        assert (meter.up_seconds, meter.busy_seconds) == (3594, 3594)

    def test_no_up_second_in_a_short_reading_stays_none(self) -> None:
        assert total(sample(0, 0.5, 0, 0), within=window(0, 60)).up_seconds == 0

    def test_unknown_busy_seconds_are_up_but_not_measured(self) -> None:
        meter = total(sample(0, 60, 60, None), sample(60, 120, 60, 20), within=window(0, 120))
        assert (meter.up_seconds, meter.measured_seconds, meter.busy_seconds) == (120, 60, 20)

    def test_tells_attached_seconds_of_the_readings_that_know_them(self) -> None:
        first = sample(0, 60, 60, 0, attached_seconds=60)
        second = sample(60, 120, 60, 0, attached_seconds=15)
        unknown = sample(120, 180, 60, 0)
        meter = total(first, second, unknown, within=window(30, 180))
        assert (meter.attachment_known_seconds, meter.attached_seconds) == (90, 45)
        assert (meter.up_seconds, meter.busy_seconds) == (150, 0)

    def test_unknown_energy_of_one_reading_leaves_the_others(self) -> None:
        known = sample(0, 60, 60, 0, energy_millijoules=5)
        assert total(known, sample(60, 120, 60, 0), within=window(0, 120)).energy_millijoules == 5

    def test_keeps_the_highest_memory_and_temperature_of_what_counts(self) -> None:
        first = sample(0, 60, 60, memory_used_bytes_max=7, temperature_celsius_max=50)
        second = sample(60, 120, 60, memory_used_bytes_max=9, temperature_celsius_max=40)
        both = total(first, second, within=window(0, 120))
        assert (both.memory_used_bytes_max, both.temperature_celsius_max) == (9, 50)
        assert total(first, second, within=window(0, 60)).memory_used_bytes_max == 7


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Draw a reading as ingest lets it pass: `busy <= up <= length rounded up`."""
    start = draw(st.integers(-200_000, 700_000))
    length = draw(st.integers(1, 300_000))
    up = draw(st.integers(0, -(-length // 1000)))
    counted = window(start / 1000, (start + length) / 1000)
    return Sample(
        window=counted,
        up_seconds=up,
        busy_seconds=draw(st.none() | st.integers(0, up)),
        energy_millijoules=draw(st.none() | st.integers(0, 10**6)),
        memory_used_bytes_max=draw(st.none() | st.integers(0, 10)),
        attached_seconds=draw(st.none() | st.integers(0, up)),
    )


windows = st.tuples(st.integers(0, 300), st.integers(1, 400)).map(
    lambda t: window(t[0], t[0] + t[1])
)
many = st.lists(samples(), max_size=12)


class TestEveryTotal:
    @given(given=many, within=windows)
    def test_is_busy_at_most_as_long_as_up_as_long_as_covered_as_long_as_the_window(
        self, given: list[Sample], within: Window
    ) -> None:
        meter = total(*given, within=within)
        assert 0 <= meter.busy_seconds <= meter.measured_seconds <= meter.up_seconds
        assert meter.up_seconds <= meter.covered_seconds <= within.seconds
        assert 0 <= meter.attached_seconds <= meter.attachment_known_seconds <= meter.up_seconds

    @given(given=many, within=windows, data=st.data())
    def test_depends_neither_on_order_nor_on_repetition(
        self, given: list[Sample], within: Window, data: st.DataObject
    ) -> None:
        again = data.draw(st.permutations(given))
        repeated = data.draw(st.lists(st.sampled_from(given), max_size=5)) if given else []
        assert total(*again, *repeated, within=within) == total(*given, within=within)

    @given(given=many, within=windows)
    def test_covers_exactly_the_union_of_the_readings(
        self, given: list[Sample], within: Window
    ) -> None:
        millisecond = dt.timedelta(milliseconds=1)
        covered: set[int] = set()
        for one in given:
            if part := one.window.intersection(within):
                covered.update(
                    range(
                        (part.starts_at - within.starts_at) // millisecond,
                        (part.ends_at - within.starts_at) // millisecond,
                    )
                )
        assert total(*given, within=within).covered_seconds == len(covered) // 1000

    @given(given=many, within=windows, share=st.fractions(0, 1))
    def test_of_two_halves_is_at_most_one_rounding_below_the_whole(
        self, given: list[Sample], within: Window, share: Fraction
    ) -> None:
        cut = within.starts_at + make.seconds(int(within.seconds * share))
        if not within.starts_at < cut < within.ends_at:
            return
        whole = total(*given, within=within)
        halves = [
            total(*given, within=Window(within.starts_at, cut)),
            total(*given, within=Window(cut, within.ends_at)),
        ]
        assert whole.up_seconds - 1 <= sum(h.up_seconds for h in halves) <= whole.up_seconds
        assert whole.busy_seconds - 1 <= sum(h.busy_seconds for h in halves) <= whole.busy_seconds


def store(grant: Grant, gpu: int, start: float, end: float, **changes: Any) -> None:
    number = MeterReading.objects.count() + 1
    MeterReading.objects.create(
        **{
            "node": grant.node,
            "epoch": 1,
            "sequence": number,
            "lease_id": grant.lease_id,
            "lease_epoch": grant.lease_epoch,
            "gpu_uuid": grant.gpu_uuids[gpu],
            "starts_at": NOW + make.seconds(start),
            "ends_at": NOW + make.seconds(end),
            "up_seconds": int(end - start),
            "busy_seconds": int(end - start) // 2,
            "energy_millijoules": 100,
            "simulated": True,
            "received_at": NOW,
            **changes,
        }
    )


@pytest.mark.django_db
class TestLeaseMeters:
    def test_adds_up_the_gpus_of_one_lease(self) -> None:
        node = make.make_node(gpus=2)
        grant, other = make.make_grant(node=node), make.make_grant(node=node)
        store(grant, 0, 0, 60)
        store(grant, 0, 30, 60)
        store(grant, 1, 0, 120)
        store(other, 0, 0, 60)
        meters = metering.lease_meters(lease_id=grant.lease_id, window=window(0, 100))
        assert (meters.gpu_seconds_metered, meters.gpu_seconds_busy) == (160, 80)
        assert meters.gpu_seconds_measured == 160
        assert set(meters.gpus) == set(grant.gpu_uuids)
        assert meters.readings_until == NOW + make.seconds(60)

    def test_of_many_leases_are_those_of_each(self) -> None:
        node = make.make_node(gpus=2)
        grant, other = make.make_grant(node=node), make.make_grant(node=node)
        store(grant, 0, 0, 60)
        store(grant, 1, 0, 120)
        store(other, 0, 0, 300)
        windows = {
            grant.lease_id: window(0, 100),
            other.lease_id: window(200, 400),
            "lse_x": window(0, 60),
        }
        assert metering.metered_seconds(windows=windows) == {
            lease_id: metering.lease_meters(lease_id=lease_id, window=part).gpu_seconds_metered
            for lease_id, part in windows.items()
        }
        assert metering.metered_seconds(windows=windows)[grant.lease_id] == 160

    def test_of_an_unmetered_lease_are_empty(self) -> None:
        meters = metering.lease_meters(lease_id="lse_x", window=window(0, 60))
        assert (meters.gpu_seconds_metered, meters.gpus, meters.readings_until) == (0, {}, None)
        assert meters.energy_millijoules is None


@pytest.mark.django_db
class TestMinutes:
    def test_gives_null_where_nothing_was_measured(self) -> None:
        grant = make.make_grant(node=make.make_node(gpus=1))
        store(grant, 0, 30, 90)
        points = metering.minutes(
            lease_id=grant.lease_id, window=window(0, 210), resolution_seconds=60
        )
        ups = [point.meter.up_seconds if point.meter else None for point in points]
        assert ups == [30, 30, None, None]
        assert points[-1].window == window(180, 210)
        assert {point.gpu_uuid for point in points} == set(grant.gpu_uuids)

    def test_adds_up_to_the_whole(self) -> None:
        grant = make.make_grant(node=make.make_node(gpus=2))
        for start in range(0, 600, 50):
            store(grant, start % 2, start, start + 75)
        points = metering.minutes(
            lease_id=grant.lease_id, window=window(0, 600), resolution_seconds=100
        )
        whole = metering.lease_meters(lease_id=grant.lease_id, window=window(0, 600))
        metered = sum(point.meter.up_seconds for point in points if point.meter)
        assert metered == whole.gpu_seconds_metered

    def test_refuses_more_points_than_anybody_reads(self) -> None:
        long = Window(NOW, NOW + dt.timedelta(days=15))
        with pytest.raises(InvalidValue):
            metering.minutes(lease_id="lse_x", window=long, resolution_seconds=60)
        assert metering.minutes(lease_id="lse_x", window=long, resolution_seconds=3600) == []

    def test_refuses_a_step_of_nothing(self) -> None:
        with pytest.raises(InvalidValue):
            metering.minutes(lease_id="lse_x", window=window(0, 1), resolution_seconds=0)
