"""Say whether a free GPU may be offered: it is healthy, whole, and the owner's scheduler does not want it.

NVML cannot see a job that starts in a minute. So an owner may name one program that knows: it is called as
`PROGRAM allocated` with {"gpus": [{"uuid", "index", "pci_bus_id"}]} on its standard input, and answers
{"allocated": [uuid, ...]} or {"free": [uuid, ...]}. It is asked about free GPUs alone, beside the loop. An
answer is worth a minute; without one, none of them is offered. Without a program free is enough.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agents.node import programs
from agents.node.idle import IdleTrack
from agents.node.jobs import Jobs
from agents.node.programs import EXIT_AGAIN, ProgramFailed
from agents.protocol import TEXT_LENGTH_MAX, GpuIdentity, Health, IdleState

ASK_SECONDS_MAX = 10.0  # as `inspect` of a provisioner: a look, no work
# Asked again well before the last answer grows old, so that one slow answer withdraws nothing.
ASK_EVERY_SECONDS = 30.0
ANSWER_VALID_SECONDS = 60.0

# A host that cuts its GPUs for guests (`virtualization_mode` of an identity) has none to sell whole.
VGPU_HOST_MODES = ("host_vgpu", "host_vsga")


class SchedulerUnsure(Exception):
    """The owner's scheduler did not say what it has allocated; the message says why in one line."""


class OwnersScheduler(Protocol):
    """Knows which GPUs the owner has promised to somebody."""

    def allocated(self, *, gpus: Sequence[GpuIdentity]) -> frozenset[str]:
        """Return the UUIDs of those that are allocated; may take `ASK_SECONDS_MAX`.

        :raises SchedulerUnsure: when it cannot be told.
        """
        ...


class SchedulerHook:
    """Asks the owner's program."""

    def __init__(self, *, program: Path, seconds_max: float = ASK_SECONDS_MAX) -> None:
        self._program = program
        self._seconds_max = seconds_max

    def allocated(self, *, gpus: Sequence[GpuIdentity]) -> frozenset[str]:
        """Call `allocated`.

        :raises SchedulerUnsure: when the program fails, asks to try again, or does not answer as agreed.
        """
        request = {
            "gpus": [
                {"uuid": gpu.uuid, "index": gpu.index, "pci_bus_id": gpu.pci_bus_id} for gpu in gpus
            ]
        }
        try:
            finished = programs.run(
                program=self._program,
                verb="allocated",
                request=json.dumps(request).encode(),
                seconds_max=self._seconds_max,
            )
            if finished.status:
                again = finished.status == EXIT_AGAIN
                what = "asks to try again" if again else f"failed with status {finished.status}"
                raise SchedulerUnsure(f"{what}: {finished.evidence}".rstrip(": "))
            answer = finished.answer()
        except ProgramFailed as error:
            raise SchedulerUnsure(str(error)) from None
        asked = frozenset(gpu.uuid for gpu in gpus)
        match answer:
            case {"allocated": list(uuids), **others} if "free" not in others:
                return asked & _texts(uuids)
            case {"free": list(uuids), **others} if "allocated" not in others:
                return asked - _texts(uuids)
        raise SchedulerUnsure("must answer one list, either allocated or free")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    at: dt.datetime
    unsure: str
    allocated: bool


class Allocations:
    """What the owner's scheduler last said of each GPU."""

    def __init__(self, *, scheduler: OwnersScheduler | None, jobs: Jobs) -> None:
        self._scheduler = scheduler
        self._jobs = jobs
        self._answers: dict[str, _Answer] = {}
        self._asked: tuple[frozenset[str], dt.datetime] = (
            frozenset(),
            dt.datetime.min.replace(tzinfo=dt.UTC),
        )
        self._asking: Future[frozenset[str]] | None = None

    def ask(self, *, gpus: Iterable[GpuIdentity], at: dt.datetime) -> None:
        """Ask about these free GPUs if the answer to one of them is getting old; never wait for it."""
        wanted = list(gpus)
        scheduler = self._scheduler
        if scheduler is None or self._asking is not None or not wanted:
            return
        if all(self._age_seconds(gpu.uuid, at) < ASK_EVERY_SECONDS for gpu in wanted):
            return
        self._asked = (frozenset(gpu.uuid for gpu in wanted), at)
        self._asking = self._jobs.submit(work=lambda: scheduler.allocated(gpus=wanted))

    def has_answer(self) -> bool:
        """Return whether an answer has come that was not taken yet."""
        return self._asking is not None and self._asking.done()

    def take_answer(self) -> None:
        """Take the answer that has come, if one has. It is as old as its question."""
        if self._asking is None or not self._asking.done():
            return
        uuids, at = self._asked
        error = self._asking.exception()
        allocated = frozenset() if error is not None else self._asking.result()
        self._asking = None
        for uuid in uuids:
            self._answers[uuid] = _Answer(
                at=at, unsure="" if error is None else _words(error), allocated=uuid in allocated
            )

    def why_not(self, *, gpu_uuid: str, at: dt.datetime) -> str:
        """Return why the owner's scheduler does not let the GPU go, empty when it does."""
        if self._scheduler is None:
            return ""
        answer = self._answers.get(gpu_uuid)
        if answer is None:
            return "free, but the owner's scheduler has not answered yet"
        if answer.unsure:
            return f"free, but the owner's scheduler {answer.unsure}"
        if self._age_seconds(gpu_uuid, at) > ANSWER_VALID_SECONDS:
            return f"free, but the owner's scheduler was last heard {answer.at:%F %H:%M:%S} UTC"
        return "free, but the owner's scheduler has it allocated" if answer.allocated else ""

    @property
    def configured(self) -> bool:
        """Return whether there is somebody to ask."""
        return self._scheduler is not None

    def _age_seconds(self, gpu_uuid: str, at: dt.datetime) -> float:
        answer = self._answers.get(gpu_uuid)
        return float("inf") if answer is None else (at - answer.at).total_seconds()


def judge(
    *,
    track: IdleTrack,
    identity: GpuIdentity,
    health: Health,
    allocations: Allocations,
    at: dt.datetime,
) -> tuple[IdleState, str]:
    """Return what a GPU that no lease has is to the market, and why in words."""
    if track.state is not IdleState.FREE:
        return track.state, track.reason[:TEXT_LENGTH_MAX]
    if identity.virtualization_mode in VGPU_HOST_MODES:
        return IdleState.FREE, "free, but this host cuts the GPU for guests (vGPU)"
    if identity.mig_enabled:
        return IdleState.FREE, "free, but MIG has cut it, and only whole GPUs are sold"
    if health is not Health.HEALTHY:
        return IdleState.FREE, f"free, but {health}"
    if why_not := allocations.why_not(gpu_uuid=identity.uuid, at=at):
        return IdleState.FREE, why_not[:TEXT_LENGTH_MAX]
    asked = "the owner's scheduler" if allocations.configured else "no scheduler of the owner"
    tail = "does not want it" if allocations.configured else "is asked"
    return IdleState.OFFERABLE, f"{track.reason}; {asked} {tail}"


def _texts(values: list[object]) -> frozenset[str]:
    if not all(isinstance(value, str) for value in values):
        raise SchedulerUnsure("must answer a list of UUIDs")
    return frozenset(str(value) for value in values)


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, SchedulerUnsure) else f"failed: {error!r}"
