"""Keep NVML in a child process: a wedged driver call never returns and raises nothing.

Parent and child speak one JSON value a line over pipes. A child that does not answer in time is set aside,
not killed at once and not replaced: every new child would block in the same call. While it is stuck the
parent reports since when, offers nothing and starts no lease. When the answer comes after all, the child is
used again. Otherwise the parent ends it after 60 s, then 5 min, then every 15 min, and starts another one
only when it is gone, so that there is never more than one stuck process.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agents.node.reader import ReaderHung, ReaderUnavailable, Sample
from agents.protocol import GpuIdentity, MalformedMessage, MessageT, from_json, to_json

if TYPE_CHECKING:
    from agents.node.nvml import NvmlReader

logger = logging.getLogger(__name__)

ANSWER_SECONDS_MAX = 5.0  # a full read of eight GPUs takes some 100 ms
FIRST_ANSWER_SECONDS_MAX = 60.0  # without persistence mode each first open of a GPU takes 2 to 3 s
RETRY_AFTER_SECONDS = (60.0, 300.0, 900.0)
KILL_SECONDS_MAX = 1.0  # a process that is not in the driver is gone at once
LINE_BYTES_MAX = 1024 * 1024  # sixteen GPUs take some 10 KiB


class ChildReader:
    """A reader whose work is done by a process of its own."""

    simulated = False

    def __init__(
        self,
        *,
        boottime_seconds: Callable[[], float],
        answer_seconds_max: float = ANSWER_SECONDS_MAX,
        first_answer_seconds_max: float = FIRST_ANSWER_SECONDS_MAX,
    ) -> None:
        self._boottime_seconds = boottime_seconds
        self._answer_seconds_max = answer_seconds_max
        self._first_answer_seconds_max = first_answer_seconds_max
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._answered_once = False
        self._stale_answers = 0
        self._failures = 0
        self._retry_at_boottime: float | None = None

    def identify(self) -> list[GpuIdentity]:
        """Return the GPUs in PCI order.

        :raises ReaderUnavailable: when there is no driver or the child died.
        :raises ReaderHung: when the driver does not answer.
        """
        return [_checked(GpuIdentity, item) for item in self._ask(verb="identify")]

    def read(self, *, at: dt.datetime) -> list[Sample]:
        """Return one sample of each GPU.

        :raises ReaderUnavailable: when there is no driver or the child died.
        :raises ReaderHung: when the driver does not answer.
        """
        return [_checked(Sample, item) for item in self._ask(verb="read", at=to_json(at))]

    def call_milliseconds(self) -> dict[str, float]:
        """Return how long each NVML function took when the child last called it."""
        return dict(self._ask(verb="timings"))

    def close(self) -> None:
        """End the child; one that is stuck in the driver is told to end and left behind."""
        if self._process is None:
            return
        process, self._process = self._process, None
        _pipe(process.stdin).close()
        _pipe(process.stdout).close()
        try:
            process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            process.kill()

    def _ask(self, **request: object) -> Any:  # noqa: ANN401 - a JSON value
        self._recover()
        process = self._process or self._start()
        try:
            os.write(_pipe(process.stdin).fileno(), json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._gone(f"its pipe is closed: {error}") from None
        limit = self._answer_seconds_max if self._answered_once else self._first_answer_seconds_max
        answer = self._next_line(seconds=limit)
        if answer is None:
            self._stale_answers += 1
            self._put_off()
            logger.warning(
                "the NVIDIA driver did not answer within %g s; process %d waits", limit, process.pid
            )
            raise ReaderHung(f"the NVIDIA driver did not answer within {limit:g} s")
        self._answered_once = True
        self._failures = 0
        try:
            value = json.loads(answer)
        except ValueError:
            raise self._gone("it wrote something that is not JSON") from None
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
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agents.node.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            bufsize=0,
            start_new_session=True,  # a Ctrl-C at the terminal is the parent's to handle
        )
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
        self._process = None
        self._stale_answers = 0

    def _put_off(self) -> None:
        step = RETRY_AFTER_SECONDS[min(self._failures, len(RETRY_AFTER_SECONDS) - 1)]
        self._failures += 1
        self._retry_at_boottime = self._boottime_seconds() + step


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "the child was started with pipes"
    return pipe


def _checked(message_type: type[MessageT], value: object) -> MessageT:
    try:
        return from_json(message_type, value)
    except MalformedMessage as error:
        raise ReaderUnavailable(f"the reader of the GPUs answered nonsense: {error}") from None


def serve(*, reader: NvmlReader, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer one request a line until the parent closes the pipe."""
    for line in requests:
        try:
            request = json.loads(line)
            match request["verb"]:
                case "identify":
                    result: object = to_json(reader.identify())
                case "read":
                    at = dt.datetime.fromisoformat(request["at"])
                    result = to_json(reader.read(at=at))
                case _:
                    result = reader.call_milliseconds
            answer: dict[str, object] = {"ok": result}
        except ReaderUnavailable as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def main() -> None:
    """Be the child."""
    from agents.node.nvml import NvmlReader

    serve(reader=NvmlReader(), requests=sys.stdin.buffer, answers=sys.stdout.buffer)


if __name__ == "__main__":
    main()
