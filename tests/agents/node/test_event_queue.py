"""The thread that waits for the driver's error events: it never spins, and it says when it is blind."""

from __future__ import annotations

import ctypes
import json
import threading
import time
from collections.abc import Iterator

import pytest

from agents.node.driver.devices import Devices
from agents.node.driver.events import (
    NOTHING_TO_WATCH_SECONDS,
    PAUSE_SECONDS,
    STUCK_SECONDS,
    EventQueue,
)
from agents.node.nvml import EVENT_WAIT_MILLISECONDS, Driver
from tests.fakes.nvml import Journal

UUIDS = [f"GPU-00000000-0000-4000-8000-{index:012d}" for index in range(2)]
REAL_SECONDS_MAX = 10.0


class Watch:
    """A queue of the stand-in, watched in the test's own process."""

    def __init__(self, journal: Journal) -> None:
        ctypes.CDLL(str(journal.library))
        self.driver = Driver()
        self.now = 100.0
        self.asked = 0
        self.told: list[dict[str, object]] = []
        self.handles = Devices(driver=self.driver).handles()
        self.queue = EventQueue(
            driver=self.driver,
            write=lambda line: self.told.append(json.loads(line)),
            monotonic=self.monotonic,
        )

    def monotonic(self) -> float:
        self.asked += 1
        return self.now

    def once(self) -> float:
        return self.queue.watch_once(handles=self.handles)

    def beside(self) -> threading.Thread:
        """Watch in a thread until the set breaks; return once it waits."""
        before = self.asked
        thread = threading.Thread(target=self.once)
        thread.start()
        self.until(lambda: self.asked == before + 2)  # as it begins, and as it begins to wait
        return thread

    @staticmethod
    def until(happened: object) -> None:
        assert callable(happened)
        end = time.monotonic() + REAL_SECONDS_MAX
        while not happened():
            assert time.monotonic() < end, "it does not happen"
            time.sleep(0.01)


@pytest.fixture
def watch(journal: Journal) -> Iterator[Watch]:
    watch = Watch(journal)
    yield watch
    watch.driver.call("nvmlShutdown")


class TestEventQueue:
    def test_tells_each_error_with_its_gpu_and_time(self, watch: Watch, journal: Journal) -> None:
        thread = watch.beside()
        journal.xid(1, xid=79)
        journal.xid(0, xid=13)
        journal.event(0, event_type=2)
        watch.until(lambda: len(watch.told) == 2)
        journal.write("gpu * lost 1")
        thread.join(REAL_SECONDS_MAX)
        assert not thread.is_alive()
        assert watch.told == [
            {"gpu_uuid": UUIDS[1], "xid": 79, "monotonic": 100.0},
            {"gpu_uuid": UUIDS[0], "xid": 13, "monotonic": 100.0},
        ]

    def test_rests_when_a_gpu_is_lost_and_goes_on_without_it(
        self, watch: Watch, journal: Journal
    ) -> None:
        thread = watch.beside()
        journal.write("gpu 0 lost 1")
        thread.join(REAL_SECONDS_MAX)
        journal.refuse(None, function="nvmlEventSetWait_v2", code=999)
        assert watch.once() == EVENT_WAIT_MILLISECONDS / 1000, "it waited in a set without the GPU"
        journal.refuse(None, function="nvmlEventSetWait_v2", code=0)
        again = watch.beside()
        journal.xid(1, xid=31)
        watch.until(lambda: watch.told)
        assert watch.queue.problem() == f"no error events from {UUIDS[0]}"
        journal.write("gpu 1 lost 1")
        again.join(REAL_SECONDS_MAX)

    def test_rests_a_second_each_time_a_wait_returns_at_once(
        self, watch: Watch, journal: Journal
    ) -> None:
        journal.refuse(None, function="nvmlEventSetWait_v2", code=15)
        assert [watch.once(), watch.once()] == [PAUSE_SECONDS, PAUSE_SECONDS]

    def test_rests_long_where_no_gpu_tells_of_errors(self, watch: Watch, journal: Journal) -> None:
        journal.refuse("*", function="nvmlDeviceRegisterEvents", code=3)
        assert watch.once() == NOTHING_TO_WATCH_SECONDS
        assert watch.queue.problem() == "no GPU tells of its errors"

    @pytest.mark.parametrize(
        "function", ["nvmlEventSetCreate", "nvmlEventSetWait_v2", "nvmlEventSetFree"]
    )
    def test_says_what_fails_and_rests(self, watch: Watch, journal: Journal, function: str) -> None:
        journal.refuse(None, function=function, code=999)
        if function == "nvmlEventSetFree":
            journal.refuse(None, function="nvmlEventSetWait_v2", code=15)
        assert watch.once() >= PAUSE_SECONDS
        assert "error(999)" in watch.queue.problem()

    def test_rests_when_the_driver_goes_away(self, watch: Watch, journal: Journal) -> None:
        journal.refuse(None, function="nvmlEventSetWait_v2", code=9)
        assert watch.once() == EVENT_WAIT_MILLISECONDS / 1000
        assert "went away" in watch.queue.problem()

    def test_says_that_the_driver_does_not_answer(self, watch: Watch, journal: Journal) -> None:
        journal.hang(function="nvmlEventSetWait_v2", seconds=60)
        thread = watch.beside()
        assert watch.queue.problem() == ""
        watch.now += STUCK_SECONDS + 1
        assert "does not answer" in watch.queue.problem()
        journal.hang(function="nvmlEventSetWait_v2", seconds=0)
        journal.write("gpu * lost 1")
        thread.join(REAL_SECONDS_MAX)
        assert not thread.is_alive()
