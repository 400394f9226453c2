"""A machine to look at: real GPUs where a driver answers, and the stand-in with the very same tests.

A stand-in can agree with us by mistake; real silicon is rarely at hand. So each test here runs on both.
"""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass, field

import pytest

from agents.node.child import ChildReader
from agents.node.reader import ReaderUnavailable
from tests.fakes.nvml import Journal

REAL, STAND_IN = "real", "stand-in"
REST_MILLIWATTS = 40_000  # what the stand-in's GPUs draw: below any product's floor


@dataclass
class Machine:
    """Where the GPUs are; the readers that it hands out are closed with the test."""

    source: str
    journal: Journal | None = None
    readers: list[ChildReader] = field(default_factory=list)

    def reader(self) -> ChildReader:
        """Return a reader in a process of its own: this one may have loaded the stand-in."""
        reader = ChildReader(boottime_seconds=time.monotonic)
        self.readers.append(reader)
        return reader

    def need_gpus(self) -> None:
        """Skip the test where no driver answers."""
        if self.source == REAL:
            try:
                self.reader().identify()
            except ReaderUnavailable as reason:
                pytest.skip(f"no GPU to read here: {reason}")

    def need_rest(self) -> list[str]:
        """Return the GPUs that nobody uses; skip the test where there are none."""
        reader = self.reader()
        uuids = [gpu.uuid for gpu in reader.identify()]
        samples = reader.read(at=dt.datetime.now(tz=dt.UTC), with_processes=uuids)
        resting = [sample.gpu_uuid for sample in samples if sample.process_count == 0]
        if not resting:
            pytest.skip("every GPU of this machine is in use")
        return resting

    def close(self) -> None:
        """End all readers."""
        for reader in self.readers:
            reader.close()


def stand_in(journal: Journal) -> Machine:
    """Return two GPUs at rest, whose counters of energy and buffers of samples live."""
    journal.set("*", power=REST_MILLIWATTS, sampling=100)
    journal.energy_rate("*", milliwatts=REST_MILLIWATTS)
    return Machine(source=STAND_IN, journal=journal)
