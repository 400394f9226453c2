"""What the agent asks of a source of GPUs, whether it is NVML, a child process that owns it, or a script."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agents.node.unread import LOST as LOST
from agents.node.unread import NOT_SUPPORTED as NOT_SUPPORTED
from agents.node.unread import error_reason as error_reason
from agents.protocol import EventSource, GpuCounters, GpuIdentity, GpuSettings, HostFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process of the host that holds a GPU. `kind` is `compute`, `graphics` or `mps`."""

    pid: int
    name: str
    kind: str
    used_memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Xid:
    """An error that the driver reported, by the number of NVIDIA's catalogue."""

    gpu_uuid: str
    xid: int
    at: dt.datetime
    source: EventSource
    pid: int | None = None
    process_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at one GPU. A value that could not be read is `None`, and `unread` holds its reason.

    `utilization_percent` is the mean of the driver's sample buffer since the look before, and
    `utilization_max_percent` its highest value; both are the point value where the buffer gives nothing.
    `clocks_event_reasons` is the bit mask of nvml.h. `process_count` counts the processes of the last list,
    which was read at `processes_at`: lists are read seldom, because they hold the driver's lock. Services
    that belong to the machine do not count.
    """

    gpu_uuid: str
    measured_at: dt.datetime
    utilization_percent: int | None = None
    utilization_max_percent: int | None = None
    memory_used_bytes: int | None = None
    power_draw_milliwatts: int | None = None
    energy_millijoules: int | None = None
    temperature_celsius: int | None = None
    clocks_event_reasons: int | None = None
    process_count: int | None = None
    processes_at: dt.datetime | None = None
    unread: dict[str, str] = field(default_factory=dict)


# What `unread` may name.
MEASURED_FIELDS = (
    "utilization_percent",
    "memory_used_bytes",
    "power_draw_milliwatts",
    "energy_millijoules",
    "temperature_celsius",
    "clocks_event_reasons",
    "process_count",
)


def lost_sample(*, gpu_uuid: str, measured_at: dt.datetime) -> Sample:
    """Return the sample of a GPU that no longer answers at all."""
    return Sample(
        gpu_uuid=gpu_uuid, measured_at=measured_at, unread=dict.fromkeys(MEASURED_FIELDS, LOST)
    )


class ReaderUnavailable(Exception):
    """No GPU can be read; the message says why in one line."""


class ReaderHung(ReaderUnavailable):
    """A driver call did not come back; the reader goes on by itself when it does."""


class Reader(Protocol):
    """A source of GPUs."""

    simulated: bool

    def host(self) -> HostFacts:
        """Return what is known of the machine; the agent adds how it hands GPUs over.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """
        ...

    def identify(self) -> list[GpuIdentity]:
        """Return the GPUs of this machine in PCI order; one that is lost stays while it is known.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """
        ...

    def read(
        self,
        *,
        at: dt.datetime,
        gpu_uuids: Collection[str] | None = None,
        with_processes: Collection[str] = (),
    ) -> list[Sample]:
        """Return one sample of each of these GPUs (`None`: all), in the order of `identify`.

        Samples are stamped with `at`. The list of processes is read for `with_processes` alone.

        :raises ReaderUnavailable: when nothing could be read; a single dead GPU does not raise.
        """
        ...

    def counters(self, *, gpu_uuids: Collection[str]) -> list[GpuCounters]:
        """Return what speaks for or against the health of each of these GPUs.

        :raises ReaderUnavailable: when nothing could be read; a single dead GPU does not raise.
        """
        ...

    def settings(self, *, gpu_uuids: Collection[str]) -> list[GpuSettings]:
        """Return what root has set on each of these GPUs.

        :raises ReaderUnavailable: when nothing could be read; a single dead GPU does not raise.
        """
        ...

    def restore(self, *, settings: Sequence[GpuSettings]) -> dict[str, str]:
        """Set what these say, unlock the clocks, clear the accounting; what is `None` stays as it is.

        Return by UUID what could not be set, in words; a GPU that is as it should be is not in it.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """
        ...

    def processes(self, *, gpu_uuids: Collection[str]) -> dict[str, list[GpuProcess]]:
        """Return the processes of each of these GPUs, services of the machine included.

        A GPU that cannot tell is missing.

        :raises ReaderUnavailable: when nothing could be read.
        """
        ...

    def xids(self) -> list[Xid]:
        """Return the errors seen since the last call, each once within five minutes; never wait."""
        ...

    def warnings(self) -> list[str]:
        """Return in words for the owner what of this cannot be seen now."""
        ...

    def close(self) -> None:
        """Let go of the driver, so that a GPU can be reset; the next call takes it up again."""
        ...
