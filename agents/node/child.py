"""Keep NVML in a child process: a wedged driver call never returns and raises nothing.

Parent and child speak one JSON value a line over pipes. A child that does not answer in time is set aside,
not killed at once and not replaced: every new child would block in the same call. While it is stuck the
parent reports since when, offers nothing and starts no lease. When the answer comes after all, the child is
used again. Otherwise the parent ends it after 60 s, then 5 min, then every 15 min, and starts another one
only when it is gone, so that there is never more than one stuck process.

The list of GPUs is fixed while a process holds the driver. So a GPU that is lost makes the parent take a new
child every five minutes: then one that was pulled is gone, and one that was reset is back. Error events come
over a pipe of their own, from a thread of the child that a stuck read does not stop.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import IO, Any

from agents.node.answers import AnsweringReader
from agents.node.events import QueuedXid, XidMerger
from agents.node.kernel_log import KernelLog, pci_place
from agents.node.programs import that_finds_us
from agents.node.reader import LOST, ReaderHung, ReaderUnavailable, Sample, Xid
from agents.protocol import GpuIdentity, to_json

logger = logging.getLogger(__name__)

ANSWER_SECONDS_MAX = 5.0  # a full read of eight GPUs takes some 100 ms
FIRST_ANSWER_SECONDS_MAX = 60.0  # without persistence mode each first open of a GPU takes 2 to 3 s
RESTORE_SECONDS_MAX = 30.0  # switching MIG resets the GPU
RETRY_AFTER_SECONDS = (60.0, 300.0, 900.0)
LOST_REOPEN_SECONDS = 300.0
KILL_SECONDS_MAX = 1.0  # a process that is not in the driver is gone at once
LINE_BYTES_MAX = 1024 * 1024  # sixteen GPUs take some 10 KiB
EVENT_BYTES_PER_CALL_MAX = 1024 * 1024  # a flood of events may not hold the agent


def _wall_now() -> dt.datetime:
    return dt.datetime.now(tz=dt.UTC)


class ChildReader(AnsweringReader):
    """A reader whose work is done by a process of its own. `now` dates the errors of GPUs."""

    def __init__(
        self,
        *,
        boottime_seconds: Callable[[], float],
        now: Callable[[], dt.datetime] = _wall_now,
        answer_seconds_max: float = ANSWER_SECONDS_MAX,
        first_answer_seconds_max: float = FIRST_ANSWER_SECONDS_MAX,
        kernel_log: KernelLog | None = None,
    ) -> None:
        self._boottime_seconds = boottime_seconds
        self._now = now
        self._answer_seconds_max = answer_seconds_max
        self._first_answer_seconds_max = first_answer_seconds_max
        self._kernel_log = kernel_log or KernelLog()
        self._merger = XidMerger()
        self._known: list[GpuIdentity] = []
        self._lost_since_boottime: float | None = None
        self._turn = threading.Lock()  # a lease's checks may run beside the loop
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._events: int | None = None
        self._events_received = b""
        self._events_problem = ""
        self._answered_once = False
        self._stale_answers = 0
        self._failures = 0
        self._retry_at_boottime: float | None = None

    def identify(self) -> list[GpuIdentity]:
        """Return the GPUs in PCI order; one that is lost stays until a new child does not find it.

        :raises ReaderUnavailable: when there is no driver or the child died.
        :raises ReaderHung: when the driver does not answer.
        """
        since = self._lost_since_boottime
        if since is not None and self._boottime_seconds() - since >= LOST_REOPEN_SECONDS:
            self._lost_since_boottime = None
            self.close()
        self._known = super().identify()
        return self._known

    def read(
        self,
        *,
        at: dt.datetime,
        gpu_uuids: Collection[str] | None = None,
        with_processes: Collection[str] = (),
    ) -> list[Sample]:
        """Return one sample of each of these GPUs.

        :raises ReaderUnavailable: when there is no driver or the child died.
        :raises ReaderHung: when the driver does not answer.
        """
        samples = super().read(at=at, gpu_uuids=gpu_uuids, with_processes=with_processes)
        if self._lost_since_boottime is None and any(
            LOST in sample.unread.values() for sample in samples
        ):
            self._lost_since_boottime = self._boottime_seconds()
        return samples

    def xids(self) -> list[Xid]:
        """Return the errors seen since the last call, from the driver's queue and from the kernel's log."""
        self._kernel_log.open()
        if not self._known:
            return []  # the log waits until its places can be told apart
        places = {
            place: identity.uuid
            for identity in self._known
            if identity.pci_bus_id is not None
            and (place := pci_place(bus_id=identity.pci_bus_id)) is not None
        }
        return self._merger.merge(
            now=self._now(),
            queued=self._queued(),
            logged=self._kernel_log.read(),
            gpu_uuids=places,
            log_is_read=not self._kernel_log.problem,
        )

    def warnings(self) -> list[str]:
        """Return in words for the owner what of this cannot be seen now."""
        return [words for words in (self._kernel_log.problem, self._events_problem) if words]

    def close(self) -> None:
        """End the child; one that is stuck in the driver is told to end and left behind."""
        if self._process is None:
            return
        process = self._process
        self._forget()
        try:
            process.wait(timeout=KILL_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()

    def _ask(self, **request: object) -> Any:  # noqa: ANN401 - a JSON value
        if not self._turn.acquire(timeout=self._answer_seconds_max):
            raise ReaderUnavailable("the reader of the GPUs is busy with another request")
        try:
            return self._ask_in_turn(request)
        finally:
            self._turn.release()

    def _ask_in_turn(self, request: dict[str, object]) -> Any:  # noqa: ANN401 - a JSON value
        self._recover()
        if self._process is None:
            request["known"] = to_json(self._known)
        process = self._process or self._start()
        try:
            os.write(_pipe(process.stdin).fileno(), json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._gone(f"its pipe is closed: {error}") from None
        limit = self._answer_seconds_max if self._answered_once else self._first_answer_seconds_max
        if request["verb"] == "restore":
            limit = max(limit, RESTORE_SECONDS_MAX)
        answer = self._next_line(seconds=limit)
        if answer is None:
            self._stale_answers += 1
            self._put_off()
            logger.warning(
                "the NVIDIA driver did not answer within %g s; process %d waits", limit, process.pid
            )
            raise ReaderHung(f"the NVIDIA driver did not answer within {limit:g} s")
        self._answered_once = True
        try:
            value = json.loads(answer)
        except ValueError:
            raise self._gone("it wrote something that is not JSON") from None
        if value.get("ends"):
            self._forget()
            self._put_off()
            raise ReaderUnavailable(str(value["error"]))
        self._failures = 0
        self._events_problem = str(value.get("events", ""))
        if "error" in value:
            raise ReaderUnavailable(str(value["error"]))
        return value["ok"]

    def _recover(self) -> None:
        """Return when a child can be asked or started.

        :raises ReaderHung: while the old one is stuck.
        :raises ReaderUnavailable: while a dead one may not be replaced yet.
        """
        due = self._retry_at_boottime is None or self._boottime_seconds() >= self._retry_at_boottime
        while self._process is not None and self._stale_answers:
            process = self._process
            if process.poll() is not None:
                self._forget()
            elif self._next_line(seconds=0) is not None:
                self._stale_answers -= 1
                if not self._stale_answers:
                    logger.info("the NVIDIA driver answers again")
                    self._failures = 0
            elif due and self._ends(process):
                self._forget()
            else:
                raise ReaderHung(f"process {process.pid} is stuck in the NVIDIA driver")
        if self._process is None and not due:
            raise ReaderUnavailable("the reader of the GPUs died and is started again later")

    def _ends(self, process: subprocess.Popen[bytes]) -> bool:
        """Kill a stuck child and say whether it is gone; one in an uninterruptible call stays."""
        self._put_off()
        process.kill()
        try:
            process.wait(timeout=KILL_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _start(self) -> subprocess.Popen[bytes]:
        self._events, events_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._events, False)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "agents.node.driver", str(events_end)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=that_finds_us(os.environ),
                bufsize=0,
                pass_fds=[events_end],
                start_new_session=True,  # a Ctrl-C at the terminal is the parent's to handle
            )
        finally:
            os.close(events_end)
        self._received = b""
        self._answered_once = False
        return self._process

    def _next_line(self, *, seconds: float) -> bytes | None:
        """Return the next line of the child, or `None` when it has not come within `seconds`.

        :raises ReaderUnavailable: when the child ended.
        """
        assert self._process is not None
        pipe = _pipe(self._process.stdout)
        deadline = (
            time.monotonic() + seconds
        )  # a pipe is waited for in real time, whatever clock is injected
        while b"\n" not in self._received:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([pipe], [], [], left)[0]:
                return None
            chunk = os.read(pipe.fileno(), 65536)
            if not chunk or len(self._received) > LINE_BYTES_MAX:
                raise self._gone(f"it ended with status {self._process.poll()}")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _queued(self) -> list[QueuedXid]:
        """Return what the child's thread wrote; never wait."""
        self._receive_events()
        *lines, self._events_received = self._events_received.split(b"\n")
        events = []
        for line in lines:
            try:
                event = json.loads(line)
                age = dt.timedelta(seconds=max(0.0, time.monotonic() - event["monotonic"]))
                queued = QueuedXid(
                    gpu_uuid=str(event["gpu_uuid"]), xid=int(event["xid"]), at=self._now() - age
                )
            except (ValueError, KeyError, TypeError) as error:
                logger.warning("the reader of the GPUs wrote an event that is none: %s", error)
                continue
            events.append(queued)
        return events

    def _receive_events(self) -> None:
        while self._events is not None and len(self._events_received) < EVENT_BYTES_PER_CALL_MAX:
            try:
                chunk = os.read(self._events, 65536)
            except BlockingIOError:
                return
            if not chunk:
                return
            self._events_received += chunk

    def _gone(self, why: str) -> ReaderUnavailable:
        self._forget()
        self._put_off()
        logger.warning("the reader of the GPUs died: %s", why)
        return ReaderUnavailable(f"the reader of the GPUs died: {why}")

    def _forget(self) -> None:
        if self._process is not None:
            _pipe(self._process.stdin).close()
            _pipe(self._process.stdout).close()
            self._process.poll()
        if self._events is not None:
            self._receive_events()
            os.close(self._events)
        self._events = None
        self._process = None
        self._stale_answers = 0

    def _put_off(self) -> None:
        step = RETRY_AFTER_SECONDS[min(self._failures, len(RETRY_AFTER_SECONDS) - 1)]
        self._failures += 1
        self._retry_at_boottime = self._boottime_seconds() + step


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "the child was started with pipes"
    return pipe
