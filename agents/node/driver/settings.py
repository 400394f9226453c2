"""What root may set on a GPU: read it, and put it back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from agents.node.driver.devices import Devices
from agents.node.nvml import CallFailed, Driver, GpuLost, Handle, lost_everywhere
from agents.node.unread import LOST, NOT_SUPPORTED

_READ = {
    "power_limit_milliwatts": "nvmlDeviceGetPowerManagementLimit",
    "power_limit_default_milliwatts": "nvmlDeviceGetPowerManagementDefaultLimit",
    "compute_mode": "nvmlDeviceGetComputeMode",
    "persistence_enabled": "nvmlDeviceGetPersistenceMode",
    "mig_enabled": "nvmlDeviceGetMigMode",
}
_SET = {
    "mig_enabled": "nvmlDeviceSetMigMode",
    "persistence_enabled": "nvmlDeviceSetPersistenceMode",
    "power_limit_milliwatts": "nvmlDeviceSetPowerManagementLimit",
    "compute_mode": "nvmlDeviceSetComputeMode",
}
# They are done whatever was found: nobody can read whether clocks are locked.
_ALWAYS = {
    "graphics clocks": "nvmlDeviceResetGpuLockedClocks",
    "memory clocks": "nvmlDeviceResetMemoryLockedClocks",
    "accounting": "nvmlDeviceClearAccountingPids",
}


def read_settings(
    *, driver: Driver, devices: Devices, gpu_uuids: Collection[str]
) -> list[dict[str, Any]]:
    """Return the settings of each of these GPUs.

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
            rows.append({"gpu_uuid": uuid, "unread": lost_everywhere(_READ)})
    return rows


def restore_settings(
    *, driver: Driver, devices: Devices, settings: Sequence[dict[str, Any]]
) -> dict[str, str]:
    """Set what differs, unlock the clocks, clear the accounting; return by UUID what could not be set.

    :raises DriverGone: when there is no driver.
    """
    failed: dict[str, str] = {}
    handles = devices.handles()
    for wanted in settings:
        uuid = wanted["gpu_uuid"]
        if uuid not in handles:
            failed[uuid] = "no such GPU here"
            continue
        try:
            if handles[uuid] is None:
                raise GpuLost
            problems = _restore_gpu(driver, uuid, handles[uuid], wanted)
        except GpuLost:
            problems = [LOST]
        if problems:
            failed[uuid] = "; ".join(problems)
    return failed


def _read_gpu(driver: Driver, uuid: str, handle: Handle) -> dict[str, Any]:
    unread: dict[str, str] = {}
    row = {
        field: driver.attempt(unread, field, uuid, function, handle)
        for field, function in _READ.items()
    }
    if row["persistence_enabled"] is not None:
        row["persistence_enabled"] = row["persistence_enabled"] == 1
    if row["mig_enabled"] is not None:
        row["mig_enabled"] = row["mig_enabled"][0] == 1
    return {**row, "unread": unread}


def _restore_gpu(
    driver: Driver,
    uuid: str,
    handle: Handle,
    wanted: dict[str, Any],
) -> list[str]:
    found = _read_gpu(driver, uuid, handle)
    problems = []
    for field, function in _SET.items():
        value = wanted.get(field)
        if value is None or value == found[field]:
            continue
        try:
            answer = driver.call(function, handle, int(value))
        except CallFailed as failure:
            problems.append(f"{field}: {failure.reason}")
            continue
        if field == "mig_enabled" and answer:
            problems.append(f"{field}: takes effect with the next reset")
    for name, function in _ALWAYS.items():
        try:
            driver.call(function, handle)
        except CallFailed as failure:
            if failure.reason != NOT_SUPPORTED:
                problems.append(f"{name}: {failure.reason}")
    return problems
