"""GPUs that count as real ones and do what a test says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from agents.node.provision.simulated import SimulatedProvisioner
from agents.node.reader import GpuProcess, ReaderHung, Sample
from agents.node.simulated import SimulatedReader, parse_fleet
from agents.protocol import GpuCounters, GpuSettings

DEFAULT_LIMIT = 700_000


class ScriptedReader(SimulatedReader):
    """Two idle H100s; a tenancy shows on them as a tenant's work does, until it ends."""

    simulated = False

    def __init__(self) -> None:
        self.provisioner: Callable[[], SimulatedProvisioner] | None = None
        super().__init__(
            fleet=parse_fleet(text="h100x2:idle"),
            node_name="n1",
            machine_id="m1",
            tenancies=lambda uuid: (
                [] if self.provisioner is None else self.provisioner().tenancies(uuid)
            ),
        )
        self.first, self.second = (identity.uuid for identity in self.identify())
        self.held: dict[str, list[GpuProcess]] = {}
        self.memory: dict[str, int] = {}
        self.of_counters: dict[str, Any] = {}
        self.of_settings: dict[str, Any] = {}
        self.restored: list[GpuSettings] = []
        self.not_restored: dict[str, str] = {}
        self.is_hung = False

    def hold(self, gpu_uuid: str) -> None:
        """Let a process stay on a GPU."""
        self.held[gpu_uuid] = [
            GpuProcess(pid=4242, name="python", kind="compute", used_memory_bytes=40 << 30)
        ]
        self.memory[gpu_uuid] = 40 << 30

    def let_go(self, gpu_uuid: str) -> None:
        del self.held[gpu_uuid], self.memory[gpu_uuid]

    def read(
        self,
        *,
        at: dt.datetime,
        gpu_uuids: Collection[str] | None = None,
        with_processes: Collection[str] = (),
    ) -> list[Sample]:
        self._answer()
        samples = super().read(at=at, gpu_uuids=gpu_uuids, with_processes=with_processes)
        return [
            replace(s, memory_used_bytes=self.memory.get(s.gpu_uuid, s.memory_used_bytes))
            for s in samples
        ]

    def counters(self, *, gpu_uuids: Collection[str]) -> list[GpuCounters]:
        self._answer()
        return [replace(c, **self.of_counters) for c in super().counters(gpu_uuids=gpu_uuids)]

    def settings(self, *, gpu_uuids: Collection[str]) -> list[GpuSettings]:
        self._answer()
        return [replace(s, **self.of_settings) for s in super().settings(gpu_uuids=gpu_uuids)]

    def processes(self, *, gpu_uuids: Collection[str]) -> dict[str, list[GpuProcess]]:
        self._answer()
        return {**super().processes(gpu_uuids=gpu_uuids), **self.held}

    def restore(self, *, settings: Sequence[GpuSettings]) -> dict[str, str]:
        self._answer()
        self.restored += settings
        self.of_settings = {}
        return self.not_restored

    def _answer(self) -> None:
        if self.is_hung:
            raise ReaderHung("a driver call did not come back")
