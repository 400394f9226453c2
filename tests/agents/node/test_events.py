"""Errors of GPUs from two sources are told once, and with their process where anybody knows it."""

from __future__ import annotations

import datetime as dt

import pytest

from agents.node.events import REMEMBERED_MAX, SAME_EVENT, QueuedXid, XidMerger
from agents.node.kernel_log import KernelXid
from agents.node.reader import Xid
from agents.protocol import EventSource

AT = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
PLACE = (0, 0x18, 0)


def queued(*, xid: int = 79, age: float = 0.0) -> QueuedXid:
    return QueuedXid(gpu_uuid="GPU-0", xid=xid, at=AT - dt.timedelta(seconds=age))


def logged(*, xid: int = 79, pid: int | None = 7, age: float = 0.0) -> KernelXid:
    return KernelXid(
        pci=PLACE, xid=xid, age_seconds=age, pid=pid, process_name="python" if pid else ""
    )


class Merging:
    """A merger and its clock."""

    def __init__(self) -> None:
        self.merger = XidMerger()
        self.now = AT

    def merge(
        self, *events: QueuedXid | KernelXid, later: float = 0.0, log_is_read: bool = True
    ) -> list[tuple[int, int | None, EventSource]]:
        return [(x.xid, x.pid, x.source) for x in self.xids(events, later, log=log_is_read)]

    def xids(
        self, events: tuple[QueuedXid | KernelXid, ...], later: float = 0.0, *, log: bool = True
    ) -> list[Xid]:
        self.now += dt.timedelta(seconds=later)
        return self.merger.merge(
            now=self.now,
            queued=[event for event in events if isinstance(event, QueuedXid)],
            logged=[event for event in events if isinstance(event, KernelXid)],
            gpu_uuids={PLACE: "GPU-0"},
            log_is_read=log,
        )


@pytest.fixture
def merging() -> Merging:
    return Merging()


class TestMerge:
    def test_gives_the_process_of_the_log_to_the_event_of_the_queue(self, merging: Merging) -> None:
        assert merging.merge(queued(), logged()) == [(79, 7, EventSource.NVML)]

    def test_waits_a_moment_for_the_line_in_the_log(self, merging: Merging) -> None:
        assert merging.merge(queued()) == []
        assert merging.merge(logged(age=-1), later=1) == [(79, 7, EventSource.NVML)]

    def test_tells_an_event_without_its_line_after_two_seconds(self, merging: Merging) -> None:
        assert merging.merge(queued()) == []
        assert merging.merge(later=2) == [(79, None, EventSource.NVML)]
        assert merging.merge(later=2) == []

    def test_waits_for_nothing_where_the_log_cannot_be_read(self, merging: Merging) -> None:
        assert merging.merge(queued(), log_is_read=False) == [(79, None, EventSource.NVML)]

    def test_tells_what_the_log_alone_knows(self, merging: Merging) -> None:
        (xid,) = merging.xids((logged(age=4),))
        assert (xid.gpu_uuid, xid.process_name) == ("GPU-0", "python")
        assert (xid.source, xid.at) == (EventSource.KERNEL_LOG, AT - dt.timedelta(seconds=4))

    def test_does_not_tell_the_queues_event_after_the_logs(self, merging: Merging) -> None:
        assert merging.merge(logged()) == [(79, 7, EventSource.KERNEL_LOG)]
        assert merging.merge(queued(age=-1), later=1) == []

    def test_tells_the_same_again_only_after_five_minutes(self, merging: Merging) -> None:
        assert merging.merge(logged(), logged()) == [(79, 7, EventSource.KERNEL_LOG)]
        assert merging.merge(logged(), later=SAME_EVENT.total_seconds() - 1) == []
        assert merging.merge(logged(), later=2) == [(79, 7, EventSource.KERNEL_LOG)]

    def test_tells_each_process_and_each_number(self, merging: Merging) -> None:
        found = merging.merge(logged(pid=7), logged(pid=8), logged(pid=None), logged(xid=13))
        assert {(xid, pid) for xid, pid, _ in found} == {(79, 7), (79, 8), (79, None), (13, 7)}

    def test_passes_over_a_gpu_that_is_not_here(self, merging: Merging) -> None:
        stranger = KernelXid(pci=(0, 0x99, 0), xid=79, age_seconds=0.0, pid=None, process_name="")
        assert merging.merge(stranger) == []

    def test_tells_the_oldest_first(self, merging: Merging) -> None:
        found = merging.xids((logged(xid=1, age=1), logged(xid=2, age=9)))
        assert [xid.xid for xid in found] == [2, 1]

    def test_remembers_no_more_than_its_limit(self, merging: Merging) -> None:
        many = tuple(logged(pid=pid) for pid in range(1, REMEMBERED_MAX + 2))
        assert len(merging.xids(many)) == REMEMBERED_MAX + 1
        assert merging.merge(logged(pid=REMEMBERED_MAX + 1)) == []
        assert merging.merge(logged(pid=1)) == [(79, 1, EventSource.KERNEL_LOG)]
