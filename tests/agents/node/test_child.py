"""The child process that owns NVML: it may hang or die, and the parent goes on."""

from __future__ import annotations

import datetime as dt
import os
import signal
from collections.abc import Iterator

import pytest

from agents.node.child import ChildReader
from agents.node.reader import ReaderHung, ReaderUnavailable
from tests.agents.node.rig import FakeClock
from tests.fakes.nvml import Journal

AT = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
SHORT_SECONDS = 0.2  # how long the tests let the parent wait for an answer that does not come


@pytest.fixture
def child(journal: Journal, clock: FakeClock) -> Iterator[ChildReader]:
    child = ChildReader(boottime_seconds=clock.boottime_seconds, answer_seconds_max=SHORT_SECONDS)
    yield child
    child.close()


def process_id(child: ChildReader) -> int:
    assert child._process is not None
    return child._process.pid


class TestChildReader:
    def test_reads_what_the_child_sees(self, child: ChildReader, journal: Journal) -> None:
        assert [gpu.index for gpu in child.identify()] == [0, 1]
        journal.write("gpu 1 util 77")
        assert [sample.utilization_percent for sample in child.read(at=AT)] == [0, 77]
        assert child.read(at=AT)[0].measured_at == AT
        assert "nvmlInit" in child.call_milliseconds()

    def test_says_that_there_is_no_driver_and_asks_again_later(
        self, child: ChildReader, journal: Journal
    ) -> None:
        journal.write("init_ret 9")
        with pytest.raises(ReaderUnavailable, match="no NVIDIA driver"):
            child.identify()
        journal.write("init_ret 0")
        assert len(child.identify()) == 2

    def test_a_hung_driver_costs_a_sample_and_not_the_parent(
        self, child: ChildReader, journal: Journal
    ) -> None:
        child.identify()
        first = process_id(child)
        journal.write("hang nvmlDeviceGetUtilizationRates 60000")
        for _ in range(3):
            with pytest.raises(ReaderHung):
                child.read(at=AT)
        assert process_id(child) == first, "no second process joins it in the driver"

    def test_takes_the_child_back_but_not_its_late_answer(
        self, child: ChildReader, journal: Journal
    ) -> None:
        child.identify()
        journal.write("hang nvmlDeviceGetUtilizationRates 300")
        with pytest.raises(ReaderHung):
            child.read(at=AT)
        journal.write("hang nvmlDeviceGetUtilizationRates 0", "gpu 0 util 55")
        line = child._next_line(seconds=10)
        assert line is not None
        child._received = line + b"\n" + child._received  # as if it had just come in
        first = process_id(child)
        assert child.read(at=AT)[0].utilization_percent == 55
        assert process_id(child) == first

    def test_replaces_a_stuck_child_after_a_minute(
        self, child: ChildReader, journal: Journal, clock: FakeClock
    ) -> None:
        child.identify()
        first = process_id(child)
        journal.write("hang nvmlDeviceGetUtilizationRates 60000")
        with pytest.raises(ReaderHung):
            child.read(at=AT)
        journal.write("hang nvmlDeviceGetUtilizationRates 0")
        clock.pass_time(59)
        with pytest.raises(ReaderHung):
            child.read(at=AT)
        clock.pass_time(2)
        assert len(child.read(at=AT)) == 2
        assert process_id(child) != first

    def test_a_child_that_dies_is_started_again_after_a_minute(
        self, child: ChildReader, clock: FakeClock
    ) -> None:
        child.identify()
        first = process_id(child)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(ReaderUnavailable, match="died"):
            child.read(at=AT)
        with pytest.raises(ReaderUnavailable, match="started again later"):
            child.read(at=AT)
        clock.pass_time(61)
        assert len(child.read(at=AT)) == 2
        assert process_id(child) != first

    def test_ends_with_its_parent(self, child: ChildReader) -> None:
        child.identify()
        process = child._process
        assert process is not None
        child.close()
        assert process.wait(timeout=10) == 0
