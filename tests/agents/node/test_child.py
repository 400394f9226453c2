"""The child process that owns NVML: it may hang or die, and the parent goes on."""

from __future__ import annotations

import datetime as dt
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.node.child import LOST_REOPEN_SECONDS, ChildReader
from agents.node.kernel_log import KernelLog
from agents.node.reader import LOST, ReaderHung, ReaderUnavailable, Xid
from agents.protocol import EventSource
from tests.agents.node.rig import FakeClock
from tests.fakes.nvml import Journal

AT = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
SHORT_SECONDS = 0.2  # how long the tests let the parent wait for an answer that does not come


EVENT_SECONDS_MAX = 10.0  # how long the tests wait for an event that comes from another process


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    path = tmp_path / "kmsg"
    path.write_text("")
    return path


@pytest.fixture
def child(journal: Journal, clock: FakeClock, log_path: Path) -> Iterator[ChildReader]:
    child = ChildReader(
        boottime_seconds=clock.boottime_seconds,
        now=clock.wall,
        answer_seconds_max=SHORT_SECONDS,
        kernel_log=KernelLog(path=log_path),
    )
    yield child
    child.close()


def identified(child: ChildReader) -> list[str]:
    """Let the child start and its thread register the GPUs; return their UUIDs."""
    uuids = [gpu.uuid for gpu in child.identify()]
    end = time.monotonic() + EVENT_SECONDS_MAX
    while "nvmlDeviceRegisterEvents" not in child.call_milliseconds():
        assert time.monotonic() < end, "no events are registered"
    child.read(at=AT)  # some hundred calls later the second GPU is registered, too
    return uuids


def wait_for_xids(child: ChildReader, clock: FakeClock) -> list[Xid]:
    """Ask until an error is told; each time the agent's clock is three seconds on."""
    assert child._events is not None
    select.select([child._events], [], [], EVENT_SECONDS_MAX)
    child.xids()
    clock.pass_time(3)  # past the wait for the line in the kernel's log
    return child.xids()


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

    def test_passes_on_every_verb(self, child: ChildReader, journal: Journal) -> None:
        uuids = [gpu.uuid for gpu in child.identify()]
        journal.start_process(1, pid=4242)
        assert child.host().driver_version == "580.95.05"
        assert [row.ecc_enabled for row in child.counters(gpu_uuids=uuids)] == [True, True]
        before = child.settings(gpu_uuids=uuids)
        journal.write("gpu 0 compute_mode 3")
        assert child.restore(settings=before) == {}
        assert child.settings(gpu_uuids=uuids) == before
        listed = child.processes(gpu_uuids=uuids)
        assert [[process.pid for process in listed[uuid]] for uuid in uuids] == [[], [4242]]

    def test_serves_one_at_a_time_and_keeps_nobody_waiting(self, child: ChildReader) -> None:
        child.identify()
        with child._turn, pytest.raises(ReaderUnavailable, match="busy"):
            child.read(at=AT)
        assert len(child.read(at=AT)) == 2

    def test_is_let_go_so_that_a_gpu_can_be_reset_and_taken_up_again(
        self, child: ChildReader
    ) -> None:
        child.identify()
        first = child._process
        assert first is not None
        child.close()
        assert first.wait(timeout=10) == 0, "nothing holds the driver"
        assert len(child.read(at=AT)) == 2
        assert process_id(child) != first.pid

    def test_is_not_joined_by_another_when_it_was_let_go_while_stuck(
        self, child: ChildReader, journal: Journal, clock: FakeClock
    ) -> None:
        child.identify()
        journal.write("hang nvmlDeviceGetUtilizationRates 60000")
        with pytest.raises(ReaderHung):
            child.read(at=AT)
        child.close()
        journal.write("hang nvmlDeviceGetUtilizationRates 0")
        with pytest.raises(ReaderUnavailable, match="started again later"):
            child.read(at=AT)
        clock.pass_time(61)
        assert len(child.read(at=AT)) == 2


class TestDriver:
    def test_that_was_renewed_is_taken_up_by_a_new_process_after_a_minute(
        self, child: ChildReader, journal: Journal, clock: FakeClock
    ) -> None:
        child.identify()
        first = process_id(child)
        journal.refuse("*", function="nvmlDeviceGetPowerUsage", code=18)
        with pytest.raises(ReaderUnavailable, match="went away"):
            child.read(at=AT)
        journal.refuse("*", function="nvmlDeviceGetPowerUsage", code=0)
        with pytest.raises(ReaderUnavailable, match="started again later"):
            child.read(at=AT)
        clock.pass_time(61)
        assert len(child.read(at=AT)) == 2
        assert process_id(child) != first

    def test_of_another_version_than_the_library_does_not_cost_a_process_a_sample(
        self, child: ChildReader, journal: Journal, clock: FakeClock
    ) -> None:
        journal.write("init_ret 18")
        with pytest.raises(ReaderUnavailable, match="restart the machine"):
            child.identify()
        for _ in range(3):
            with pytest.raises(ReaderUnavailable, match="started again later"):
                child.identify()
            clock.pass_time(15)
            assert child._process is None

    def test_is_taken_up_anew_while_a_gpu_is_lost(
        self, child: ChildReader, journal: Journal, clock: FakeClock
    ) -> None:
        before = child.identify()
        first = process_id(child)
        journal.write("gpu 0 lost 1")
        assert set(child.read(at=AT)[0].unread.values()) == {LOST}
        clock.pass_time(LOST_REOPEN_SECONDS - 1)
        assert child.identify() == before
        assert process_id(child) == first
        clock.pass_time(2)
        assert child.identify() == before, "it is still counted, and still known"
        assert process_id(child) != first
        assert set(child.read(at=AT)[0].unread.values()) == {LOST}
        journal.write("gpu 0 present 0")
        clock.pass_time(LOST_REOPEN_SECONDS + 1)
        assert [gpu.uuid for gpu in child.identify()] == [before[1].uuid], "it was pulled out"

    def test_gives_back_a_gpu_that_was_reset(
        self, child: ChildReader, journal: Journal, clock: FakeClock
    ) -> None:
        before = child.identify()
        journal.write("gpu 0 lost 1")
        child.read(at=AT)
        journal.write("gpu 0 lost 0")
        clock.pass_time(LOST_REOPEN_SECONDS + 1)
        assert child.identify() == before
        assert child.read(at=AT)[0].unread == {}


class TestXids:
    def test_come_from_the_drivers_queue(
        self, child: ChildReader, journal: Journal, clock: FakeClock
    ) -> None:
        uuids = identified(child)
        assert child.xids() == []
        journal.xid(1, xid=79)
        (xid,) = wait_for_xids(child, clock)
        assert (xid.gpu_uuid, xid.xid, xid.source) == (uuids[1], 79, EventSource.NVML)
        assert clock.wall() - xid.at < dt.timedelta(seconds=EVENT_SECONDS_MAX)
        assert child.warnings() == []

    def test_have_the_process_that_the_kernel_names(
        self, child: ChildReader, journal: Journal, clock: FakeClock, log_path: Path
    ) -> None:
        uuids = identified(child)
        child.xids()
        with log_path.open("a") as log:
            log.write(
                "4,1,1000,-;NVRM: Xid (PCI:0000:18:00): 13, pid=4242, name=python, Graphics\n"
            )
        journal.xid(1, xid=13)
        assert child._events is not None
        select.select([child._events], [], [], EVENT_SECONDS_MAX)
        (xid,) = child.xids()
        assert (xid.gpu_uuid, xid.xid, xid.pid) == (uuids[1], 13, 4242)
        assert (xid.process_name, xid.source) == ("python", EventSource.NVML)
        clock.pass_time(3)
        assert child.xids() == []

    def test_go_on_while_a_read_is_stuck(
        self, child: ChildReader, journal: Journal, clock: FakeClock
    ) -> None:
        identified(child)
        child.xids()
        journal.write("hang nvmlDeviceGetUtilizationRates 60000")
        with pytest.raises(ReaderHung):
            child.read(at=AT)
        journal.xid(0, xid=62)
        assert [xid.xid for xid in wait_for_xids(child, clock)] == [62]

    def test_that_are_stuck_stop_neither_reads_nor_the_parent(
        self, child: ChildReader, journal: Journal, clock: FakeClock
    ) -> None:
        identified(child)
        child.xids()
        journal.hang(function="nvmlEventSetWait_v2", seconds=60)
        journal.xid(0, xid=62)
        started = time.monotonic()
        assert len(child.read(at=AT)) == 2
        assert child.xids() == []
        assert time.monotonic() - started < 1
        journal.hang(function="nvmlEventSetWait_v2", seconds=0)
        assert [xid.xid for xid in wait_for_xids(child, clock)] == [62]

    def test_of_other_gpus_go_on_when_one_is_lost(
        self, child: ChildReader, journal: Journal, clock: FakeClock
    ) -> None:
        uuids = identified(child)
        child.xids()
        journal.write("gpu 0 lost 1")
        end = time.monotonic() + EVENT_SECONDS_MAX
        while not child.warnings():
            child.read(at=AT)
            assert time.monotonic() < end, "nobody says that a GPU is not watched"
        assert child.warnings() == [f"no error events from {uuids[0]}"]
        journal.xid(1, xid=31)
        assert [xid.gpu_uuid for xid in wait_for_xids(child, clock)] == [uuids[1]]

    def test_are_not_lost_with_the_child_that_told_them(
        self, child: ChildReader, journal: Journal, clock: FakeClock
    ) -> None:
        identified(child)
        child.xids()
        journal.xid(0, xid=62)
        assert child._events is not None
        select.select([child._events], [], [], EVENT_SECONDS_MAX)
        child.close()
        child.xids()
        clock.pass_time(3)
        assert [xid.xid for xid in child.xids()] == [62]

    def test_are_told_without_the_kernels_log(
        self, journal: Journal, clock: FakeClock, tmp_path: Path
    ) -> None:
        child = ChildReader(
            boottime_seconds=clock.boottime_seconds,
            now=clock.wall,
            kernel_log=KernelLog(path=tmp_path / "none"),
        )
        try:
            identified(child)
            child.xids()
            journal.xid(0, xid=62)
            assert child._events is not None
            select.select([child._events], [], [], EVENT_SECONDS_MAX)
            assert [xid.xid for xid in child.xids()] == [62]
            assert child.warnings() == [
                "the kernel's log cannot be read: No such file or directory"
            ]
        finally:
            child.close()
