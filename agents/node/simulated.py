"""A scripted source of GPUs behind the reader's interface, for machines without any.

Whatever it says is marked as simulated in every report, meter and receipt.
"""

from __future__ import annotations

import datetime as dt
import platform
import re
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from agents.node.reader import GpuProcess, Sample, Xid
from agents.node.workloads import MIXED, ORIGIN, Activity, Workload, activity, draw, load_seconds
from agents.protocol import GPUS_PER_NODE_MAX, GpuCounters, GpuIdentity, GpuSettings, HostFacts

_GIB = 1024**3
_NAMESPACE = uuid.UUID("5e3f0c1e-6b1a-5b0e-9a44-0d6b8f1f7c55")
DRIVER_RESERVED_BYTES = 4 * 1024 * 1024  # what an idle card shows as used


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product as NVML spells it, with data-sheet figures."""

    name: str
    memory_bytes: int
    idle_milliwatts: int
    peak_milliwatts: int


CATALOGUE = {
    "h100": Product(
        name="NVIDIA H100 80GB HBM3",
        memory_bytes=80 * _GIB,
        idle_milliwatts=70_000,
        peak_milliwatts=700_000,
    ),
    "h200": Product(
        name="NVIDIA H200", memory_bytes=141 * _GIB, idle_milliwatts=76_000, peak_milliwatts=700_000
    ),
    "b200": Product(
        name="NVIDIA B200",
        memory_bytes=180 * _GIB,
        idle_milliwatts=140_000,
        peak_milliwatts=1_000_000,
    ),
    "a100": Product(
        name="NVIDIA A100-SXM4-80GB",
        memory_bytes=80 * _GIB,
        idle_milliwatts=57_000,
        peak_milliwatts=400_000,
    ),
    "l40s": Product(
        name="NVIDIA L40S", memory_bytes=48 * _GIB, idle_milliwatts=34_000, peak_milliwatts=350_000
    ),
    "l4": Product(
        name="NVIDIA L4", memory_bytes=24 * _GIB, idle_milliwatts=16_000, peak_milliwatts=72_000
    ),
    "rtx4090": Product(
        name="NVIDIA GeForce RTX 4090",
        memory_bytes=24 * _GIB,
        idle_milliwatts=22_000,
        peak_milliwatts=450_000,
    ),
}


class BadFleet(ValueError):
    """A fleet specification that cannot be simulated; the message says how one looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How many GPUs of which product, and what their owner does with them."""

    product: Product
    count: int
    workloads: tuple[Workload, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenancy:
    """A time `[starts_at, ends_at)` in which a tenant had a GPU; `None` while it still has it."""

    starts_at: dt.datetime
    ends_at: dt.datetime | None


def parse_fleet(*, text: str) -> Fleet:
    """Read `h100x8`, or `h100x8:training` to give all GPUs one workload.

    :raises BadFleet: when the product is not in the catalogue or the count is not 1 to 16.
    """
    match = re.fullmatch(r"([a-z0-9]+)x([0-9]{1,3})(?::([a-z]+))?", text, flags=re.ASCII)
    if match is None or match[1] not in CATALOGUE:
        known = ", ".join(CATALOGUE)
        raise BadFleet(
            f"{text!r} is no fleet: write PRODUCTxCOUNT, such as h100x8, with one of {known}"
        )
    count = int(match[2])
    if not 1 <= count <= GPUS_PER_NODE_MAX:
        raise BadFleet(f"{text!r}: a node has 1 to {GPUS_PER_NODE_MAX} GPUs")
    if match[3] in (None, "mixed"):
        workloads: tuple[Workload, ...] = MIXED
    elif match[3] in list(Workload) and match[3] != Workload.TENANT:
        workloads = (Workload(match[3]),)
    else:
        raise BadFleet(f"{text!r}: a workload is one of mixed, idle, training, batch, inference")
    return Fleet(product=CATALOGUE[match[1]], count=count, workloads=workloads)


class SimulatedReader:
    """GPUs that follow a script; `tenancies` tells when a tenant had a GPU, all of its past included."""

    simulated = True

    def __init__(
        self,
        *,
        fleet: Fleet,
        node_name: str,
        machine_id: str,
        tenancies: Callable[[str], list[Tenancy]],
    ) -> None:
        self._fleet = fleet
        self._tenancies = tenancies
        # Finished tenancies of each GPU, from the oldest on, as (how many, the load they added), so that
        # a read does not grow with the age of the node.
        self._folded: dict[str, tuple[int, float]] = {}
        self._looked_at = ORIGIN
        self._uuids = [
            f"GPU-{uuid.uuid5(_NAMESPACE, f'{machine_id}/{node_name}/{fleet.product.name}/{index}')}"
            for index in range(fleet.count)
        ]

    def host(self) -> HostFacts:
        """Return the kernel's version: no driver is here to tell of."""
        return HostFacts(driver_version="simulated", kernel_version=platform.release())

    def identify(self) -> list[GpuIdentity]:
        """Return the GPUs; the same node has the same ones after every restart."""
        return [
            GpuIdentity(
                uuid=gpu_uuid,
                index=index,
                product_name=self._fleet.product.name,
                memory_total_bytes=self._fleet.product.memory_bytes,
                serial=f"SIM{draw(seed=gpu_uuid, below=10**10):010d}",
                pci_bus_id=f"00000000:{0x10 + index * 8:02X}:00.0",
                mig_enabled=False,
                virtualization_mode="none",
            )
            for index, gpu_uuid in enumerate(self._uuids)
        ]

    def read(
        self,
        *,
        at: dt.datetime,
        gpu_uuids: Collection[str] | None = None,
        with_processes: Collection[str] = (),
    ) -> list[Sample]:
        """Return what the script says for the instant `at`."""
        self._looked_at = at
        return [
            self._read_gpu(index, gpu_uuid, at)
            for index, gpu_uuid in enumerate(self._uuids)
            if gpu_uuids is None or gpu_uuid in gpu_uuids
        ]

    def counters(self, *, gpu_uuids: Collection[str]) -> list[GpuCounters]:
        """Return the counters of GPUs that nothing ever happened to."""
        return [
            GpuCounters(
                gpu_uuid=gpu_uuid,
                ecc_enabled=True,
                ecc_pending=True,
                ecc_corrected=0,
                ecc_uncorrected=0,
                remapped_rows_corrected=0,
                remapped_rows_uncorrected=0,
                row_remap_pending=False,
                row_remap_failed=False,
                pcie_replay_count=0,
                recovery_action=0,
                clocks_event_reasons=0,
            )
            for gpu_uuid in self._among(gpu_uuids)
        ]

    def settings(self, *, gpu_uuids: Collection[str]) -> list[GpuSettings]:
        """Return what these GPUs are set to, which is what the product comes with."""
        return [
            GpuSettings(
                gpu_uuid=gpu_uuid,
                power_limit_milliwatts=self._fleet.product.peak_milliwatts,
                power_limit_default_milliwatts=self._fleet.product.peak_milliwatts,
                compute_mode=0,
                persistence_enabled=True,
                mig_enabled=False,
            )
            for gpu_uuid in self._among(gpu_uuids)
        ]

    def restore(self, *, settings: Sequence[GpuSettings]) -> dict[str, str]:
        """Find everything as it should be."""
        return {}

    def processes(self, *, gpu_uuids: Collection[str]) -> dict[str, list[GpuProcess]]:
        """Return the processes of the script at the instant of the last look."""
        return {
            gpu_uuid: self._processes(gpu_uuid, self._now(index, gpu_uuid, self._looked_at))
            for index, gpu_uuid in enumerate(self._uuids)
            if gpu_uuid in gpu_uuids
        }

    def xids(self) -> list[Xid]:
        """Return nothing: no script makes a GPU fail."""
        return []

    def warnings(self) -> list[str]:
        """Return nothing: a script has nothing that it cannot see."""
        return []

    def close(self) -> None:
        """Do nothing: there is no driver to let go of."""

    def _among(self, gpu_uuids: Collection[str]) -> list[str]:
        return [gpu_uuid for gpu_uuid in self._uuids if gpu_uuid in gpu_uuids]

    def _now(self, index: int, gpu_uuid: str, at: dt.datetime) -> Activity:
        let = any(
            t.starts_at <= at and (t.ends_at is None or at < t.ends_at)
            for t in self._tenancies(gpu_uuid)
        )
        workload = self._fleet.workloads[index % len(self._fleet.workloads)]
        return activity(workload=Workload.TENANT if let else workload, gpu_uuid=gpu_uuid, at=at)

    def _processes(self, gpu_uuid: str, now: Activity) -> list[GpuProcess]:
        held = self._fleet.product.memory_bytes * now.memory_percent // 100
        return [
            GpuProcess(
                pid=2 + draw(seed=f"{gpu_uuid}/{number}", below=4_000_000),
                name="scripted",
                kind="compute",
                used_memory_bytes=held // now.process_count,
            )
            for number in range(now.process_count)
        ]

    def _read_gpu(self, index: int, gpu_uuid: str, at: dt.datetime) -> Sample:
        owners = self._fleet.workloads[index % len(self._fleet.workloads)]
        tenancies = [t for t in self._tenancies(gpu_uuid) if t.starts_at <= at]
        now = self._now(index, gpu_uuid, at)
        product = self._fleet.product
        dynamic_milliwatts = product.peak_milliwatts - product.idle_milliwatts
        load = load_seconds(workload=owners, gpu_uuid=gpu_uuid, until=at)
        folded, extra = self._folded.get(gpu_uuid, (0, 0.0))
        for number, tenancy in enumerate(tenancies[folded:], start=folded + 1):
            ends_at = at if tenancy.ends_at is None else min(tenancy.ends_at, at)
            window = (tenancy.starts_at, ends_at)
            gained = _load_between(Workload.TENANT, gpu_uuid, window)
            gained -= _load_between(owners, gpu_uuid, window)
            if tenancy.ends_at is not None and tenancy.ends_at <= at and number == folded + 1:
                folded, extra = number, extra + gained
                self._folded[gpu_uuid] = (folded, extra)
            else:
                load += gained
        load += extra
        idle_seconds = (at - ORIGIN).total_seconds()
        share = now.utilization_percent / 100
        return Sample(
            gpu_uuid=gpu_uuid,
            measured_at=at,
            utilization_percent=now.utilization_percent,
            utilization_max_percent=now.utilization_percent,
            memory_used_bytes=DRIVER_RESERVED_BYTES
            + product.memory_bytes * now.memory_percent // 100,
            power_draw_milliwatts=round(product.idle_milliwatts + dynamic_milliwatts * share),
            energy_millijoules=round(
                product.idle_milliwatts * idle_seconds + dynamic_milliwatts * load
            ),
            temperature_celsius=30 + draw(seed=gpu_uuid, below=5) + round(42 * share),
            clocks_event_reasons=0,
            process_count=now.process_count,
            processes_at=at,
        )


def _load_between(
    workload: Workload, gpu_uuid: str, window: tuple[dt.datetime, dt.datetime]
) -> float:
    until, since = (
        load_seconds(workload=workload, gpu_uuid=gpu_uuid, until=instant)
        for instant in window[::-1]
    )
    return until - since
