"""Wait for the driver's error events in a thread of the child process.

A wait that never returns stops this thread alone, and a read that never returns does not stop it: Python
lets go of its lock during a call. A second process would do the same for 14 MB more on every node.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from agents.node.nvml import (
    EVENT_WAIT_MILLISECONDS,
    CallFailed,
    Driver,
    DriverGone,
    GpuLost,
    Handle,
    address,
)

PAUSE_SECONDS = 1.0  # a lost GPU lets every wait return at once
NOTHING_TO_WATCH_SECONDS = 60.0
STUCK_SECONDS = 4 * EVENT_WAIT_MILLISECONDS / 1000


class EventQueue:
    """Writes one JSON line for each error: the GPU's UUID, the Xid, and when on the monotonic clock."""

    def __init__(
        self,
        *,
        driver: Driver,
        write: Callable[[bytes], object],
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver = driver
        self._write = write
        self._sleep = sleep
        self._monotonic = monotonic
        self._waits_since: float | None = None
        self._unwatched: list[str] = []
        self._problem = ""
        self._is_started = False

    def start(self, *, handles: dict[str, Any]) -> None:
        """Watch these GPUs from now on; a second call changes nothing."""
        if not self._is_started:
            self._is_started = True
            self._waits_since = self._monotonic()
            threading.Thread(target=self._watch, args=(handles,), daemon=True).start()

    def problem(self) -> str:
        """Return in words why errors may pass unseen, empty while they do not."""
        since = self._waits_since
        if since is not None and self._monotonic() - since > STUCK_SECONDS:
            return "the driver's queue of events does not answer"
        if self._problem:
            return self._problem
        if self._unwatched:
            return "no error events from " + ", ".join(self._unwatched)
        return ""

    def _watch(self, handles: dict[str, Any]) -> None:
        while True:
            pause = self.watch_once(handles=handles)
            self._waits_since = None
            self._sleep(pause)

    def watch_once(self, *, handles: dict[str, Any]) -> float:
        """Watch in one set all GPUs that can be, until that breaks; return the seconds to rest."""
        events: Handle = None
        self._waits_since = self._monotonic()
        try:
            events = self._driver.event_set()
            names = self._register(events, handles)
            if not names:
                self._problem = "no GPU tells of its errors"
                return NOTHING_TO_WATCH_SECONDS
            self._problem = ""
            while True:
                self._waits_since = self._monotonic()
                self._tell(names, self._driver.next_xid(events))
        except GpuLost:
            return PAUSE_SECONDS
        except (CallFailed, DriverGone) as error:
            self._problem = f"the driver's queue of events fails: {error}"
            return EVENT_WAIT_MILLISECONDS / 1000
        finally:
            if events is not None:
                self._free(events)

    def _register(self, events: Handle, handles: dict[str, Any]) -> dict[int | None, str]:
        names: dict[int | None, str] = {}
        self._unwatched = []
        for uuid, handle in handles.items():
            try:
                if handle is not None and self._driver.watch_xids(events, handle):
                    names[address(handle)] = uuid
                else:
                    self._unwatched.append(uuid)
            except (CallFailed, GpuLost):
                self._unwatched.append(uuid)
        return names

    def _tell(self, names: dict[int | None, str], event: tuple[int | None, int] | None) -> None:
        if event is None:
            return
        uuid = names.get(event[0])
        if uuid is not None:
            line = {"gpu_uuid": uuid, "xid": event[1], "monotonic": self._monotonic()}
            self._write(json.dumps(line).encode() + b"\n")

    def _free(self, events: Handle) -> None:
        try:
            self._driver.call("nvmlEventSetFree", events)
        except (CallFailed, GpuLost, DriverGone) as error:
            self._problem = f"the driver's queue of events fails: {error}"
