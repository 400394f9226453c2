"""The driver's program in the test's own process: the same answers as JSON, without a child."""

from __future__ import annotations

import ctypes
import json
from typing import Any

from agents.node.answers import AnsweringReader
from agents.node.driver.service import Service
from agents.node.nvml import Driver
from agents.node.reader import ReaderUnavailable
from tests.fakes.nvml import Journal


class DirectReader(AnsweringReader):
    """A reader of the stand-in. `proc` is where the kernel tells of processes."""

    def __init__(self, *, journal: Journal, proc: str = "/proc") -> None:
        # pynvml asks for the library by name; one that is already loaded under that name is taken.
        ctypes.CDLL(str(journal.library))
        self.seconds = 0.0
        self.known: list[dict[str, Any]] = []
        self._proc = proc
        self._driver: Driver | None = None
        self._service: Service | None = None

    def _ask(self, **request: object) -> Any:
        if self._driver is None or self._service is None:
            self._driver = Driver(monotonic=lambda: self.seconds)
            self._service = Service(driver=self._driver, proc=self._proc)
            request["known"] = self.known
        answer = json.loads(json.dumps(self._service.answer(request=request)))
        if "error" in answer:
            raise ReaderUnavailable(answer["error"])
        if request["verb"] == "identify":
            self.known = answer["ok"]
        return answer["ok"]

    def close(self) -> None:
        """Let go of the library as the end of a process does."""
        if self._driver is not None and self._driver.is_open:
            self._driver.call("nvmlShutdown")
        self._driver = self._service = None
