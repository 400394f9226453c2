"""Answer the parent's requests, one JSON value a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import IO, Any

from agents.node.driver.counters import read_counters, read_host
from agents.node.driver.devices import Devices
from agents.node.driver.events import EventQueue
from agents.node.driver.samples import Samples
from agents.node.driver.settings import read_settings, restore_settings
from agents.node.nvml import Driver, DriverGone


class Service:
    """All verbs of the child, over one driver. `proc` is where the kernel tells of processes.

    `write_event` is given each error of a GPU from a thread of its own; `None` where nobody listens.
    """

    def __init__(
        self,
        *,
        driver: Driver,
        write_event: Callable[[bytes], object] | None = None,
        proc: str = "/proc",
    ) -> None:
        self._driver = driver
        self._devices = Devices(driver=driver)
        self._samples = Samples(driver=driver, devices=self._devices, proc=proc)
        self._events = None if write_event is None else EventQueue(driver=driver, write=write_event)
        self._proc = proc

    def answer(self, *, request: dict[str, Any]) -> dict[str, Any]:
        """Return `{"ok": …}`, or `{"error": …}`; `ends` says that only a new process can go on."""
        try:
            self._devices.known = request.get("known", self._devices.known)
            answer: dict[str, Any] = {"ok": self._result(request)}
            if self._events is not None:
                self._events.start(handles=self._devices.handles())
                answer["events"] = self._events.problem()
        except DriverGone as gone:
            return {"error": str(gone), "ends": gone.for_good}
        return answer

    def _result(self, request: dict[str, Any]) -> object:
        driver, devices = self._driver, self._devices
        match request["verb"]:
            case "identify":
                return devices.identify()
            case "read":
                return self._samples.read(
                    at=request["at"],
                    gpu_uuids=request["gpu_uuids"],
                    with_processes=request["with_processes"],
                )
            case "counters":
                return read_counters(driver=driver, devices=devices, gpu_uuids=request["gpu_uuids"])
            case "settings":
                return read_settings(driver=driver, devices=devices, gpu_uuids=request["gpu_uuids"])
            case "restore":
                return restore_settings(
                    driver=driver, devices=devices, settings=request["settings"]
                )
            case "processes":
                return self._samples.processes(gpu_uuids=request["gpu_uuids"])
            case "host":
                return read_host(driver=driver, proc=self._proc)
            case _:
                return driver.call_milliseconds


def serve(*, service: Service, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until the parent closes the pipe, or the driver can only be had by a new process."""
    for line in requests:
        answer = service.answer(request=json.loads(line))
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
        if answer.get("ends"):
            return
