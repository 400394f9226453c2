"""One look at a GPU: what idleness and meters are judged by, and the processes that hold it."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from agents.node.driver.devices import Devices
from agents.node.nvml import MPS, PROCESS_LISTS, Driver, GpuLost, Handle, lost_everywhere
from agents.node.unread import NOT_SUPPORTED

SAMPLE_FIELDS = (
    "utilization_percent",
    "memory_used_bytes",
    "power_draw_milliwatts",
    "energy_millijoules",
    "temperature_celsius",
    "clocks_event_reasons",
    "process_count",
)
# Services that belong to the machine; the kernel cuts a name after 15 characters.
MACHINE_PROCESSES = frozenset({"Xorg", "nvidia-persiste", "nv-hostengine"})
TEMPERATURE_OF_GPU = 0


class Samples:
    """Reads samples, and remembers between them what each GPU had to say of its processes."""

    def __init__(self, *, driver: Driver, devices: Devices, proc: str = "/proc") -> None:
        self._driver = driver
        self._devices = devices
        self._proc = proc
        self._own_pids = {os.getpid(), os.getppid()}
        self._buffer_read_until: dict[str, int] = {}
        self._process_counts: dict[str, tuple[int | None, str, str]] = {}

    def read(
        self, *, at: str, gpu_uuids: Collection[str] | None, with_processes: Collection[str]
    ) -> list[dict[str, Any]]:
        """Return one sample of each of these GPUs, stamped with `at`.

        :raises DriverGone: when there is no driver.
        """
        rows = []
        for uuid, handle in self._devices.handles().items():
            if gpu_uuids is not None and uuid not in gpu_uuids:
                continue
            row: dict[str, Any] = {"gpu_uuid": uuid, "measured_at": at}
            try:
                if handle is None:
                    raise GpuLost
                row.update(self._read_gpu(uuid, handle))
                if uuid in with_processes:
                    self._count_processes(uuid, handle, at)
                self._add_processes(row)
            except GpuLost:
                self._process_counts.pop(uuid, None)
                row = {
                    "gpu_uuid": uuid,
                    "measured_at": at,
                    "unread": lost_everywhere(SAMPLE_FIELDS),
                }
            rows.append(row)
        return rows

    def processes(self, *, gpu_uuids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
        """Return the processes of each of these GPUs; one that cannot tell is missing.

        :raises DriverGone: when there is no driver.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for uuid, handle in self._devices.handles().items():
            if uuid not in gpu_uuids or handle is None:
                continue
            try:
                listed, reason = self._list(uuid, handle)
            except GpuLost:
                continue
            if not reason:
                found[uuid] = listed
        return found

    def _read_gpu(self, uuid: str, handle: Handle) -> dict[str, Any]:
        driver, unread = self._driver, dict[str, str]()
        mean, highest = self._utilization(unread, uuid, handle)
        memory = driver.memory(unread, "memory_used_bytes", uuid, handle)
        return {
            "utilization_percent": mean,
            "utilization_max_percent": highest,
            "memory_used_bytes": None if memory is None else memory.used,
            "power_draw_milliwatts": driver.attempt(
                unread, "power_draw_milliwatts", uuid, "nvmlDeviceGetPowerUsage", handle
            ),
            "energy_millijoules": driver.attempt(
                unread, "energy_millijoules", uuid, "nvmlDeviceGetTotalEnergyConsumption", handle
            ),
            "temperature_celsius": driver.attempt(
                unread, "temperature_celsius", uuid, "nvmlDeviceGetTemperature", handle,
                TEMPERATURE_OF_GPU,
            ),
            "clocks_event_reasons": driver.attempt(
                unread, "clocks_event_reasons", uuid, "nvmlDeviceGetCurrentClocksEventReasons", handle
            ),
            "unread": unread,
        }  # fmt: skip

    def _utilization(
        self,
        unread: dict[str, str],
        uuid: str,
        handle: Handle,
    ) -> tuple[int | None, int | None]:
        """Return the mean and the highest load since the look before, or the point value for both."""
        since = self._buffer_read_until.get(uuid, 0)
        samples = self._driver.utilization_samples(uuid, handle, since_microseconds=since)
        if samples:
            self._buffer_read_until[uuid] = max(at for at, _ in samples)
            percents = [percent for _, percent in samples]
            return round(sum(percents) / len(percents)), max(percents)
        rates = self._driver.attempt(
            unread, "utilization_percent", uuid, "nvmlDeviceGetUtilizationRates", handle
        )
        return (None, None) if rates is None else (rates.gpu, rates.gpu)

    def _count_processes(self, uuid: str, handle: Handle, at: str) -> None:
        listed, reason = self._list(uuid, handle)
        pids = {
            process["pid"]
            for process in listed
            if process["name"] not in MACHINE_PROCESSES and process["pid"] not in self._own_pids
        }
        self._process_counts[uuid] = (None if reason else len(pids), reason, at)

    def _add_processes(self, row: dict[str, Any]) -> None:
        count, reason, read_at = self._process_counts.get(row["gpu_uuid"], (None, "", None))
        row["process_count"], row["processes_at"] = count, read_at
        if reason:
            row["unread"]["process_count"] = reason

    def _list(self, uuid: str, handle: Handle) -> tuple[list[dict[str, Any]], str]:
        """Return the processes of a GPU, and why the list is not whole; NVML gives PIDs of the host."""
        listed: list[dict[str, Any]] = []
        for kind, functions in PROCESS_LISTS.items():
            unread: dict[str, str] = {}
            found = None
            for function in functions:
                if found is None and unread.get(kind, NOT_SUPPORTED) == NOT_SUPPORTED:
                    found = self._driver.attempt(unread, kind, uuid, function, handle)
            if found is None:
                if kind == MPS and unread[kind] == NOT_SUPPORTED:
                    continue  # then nobody can be there
                return [], unread[kind]
            listed += [
                {
                    "pid": process.pid,
                    "name": self._name(process.pid),
                    "kind": kind,
                    "used_memory_bytes": process.usedGpuMemory,
                }
                for process in found
            ]
        return listed, ""

    def _name(self, pid: int) -> str:
        try:
            with open(f"{self._proc}/{pid}/comm", "rb") as file:
                return file.read(64).decode(errors="replace").rstrip("\n")
        except OSError:
            return ""  # it has ended, or is hidden: a process without a name counts all the same
