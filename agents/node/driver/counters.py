"""What speaks for or against a GPU's health, and the machine around it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Any

from agents.node.driver.devices import Devices
from agents.node.nvml import NVLINKS_MAX, CallFailed, Driver, GpuLost, Handle, lost_everywhere
from agents.node.unread import NOT_SUPPORTED

# Numbers of NVIDIA's nvml.h (NVML_FI_DEV_…), all read by one call.
ECC_MODE, ECC_MODE_PENDING, ECC_CORRECTED, ECC_UNCORRECTED = 1, 2, 3, 4
NVLINK_CRC, NVLINK_REPLAY, NVLINK_RECOVERY, NVLINK_COUNT = 38, 52, 59, 91
PCIE_REPLAY, RECOVERY_ACTION = 94, 230
_FIELDS = {
    ECC_MODE: "ecc_enabled",
    ECC_MODE_PENDING: "ecc_pending",
    ECC_CORRECTED: "ecc_corrected",
    ECC_UNCORRECTED: "ecc_uncorrected",
    NVLINK_CRC: "nvlink_error_count",
    NVLINK_REPLAY: "nvlink_error_count",
    NVLINK_RECOVERY: "nvlink_error_count",
    NVLINK_COUNT: "nvlinks_active",
    PCIE_REPLAY: "pcie_replay_count",
    RECOVERY_ACTION: "recovery_action",
}
_NUMBERS = (ECC_CORRECTED, ECC_UNCORRECTED, PCIE_REPLAY, RECOVERY_ACTION)
_SWITCHES = (ECC_MODE, ECC_MODE_PENDING)
_NVLINK_ERRORS = (NVLINK_CRC, NVLINK_REPLAY, NVLINK_RECOVERY)
_CORRECTED, _UNCORRECTED, _AGGREGATE, _DRAM, _SRAM = 0, 1, 1, 2, 7
_CALLS: dict[str, tuple[str, tuple[int, ...]]] = {
    "sram_ecc_uncorrected_aggregate": (
        "nvmlDeviceGetMemoryErrorCounter", (_UNCORRECTED, _AGGREGATE, _SRAM),
    ),
    "dram_ecc_corrected_aggregate": (
        "nvmlDeviceGetMemoryErrorCounter", (_CORRECTED, _AGGREGATE, _DRAM),
    ),
    "pcie_width": ("nvmlDeviceGetCurrPcieLinkWidth", ()),
    "pcie_width_max": ("nvmlDeviceGetMaxPcieLinkWidth", ()),
    "pcie_generation": ("nvmlDeviceGetCurrPcieLinkGeneration", ()),
    "pcie_generation_max": ("nvmlDeviceGetMaxPcieLinkGeneration", ()),
    "clocks_event_reasons": ("nvmlDeviceGetCurrentClocksEventReasons", ()),
}  # fmt: skip
_REMAPPED = (
    "remapped_rows_corrected", "remapped_rows_uncorrected", "row_remap_pending", "row_remap_failed",
)  # fmt: skip
_NVLINKS = ("nvlinks_active", "nvlinks_inactive")
_FABRIC = ("fabric_state", "fabric_status")
COUNTER_FIELDS = tuple(dict.fromkeys((*_FIELDS.values(), *_CALLS, *_REMAPPED, *_NVLINKS, *_FABRIC)))


def read_counters(
    *, driver: Driver, devices: Devices, gpu_uuids: Collection[str]
) -> list[dict[str, Any]]:
    """Return the counters of each of these GPUs.

    :raises DriverGone: when there is no driver.
    """
    rows = []
    for uuid, handle in devices.handles().items():
        if uuid not in gpu_uuids:
            continue
        try:
            if handle is None:
                raise GpuLost
            rows.append({"gpu_uuid": uuid, **_read_gpu(driver, uuid, handle)})
        except GpuLost:
            rows.append({"gpu_uuid": uuid, "unread": lost_everywhere(COUNTER_FIELDS)})
    return rows


def _read_gpu(driver: Driver, uuid: str, handle: Handle) -> dict[str, Any]:
    unread: dict[str, str] = {}
    values = driver.field_values(unread, uuid, handle, _FIELDS)
    row: dict[str, Any] = {
        _FIELDS[number]: values[number] for number in _NUMBERS if number in values
    }
    row.update({_FIELDS[number]: values[number] == 1 for number in _SWITCHES if number in values})
    errors = [values[number] for number in _NVLINK_ERRORS if number in values]
    if errors:
        row["nvlink_error_count"] = sum(errors)
        unread.pop("nvlink_error_count", None)
    for field, (function, arguments) in _CALLS.items():
        row[field] = driver.attempt(unread, field, uuid, function, handle, *arguments)
    remapped = driver.attempt(unread, _REMAPPED[0], uuid, "nvmlDeviceGetRemappedRows", handle)
    if remapped is None:
        unread.update(dict.fromkeys(_REMAPPED, unread[_REMAPPED[0]]))
    else:
        corrected, uncorrected, pending, failed = remapped
        row.update(zip(_REMAPPED, (corrected, uncorrected, pending == 1, failed == 1), strict=True))
    _read_nvlinks(driver, unread, row, (uuid, handle), values.get(NVLINK_COUNT))
    fabric = driver.fabric(uuid, handle)
    if fabric is None:
        unread.update(dict.fromkeys(_FABRIC, NOT_SUPPORTED))
    else:
        row["fabric_state"], row["fabric_status"] = fabric[:2]
    return {**row, "unread": unread}


def _read_nvlinks(
    driver: Driver,
    unread: dict[str, str],
    row: dict[str, Any],
    gpu: tuple[str, Any],
    count: int | None,
) -> None:
    """Count the links that are up and down; a GPU without any has neither."""
    uuid, handle = gpu
    unread.pop("nvlinks_active", None)
    if count == 0 or driver.is_missing(uuid, "nvmlDeviceGetNvLinkState", "link"):
        unread.update(dict.fromkeys(_NVLINKS, NOT_SUPPORTED))
        return
    states: list[int] = []
    reason = NOT_SUPPORTED
    for link in range(NVLINKS_MAX if count is None else min(count, NVLINKS_MAX)):
        if link == 0:
            first: dict[str, str] = {}
            state = driver.attempt(first, "link", uuid, "nvmlDeviceGetNvLinkState", handle, link)
            if state is None:
                reason = first["link"]
                break
            states.append(state)
            continue
        try:
            states.append(driver.call("nvmlDeviceGetNvLinkState", handle, link))
        except CallFailed:
            break  # beyond the last link
    if states:
        row["nvlinks_active"] = sum(1 for state in states if state == 1)
        row["nvlinks_inactive"] = len(states) - row["nvlinks_active"]
    else:
        unread.update(dict.fromkeys(_NVLINKS, reason))


def read_host(*, driver: Driver, proc: str = "/proc") -> dict[str, Any]:
    """Return the facts of the machine around the GPUs.

    :raises DriverGone: when there is no driver.
    """
    driver.open()
    failed: dict[str, str] = {}
    cuda = driver.attempt(failed, "cuda", "", "nvmlSystemGetCudaDriverVersion")
    state = driver.attempt(failed, "cc", "", "nvmlSystemGetConfComputeState")
    confidential = None
    if state is not None:
        confidential = "off" if not state.ccFeature else "devtools" if state.devToolsMode else "on"
    return {
        "driver_version": driver.attempt(failed, "driver", "", "nvmlSystemGetDriverVersion"),
        "nvml_version": driver.attempt(failed, "nvml", "", "nvmlSystemGetNVMLVersion"),
        "cuda_driver_version": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        "kernel_version": os.uname().release,
        "confidential_computing": confidential,
        "scrubs_memory_on_free": _scrubs(f"{proc}/driver/nvidia/params"),
    }


def _scrubs(path: str) -> bool | None:
    """Return whether the driver empties memory that is freed, as it does unless it was told not to.

    The registry key is of NVIDIA's open kernel modules (RMDisableScrubOnFree).
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(65536)
    except OSError:
        return None
    words = re.search(r'^RegistryDwords:\s*"?(.*?)"?$', text, flags=re.MULTILINE)
    switch = re.search(
        r"RMDisableScrubOnFree\s*=\s*(0x[0-9a-f]+|\d+)",
        words[1] if words else "",
        flags=re.IGNORECASE,
    )
    return switch is None or int(switch[1], 0) == 0
