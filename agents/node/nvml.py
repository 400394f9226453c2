"""The driver as Python calls: the only file that imports `pynvml` (package nvidia-ml-py).

Units are those of NVIDIA's nvml.h: power is in milliwatts, energy in millijoules since the driver was loaded,
utilisation the share of a sample period with at least one kernel running. Every call is timed. What a GPU or
a driver does not have is asked for again after an hour, function by function: product pages and version
numbers do not tell. This file and `agents.node.driver` run in a child process that is kept small.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import pynvml

from agents.node.unread import LOST, NOT_SUPPORTED, error_reason

MISSING_SECONDS = (
    3600.0  # a driver may be renewed, a mode may change; an hour is soon enough to see it
)
NVLINKS_MAX = 36  # of nvml.h; a GPU says how many it has
EVENT_WAIT_MILLISECONDS = 5000
FABRIC_COMPLETED = 3  # only then do status, cluster and clique mean anything
Handle: TypeAlias = Any  # and other values of NVML: opaque, only good in this process

COMPUTE, GRAPHICS, MPS = "compute", "graphics", "mps"
# Newest first; drivers before 510 have the second alone. The names without a version raise another exception.
PROCESS_LISTS = {
    COMPUTE: ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"),
    GRAPHICS: (
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
        "nvmlDeviceGetGraphicsRunningProcesses_v2",
    ),
    MPS: (
        "nvmlDeviceGetMPSComputeRunningProcesses_v3",
        "nvmlDeviceGetMPSComputeRunningProcesses_v2",
    ),
}
VIRTUALIZATION_MODES = {0: "none", 1: "passthrough", 2: "vgpu", 3: "host_vgpu", 4: "host_vsga"}

_NOT_SUPPORTED_CODES = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
_DRIVER_GONE_CODES = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
)
_UNSIGNED_BYTES = {1: 4, 2: ctypes.sizeof(ctypes.c_ulong), 3: 8, 6: 2}  # by nvmlValueType_t
_VALUE_FIELDS = {
    0: "dVal",
    1: "uiVal",
    2: "ulVal",
    3: "ullVal",
    4: "sllVal",
    5: "siVal",
    6: "usVal",
}


class DriverGone(Exception):
    """No call can work. `for_good` says that this process cannot get the driver back, a new one may."""

    def __init__(self, message: str, *, for_good: bool) -> None:
        super().__init__(message)
        self.for_good = for_good


class GpuLost(Exception):
    """This GPU answers nothing any more; its neighbours do."""


class CallFailed(Exception):
    """One call on one GPU failed with an NVML code."""

    def __init__(self, code: int) -> None:
        super().__init__(error_reason(code=code))
        self.code = code

    @property
    def reason(self) -> str:
        """Return the code as a reason for a value that is missing."""
        return NOT_SUPPORTED if self.code in _NOT_SUPPORTED_CODES else str(self)


class Driver:
    """One process's hold on the driver, from the first `open` on."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.call_milliseconds: dict[
            str, float
        ] = {}  # how long each function took when last called
        self._monotonic = monotonic
        self.is_open = False
        self._missing_until: dict[tuple[str, str], float] = {}

    # --- the library ----------------------------------------------------------------------------------

    def open(self) -> int:
        """Take up the driver where that is not done yet; return how many GPUs it lists.

        The list stays as it is while a process holds the driver: a GPU that is pulled is still counted.

        :raises DriverGone: when there is no driver.
        """
        if not self.is_open:
            try:
                self._timed("nvmlInit", pynvml.nvmlInit)
            except pynvml.NVMLError as error:
                mismatch = error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
                advice = "; the driver was renewed: restart the machine" if mismatch else ""
                raise DriverGone(
                    f"no NVIDIA driver answers here: {error}{advice}", for_good=mismatch
                ) from None
            self.is_open = True
        try:
            return int(self.call("nvmlDeviceGetCount"))
        except (CallFailed, GpuLost) as error:
            raise DriverGone(
                f"the NVIDIA driver does not list its GPUs: {error}", for_good=True
            ) from None

    def call(self, function: str, *arguments: Handle, **options: Handle) -> Handle:
        """Call a function of pynvml by its name.

        :raises CallFailed: with the code that it answered.
        :raises GpuLost: when the GPU is lost.
        :raises DriverGone: when the whole driver is.
        """
        try:
            return self._timed(function, getattr(pynvml, function), *arguments, **options)
        except pynvml.NVMLError as error:
            code = int(error.value)
        if code == pynvml.NVML_ERROR_GPU_IS_LOST:
            raise GpuLost("the driver says that this GPU is lost")
        if code in _DRIVER_GONE_CODES:
            raise DriverGone(
                f"the NVIDIA driver went away: {error_reason(code=code)}", for_good=True
            )
        raise CallFailed(code)

    def attempt(
        self,
        unread: dict[str, str],
        field: str,
        uuid: str,
        function: str,
        *arguments: Handle,
        **options: Handle,
    ) -> Handle:
        """Call a function; where it fails, write the reason under `field` and return `None`.

        :raises GpuLost: when the GPU is lost.
        :raises DriverGone: when the whole driver is.
        """
        if self.is_missing(uuid, function, field):
            unread[field] = NOT_SUPPORTED
            return None
        try:
            return self.call(function, *arguments, **options)
        except CallFailed as failure:
            unread[field] = failure.reason
            if failure.reason == NOT_SUPPORTED:
                self._missing_until[(uuid, f"{function}/{field}")] = (
                    self._monotonic() + MISSING_SECONDS
                )
            return None

    def is_missing(self, uuid: str, function: str, field: str) -> bool:
        """Return whether this GPU said within the last hour that it does not have it."""
        until = self._missing_until.get((uuid, f"{function}/{field}"))
        return until is not None and self._monotonic() < until

    def _timed(
        self, name: str, function: Callable[..., Any], *arguments: Handle, **options: Handle
    ) -> Handle:
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            self.call_milliseconds[name] = round((time.perf_counter() - started) * 1000, 4)

    # --- calls that take more than a handle ---------------------------------------------------------------

    def memory(self, unread: dict[str, str], field: str, uuid: str, handle: Handle) -> Handle:
        """Return the memory of a GPU by the v2 call: `used` of the first counts what the driver reserves."""
        return self.attempt(
            unread, field, uuid, "nvmlDeviceGetMemoryInfo", handle, version=pynvml.nvmlMemory_v2
        )

    def utilization_samples(
        self,
        uuid: str,
        handle: Handle,
        *,
        since_microseconds: int,
    ) -> list[tuple[int, int]]:
        """Return the driver's buffer as (microseconds of its clock, percent); empty where it has none.

        Idle cards of some products answer NOT_FOUND, or nothing.
        """
        found = self.attempt(
            {}, "", uuid, "nvmlDeviceGetSamples", handle, pynvml.NVML_GPU_UTILIZATION_SAMPLES,
            since_microseconds,
        )  # fmt: skip
        if found is None or not found[1] or found[0] not in _UNSIGNED_BYTES:
            return []
        # All rows lie in one array of (u64 time, 8 bytes of value); row by row costs ten times as much.
        words = memoryview(bytes(found[1][0]._b_base_)).cast("Q").tolist()
        mask = (1 << 8 * _UNSIGNED_BYTES[found[0]]) - 1
        pairs = zip(words[0::2], (word & mask for word in words[1::2]), strict=True)
        return [
            (at, percent)
            for at, percent in itertools.islice(pairs, len(found[1]))
            if at > since_microseconds and percent <= 100
        ]

    def field_values(
        self,
        unread: dict[str, str],
        uuid: str,
        handle: Handle,
        fields: dict[int, str],
    ) -> dict[int, int]:
        """Return the values of `fields` (number to name) in one call; each may fail by itself."""
        mine: dict[str, str] = {}
        rows = self.attempt(mine, "all", uuid, "nvmlDeviceGetFieldValues", handle, list(fields))
        if rows is None:
            unread.update(dict.fromkeys(fields.values(), mine["all"]))
            return {}
        values: dict[int, int] = {}
        for row in rows:
            code, kind = row.nvmlReturn, row.valueType
            if code == pynvml.NVML_ERROR_GPU_IS_LOST:
                raise GpuLost("the driver says that this GPU is lost")
            if code != pynvml.NVML_SUCCESS:
                unread[fields[row.fieldId]] = CallFailed(code).reason
            elif kind in _VALUE_FIELDS:
                values[row.fieldId] = int(getattr(row.value, _VALUE_FIELDS[kind]))
        return values

    def fabric(self, uuid: str, handle: Handle) -> tuple[int, int, str | None] | None:
        """Return state, status and `clusterUuid.cliqueId` of the GPU's place in its fabric."""
        for structure in (pynvml.c_nvmlGpuFabricInfo_v3_t, pynvml.c_nvmlGpuFabricInfo_v2_t):
            info = structure()
            function, version = "nvmlDeviceGetGpuFabricInfoV", structure.__name__
            if self.is_missing(uuid, function, version):
                continue
            try:
                self.call(function, handle, ctypes.byref(info))
            except CallFailed:
                # Also an older driver that does not know this version of the structure.
                until = self._monotonic() + MISSING_SECONDS
                self._missing_until[(uuid, f"{function}/{version}")] = until
                continue
            state = info.state & 0xFF  # one byte in nvml.h, four in pynvml
            cluster = bytes(info.clusterUuid).hex()
            clique = None
            if (
                state == FABRIC_COMPLETED
                and info.status == pynvml.NVML_SUCCESS
                and int(cluster, 16)
            ):
                clique = f"{cluster}.{info.cliqueId}"
            return state, int(info.status), clique
        return None

    # --- the queue of events ------------------------------------------------------------------------------

    def event_set(self) -> Handle:
        """Return a new set of events."""
        return self.call("nvmlEventSetCreate")

    def watch_xids(self, events: Handle, handle: Handle) -> bool:
        """Let the set hear of the GPU's errors from now on; false where the GPU cannot tell."""
        kind = pynvml.nvmlEventTypeXidCriticalError
        if not self.call("nvmlDeviceGetSupportedEventTypes", handle) & kind:
            return False
        self.call("nvmlDeviceRegisterEvents", handle, kind, events)
        return True

    def next_xid(self, events: Handle) -> tuple[int | None, int] | None:
        """Wait for the next error; return the address of the GPU's handle and the Xid, or `None`."""
        try:
            event = self.call("nvmlEventSetWait", events, EVENT_WAIT_MILLISECONDS)
        except CallFailed as failure:
            if failure.code == pynvml.NVML_ERROR_TIMEOUT:
                return None
            raise
        if not event.eventType & pynvml.nvmlEventTypeXidCriticalError:
            return None
        return address(event.device), int(event.eventData)


def address(handle: Handle) -> int | None:
    """Return what identifies a handle: handles compare unequal, and a lost GPU's does not tell its UUID."""
    return ctypes.cast(handle, ctypes.c_void_p).value


def lost_everywhere(fields: Iterable[str]) -> dict[str, str]:
    """Return what a lost GPU has to say of these values."""
    return dict.fromkeys(fields, LOST)
