"""A scripted source of GPUs behind the reader's interface, for machines without any.

Whatever it says is marked as simulated in every report, meter and receipt.
"""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from agents.node.reader import Sample
from agents.node.workloads import MIXED, ORIGIN, Workload, activity, draw, load_seconds
from agents.protocol import GPUS_PER_NODE_MAX, GpuIdentity

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
        self._uuids = [
            f"GPU-{uuid.uuid5(_NAMESPACE, f'{machine_id}/{node_name}/{fleet.product.name}/{index}')}"
            for index in range(fleet.count)
        ]

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
            )
            for index, gpu_uuid in enumerate(self._uuids)
        ]

    def read(self, *, at: dt.datetime) -> list[Sample]:
        """Return what the script says for the instant `at`."""
        return [self._read_gpu(index, gpu_uuid, at) for index, gpu_uuid in enumerate(self._uuids)]

    def close(self) -> None:
        """Do nothing: there is no driver to let go of."""

    def _read_gpu(self, index: int, gpu_uuid: str, at: dt.datetime) -> Sample:
        owners = self._fleet.workloads[index % len(self._fleet.workloads)]
        tenancies = [t for t in self._tenancies(gpu_uuid) if t.starts_at <= at]
        let = any(t.ends_at is None or at < t.ends_at for t in tenancies)
        now = activity(workload=Workload.TENANT if let else owners, gpu_uuid=gpu_uuid, at=at)
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
            memory_used_bytes=DRIVER_RESERVED_BYTES
            + product.memory_bytes * now.memory_percent // 100,
            power_draw_milliwatts=round(product.idle_milliwatts + dynamic_milliwatts * share),
            energy_millijoules=round(
                product.idle_milliwatts * idle_seconds + dynamic_milliwatts * load
            ),
            temperature_celsius=30 + draw(seed=gpu_uuid, below=5) + round(42 * share),
            process_count=now.process_count,
        )


def _load_between(
    workload: Workload, gpu_uuid: str, window: tuple[dt.datetime, dt.datetime]
) -> float:
    until, since = (
        load_seconds(workload=workload, gpu_uuid=gpu_uuid, until=instant)
        for instant in window[::-1]
    )
    return until - since
