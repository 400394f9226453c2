"""Which GPUs there are: identity, and the handles by which the driver knows them."""

from __future__ import annotations

from typing import Any

from agents.node.nvml import VIRTUALIZATION_MODES, CallFailed, Driver, GpuLost, Handle

GPUS_MAX = 16  # as many as a report may name
_STATIC_FIELDS = {
    "serial": "nvmlDeviceGetSerial",
    "board_part_number": "nvmlDeviceGetBoardPartNumber",
    "vbios_version": "nvmlDeviceGetVbiosVersion",
}


class Devices:
    """The GPUs that the driver listed when this process took it up, in PCI order.

    `known` are identities from an earlier process: a GPU that no longer says who it is stays in the list
    as lost, as long as the driver still counts it.
    """

    def __init__(self, *, driver: Driver) -> None:
        self.known: list[dict[str, Any]] = []
        self._driver = driver
        self._handles: dict[str, Any] | None = None
        self._static: dict[str, dict[str, Any]] = {}

    def identify(self) -> list[dict[str, Any]]:
        """Return the identities; what may change while the machine runs is read again.

        :raises DriverGone: when there is no driver.
        """
        for uuid, handle in self.handles().items():
            if handle is not None:
                try:
                    self._static[uuid].update(self._changing(uuid, handle))
                except GpuLost:
                    continue  # what was known of it stands; its next sample says that it is lost
        return [self._static[uuid] for uuid in self.handles()]

    def handles(self) -> dict[str, Any]:
        """Return the handle of each GPU by UUID; `None` for one that was lost from the start.

        :raises DriverGone: when there is no driver.
        """
        if self._handles is not None:
            return self._handles
        count = min(self._driver.open(), GPUS_MAX)
        found: dict[int, tuple[str, Any]] = {}
        for index in range(count):
            try:
                handle = self._driver.call("nvmlDeviceGetHandleByIndex", index)
                static = self._read_static(index, handle)
            except (CallFailed, GpuLost):
                continue  # it must not hide its neighbours
            self._static[static["uuid"]] = static
            found[index] = (static["uuid"], handle)
        self._add_lost(found, count)
        self._handles = dict(found[index] for index in sorted(found))
        return self._handles

    def _read_static(self, index: int, handle: Handle) -> dict[str, Any]:
        uuid = self._driver.call("nvmlDeviceGetUUID", handle)
        name = self._driver.call("nvmlDeviceGetName", handle)
        failed: dict[str, str] = {}
        memory = self._driver.memory(failed, "memory", uuid, handle)
        if memory is None:
            raise CallFailed(0)
        identity: dict[str, Any] = {
            "uuid": uuid,
            "index": index,
            "product_name": name,
            "memory_total_bytes": memory.total,
        }
        for field, function in _STATIC_FIELDS.items():
            identity[field] = self._driver.attempt(failed, field, uuid, function, handle)
        pci = self._driver.attempt(failed, "pci", uuid, "nvmlDeviceGetPciInfo", handle)
        identity["pci_bus_id"] = None if pci is None else pci.busId
        return identity

    def _changing(self, uuid: str, handle: Handle) -> dict[str, Any]:
        failed: dict[str, str] = {}
        mig = self._driver.attempt(failed, "mig", uuid, "nvmlDeviceGetMigMode", handle)
        mode = self._driver.attempt(failed, "mode", uuid, "nvmlDeviceGetVirtualizationMode", handle)
        fabric = self._driver.fabric(uuid, handle)
        return {
            "mig_enabled": None if mig is None else mig[0] == 1,
            "mig_devices": [] if mig is None or mig[0] != 1 else self._parts(handle),
            "virtualization_mode": VIRTUALIZATION_MODES.get(mode),
            "fabric_clique": None if fabric is None else fabric[2],
        }

    def _parts(self, handle: Handle) -> list[dict[str, Any]]:
        """Return the parts that MIG has cut; their handles die with them and are asked for each time."""
        try:
            count = self._driver.call("nvmlDeviceGetMaxMigDeviceCount", handle)
        except CallFailed:
            return []
        parts = []
        for index in range(count):
            try:
                part = self._driver.call("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
                parts.append(
                    {
                        "uuid": self._driver.call("nvmlDeviceGetUUID", part),
                        "gpu_instance_id": self._driver.call("nvmlDeviceGetGpuInstanceId", part),
                        "compute_instance_id": self._driver.call(
                            "nvmlDeviceGetComputeInstanceId", part
                        ),
                        "memory_total_bytes": self._driver.call(
                            "nvmlDeviceGetAttributes_v2", part
                        ).memorySizeMB
                        * 1024**2,
                    }
                )
            except CallFailed:
                continue  # places between the parts are empty
        return parts

    def _add_lost(self, found: dict[int, tuple[str, Any]], count: int) -> None:
        """Put a known GPU in the place of one that did not say who it is: in its own, or in any left."""
        here = {uuid for uuid, _ in found.values()}
        missing = [known for known in self.known if known["uuid"] not in here]
        silent = [index for index in range(count) if index not in found]
        missing.sort(key=lambda known: known["index"] not in silent)
        for known in missing:
            if not silent:
                return  # it was taken out of the machine
            index = known["index"] if known["index"] in silent else silent[0]
            silent.remove(index)
            self._static[known["uuid"]] = {**known, "index": index}
            found[index] = (known["uuid"], None)
