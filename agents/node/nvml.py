"""Read NVIDIA GPUs through NVML: the only file that imports `pynvml` (package nvidia-ml-py).

Units and windows are those of NVIDIA's nvml.h: utilisation is the share of the last sample period
(1/6 to 1 s) with at least one kernel running, power is in milliwatts, energy in millijoules since the driver
was loaded. Memory is read by the v2 call, because `used` of the first version includes what the driver keeps
for itself. Each value is read by itself: what fails is `None` with a reason and takes nothing else with it.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from agents.node.reader import (
    LOST,
    MEASURED_FIELDS,
    NOT_SUPPORTED,
    ReaderUnavailable,
    Sample,
    error_reason,
    lost_sample,
)
from agents.protocol import GPUS_PER_NODE_MAX, GpuIdentity

logger = logging.getLogger(__name__)

ValueT = TypeVar("ValueT")

_NOT_SUPPORTED_CODES = {pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}
_DRIVER_GONE_CODES = {pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}


class NvmlReader:
    """The GPUs that the NVIDIA driver of this machine shows."""

    simulated = False

    def __init__(self) -> None:
        self._handles: list[tuple[GpuIdentity, Any]] | None = None
        self.call_milliseconds: dict[
            str, float
        ] = {}  # how long each function took when last called

    def identify(self) -> list[GpuIdentity]:
        """Return the GPUs in PCI order; one that does not tell its UUID is left out.

        :raises ReaderUnavailable: when the NVIDIA driver is not there.
        """
        return [identity for identity, _ in self._open()]

    def read(self, *, at: dt.datetime) -> list[Sample]:
        """Return one sample of each GPU.

        :raises ReaderUnavailable: when the NVIDIA driver is not there.
        """
        return [self._read_gpu(identity.uuid, handle, at=at) for identity, handle in self._open()]

    def close(self) -> None:
        """Let go of the driver; the next call opens it again."""
        if self._handles is None:
            return
        self._handles = None
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            raise ReaderUnavailable(f"NVML does not shut down: {error}") from None

    def _open(self) -> list[tuple[GpuIdentity, Any]]:
        if self._handles is not None:
            return self._handles
        try:
            self._timed(pynvml.nvmlInit)
        except pynvml.NVMLError as error:
            raise ReaderUnavailable(f"no NVIDIA driver answers here: {error}") from None
        try:
            count = min(self._timed(pynvml.nvmlDeviceGetCount), GPUS_PER_NODE_MAX)
        except pynvml.NVMLError as error:
            pynvml.nvmlShutdown()
            raise ReaderUnavailable(f"the NVIDIA driver does not list its GPUs: {error}") from None
        found = (self._identify_gpu(index) for index in range(count))
        self._handles = [pair for pair in found if pair is not None]
        return self._handles

    def _identify_gpu(self, index: int) -> tuple[GpuIdentity, Any] | None:
        try:
            handle = self._timed(pynvml.nvmlDeviceGetHandleByIndex, index)
            uuid = self._timed(pynvml.nvmlDeviceGetUUID, handle)
            name = self._timed(pynvml.nvmlDeviceGetName, handle)
            memory = self._timed(
                pynvml.nvmlDeviceGetMemoryInfo, handle, version=pynvml.nvmlMemory_v2
            )
        except pynvml.NVMLError as error:
            # A GPU that fell off the bus must not hide its neighbours.
            logger.warning("GPU %d does not say who it is: %s", index, error)
            return None
        unread: dict[str, str] = {}
        pci = self._value(unread, "pci", pynvml.nvmlDeviceGetPciInfo, handle)
        mig = self._value(unread, "mig", pynvml.nvmlDeviceGetMigMode, handle)
        identity = GpuIdentity(
            uuid=uuid,
            index=index,
            product_name=name,
            memory_total_bytes=memory.total,
            serial=self._value(unread, "serial", pynvml.nvmlDeviceGetSerial, handle),
            pci_bus_id=None if pci is None else pci.busId,
            mig_enabled=None if mig is None else mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
        )
        return identity, handle

    def _read_gpu(self, uuid: str, handle: Any, *, at: dt.datetime) -> Sample:  # noqa: ANN401 - opaque
        unread: dict[str, str] = {}
        utilization = self._value(
            unread, "utilization_percent", pynvml.nvmlDeviceGetUtilizationRates, handle
        )
        memory = self._value(
            unread,
            "memory_used_bytes",
            pynvml.nvmlDeviceGetMemoryInfo,
            handle,
            version=pynvml.nvmlMemory_v2,
        )
        sample = Sample(
            gpu_uuid=uuid,
            measured_at=at,
            utilization_percent=None if utilization is None else utilization.gpu,
            memory_used_bytes=None if memory is None else memory.used,
            power_draw_milliwatts=self._value(
                unread, "power_draw_milliwatts", pynvml.nvmlDeviceGetPowerUsage, handle
            ),
            energy_millijoules=self._value(
                unread, "energy_millijoules", pynvml.nvmlDeviceGetTotalEnergyConsumption, handle
            ),
            temperature_celsius=self._value(
                unread,
                "temperature_celsius",
                pynvml.nvmlDeviceGetTemperature,
                handle,
                pynvml.NVML_TEMPERATURE_GPU,
            ),
            process_count=self._value(unread, "process_count", self._count_processes, handle),
            unread=unread,
        )
        if len(unread) == len(MEASURED_FIELDS) and set(unread.values()) & {LOST}:
            return lost_sample(gpu_uuid=uuid, measured_at=at)
        return sample

    def _count_processes(self, handle: Any) -> int:  # noqa: ANN401 - an opaque NVML handle
        """Count processes with a compute or a graphics context; NVML gives PIDs of the host."""
        compute = self._timed(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
        graphics = self._timed(pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle)
        return len({process.pid for process in [*compute, *graphics]})

    def _value(
        self,
        unread: dict[str, str],
        field: str,
        function: Callable[..., ValueT],
        *arguments: Any,  # noqa: ANN401 - handles are opaque
        **options: Any,  # noqa: ANN401
    ) -> ValueT | None:
        """Call `function`; on an NVML error write the reason under `field` and return `None`."""
        try:
            return self._timed(function, *arguments, **options)
        except pynvml.NVMLError as error:
            code = error.value
        if code in _NOT_SUPPORTED_CODES:
            unread[field] = NOT_SUPPORTED
        elif code == pynvml.NVML_ERROR_GPU_IS_LOST:
            unread[field] = LOST
        elif code in _DRIVER_GONE_CODES:
            self._handles = None
            raise ReaderUnavailable(f"the NVIDIA driver went away: {error_reason(code=code)}")
        else:
            unread[field] = error_reason(code=code)
        return None

    def _timed(self, function: Callable[..., ValueT], *arguments: Any, **options: Any) -> ValueT:  # noqa: ANN401
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            name = function.__name__.lstrip("_")
            self.call_milliseconds[name] = round((time.perf_counter() - started) * 1000, 4)
