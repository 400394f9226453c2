"""What the agent asks of a source of GPUs, whether it is NVML, a child process that owns it, or a script."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Protocol

from agents.protocol import GpuIdentity

NOT_SUPPORTED = "not_supported"
LOST = "lost"


def error_reason(*, code: int) -> str:
    """Return how an NVML error code is spelled in `unread`."""
    return f"error({code})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at one GPU. A value that could not be read is `None`, and `unread` holds its reason."""

    gpu_uuid: str
    measured_at: dt.datetime
    utilization_percent: int | None = None
    memory_used_bytes: int | None = None
    power_draw_milliwatts: int | None = None
    energy_millijoules: int | None = None
    temperature_celsius: int | None = None
    process_count: int | None = None
    unread: dict[str, str] = field(default_factory=dict)


MEASURED_FIELDS = (
    "utilization_percent",
    "memory_used_bytes",
    "power_draw_milliwatts",
    "energy_millijoules",
    "temperature_celsius",
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

    def identify(self) -> list[GpuIdentity]:
        """Return the GPUs of this machine in PCI order.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """
        ...

    def read(self, *, at: dt.datetime) -> list[Sample]:
        """Return one sample of each GPU, in the order of `identify`, stamped with `at`.

        :raises ReaderUnavailable: when nothing could be read; a single dead GPU does not raise.
        """
        ...

    def close(self) -> None:
        """Let go of the driver, so that a GPU can be reset."""
        ...
