"""What a machine says of itself and of its devices: identity, counters, settings, events."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from enum import StrEnum

from agents.protocol.parsing import since


class Health(StrEnum):
    """Only a healthy GPU is sold; a quarantined or lost one is an outage for whoever has it."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    QUARANTINED = "quarantined"
    LOST = "lost"


class Cause(StrEnum):
    """Who a fault is put down to: the tenant's program, the machine, or nobody knows."""

    TENANT = "tenant"
    HARDWARE = "hardware"
    UNKNOWN = "unknown"


class EventKind(StrEnum):
    """`XID`: the driver reported an error. `HEALTH`: the agent's judgement of a GPU changed."""

    XID = "xid"
    HEALTH = "health"


class EventSource(StrEnum):
    """Where an event was seen: NVML's event queue, the kernel's log, or the agent's own reads."""

    NVML = "nvml"
    KERNEL_LOG = "kernel_log"
    AGENT = "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class MigDevice:
    """One part of a GPU that MIG has cut; a part's UUID dies with the part."""

    uuid: str
    gpu_instance_id: int
    compute_instance_id: int
    memory_total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuIdentity:
    """One device as NVML names it. `index` is its place in PCI order and may change; `uuid` does not.

    `virtualization_mode` is `none`, `passthrough`, `vgpu` (a guest's share), `host_vgpu` or `host_vsga`
    (a host that cuts the GPU for guests). `fabric_clique` is `clusterUuid.cliqueId` where the fabric
    manager has finished its work.
    """

    uuid: str
    index: int
    product_name: str
    memory_total_bytes: int
    serial: str | None = None
    pci_bus_id: str | None = None
    mig_enabled: bool | None = None
    board_part_number: str | None = field(default=None, metadata=since(2))
    vbios_version: str | None = field(default=None, metadata=since(2))
    virtualization_mode: str | None = field(default=None, metadata=since(2))
    mig_devices: list[MigDevice] = field(default_factory=list, metadata=since(2))
    fabric_clique: str | None = field(default=None, metadata=since(2))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The machine around the GPUs. `None` where nobody could tell.

    `scrubs_memory_on_free` is false where the owner has switched the driver's scrubbing off.
    `confidential_computing` is `off`, `on` or `devtools`. `provisioner` is how GPUs are handed over:
    `container`, `hook`, `simulated` or `none`.
    """

    driver_version: str | None = None
    nvml_version: str | None = None
    cuda_driver_version: str | None = None
    kernel_version: str | None = None
    confidential_computing: str | None = None
    scrubs_memory_on_free: bool | None = None
    provisioner: str = "none"
    provisioner_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCounters:
    """What speaks for or against a GPU's health, read about once a minute.

    A value that could not be read is `None`, and `unread` says why per field (`not_supported`, `lost`,
    `error(code)`). ECC counts are since the driver was loaded (volatile) unless the name says otherwise;
    `ecc_pending` is the mode after the next reset, so one that differs from `ecc_enabled` is still to come.
    """

    gpu_uuid: str
    ecc_enabled: bool | None = None
    ecc_pending: bool | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    sram_ecc_uncorrected_aggregate: int | None = None
    dram_ecc_corrected_aggregate: int | None = None
    remapped_rows_corrected: int | None = None
    remapped_rows_uncorrected: int | None = None
    row_remap_pending: bool | None = None
    row_remap_failed: bool | None = None
    nvlinks_active: int | None = None
    nvlinks_inactive: int | None = None
    nvlink_error_count: int | None = None
    pcie_replay_count: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    recovery_action: int | None = None
    clocks_event_reasons: int | None = None
    fabric_state: int | None = None
    fabric_status: int | None = None
    unread: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """What root may set on a GPU and a lease must find and leave as the owner wants it."""

    gpu_uuid: str
    power_limit_milliwatts: int | None = None
    power_limit_default_milliwatts: int | None = None
    compute_mode: int | None = None
    persistence_enabled: bool | None = None
    mig_enabled: bool | None = None
    unread: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One check around a lease. `passed` is `None` where this machine cannot make it."""

    name: str
    passed: bool | None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEvent:
    """Something that happened to a GPU, identified by (node, epoch, sequence) for ever.

    An `XID` names the number, and the process where the kernel's log does. A `HEALTH` event says what the
    GPU is from `at` on, and why. `cause` says whom the node puts it down to, `lease_id` who had the GPU.
    """

    epoch: int
    sequence: int
    gpu_uuid: str
    at: dt.datetime
    kind: EventKind
    source: EventSource
    cause: Cause
    xid: int | None = None
    pid: int | None = None
    process_name: str = ""
    health: Health | None = None
    reason: str = ""
    lease_id: str | None = None
    lease_epoch: int | None = None
    simulated: bool = False
