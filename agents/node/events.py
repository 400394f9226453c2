"""Tell each error of a GPU once, from two sources that both know of it.

The driver's queue has the GPU by its UUID; the kernel's log has the process. Whatever was told of a GPU, an
Xid and a process is not told again for five minutes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agents.node.kernel_log import KernelXid
from agents.node.reader import Xid
from agents.protocol import EventSource

SAME_EVENT = dt.timedelta(minutes=5)
# The driver writes its line at about the time at which it posts the event.
TWIN_WITHIN = dt.timedelta(seconds=2)
REMEMBERED_MAX = (
    1024  # errors of one machine within five minutes; beyond them the oldest may be told twice
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedXid:
    """An error as the driver's queue tells it."""

    gpu_uuid: str
    xid: int
    at: dt.datetime


class XidMerger:
    """Joins both sources. An event of the queue waits up to 2 s for its line in the kernel's log."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, int, int | None], dt.datetime] = {}
        self._waiting: list[QueuedXid] = []

    def merge(
        self,
        *,
        now: dt.datetime,
        queued: Iterable[QueuedXid],
        logged: Iterable[KernelXid],
        gpu_uuids: Mapping[tuple[int, int, int], str],
        log_is_read: bool,
    ) -> list[Xid]:
        """Return the errors that were not told yet, from the oldest on; `gpu_uuids` maps places to GPUs."""
        self._told = {key: at for key, at in self._told.items() if now - at < SAME_EVENT}
        waiting = self._waiting + list(queued)
        new: list[Xid] = []
        for line in logged:
            gpu_uuid = gpu_uuids.get(line.pci)
            if gpu_uuid is None:
                continue  # a GPU that another driver or machine has
            at = now - dt.timedelta(seconds=line.age_seconds)
            twin = next((q for q in waiting if (q.gpu_uuid, q.xid) == (gpu_uuid, line.xid)), None)
            xid = Xid(
                gpu_uuid=gpu_uuid,
                xid=line.xid,
                at=at if twin is None else twin.at,
                source=EventSource.KERNEL_LOG if twin is None else EventSource.NVML,
                pid=line.pid,
                process_name=line.process_name,
            )
            if self._is_new(xid, now):
                new.append(xid)
        self._waiting = []
        for event in waiting:
            if any(key[:2] == (event.gpu_uuid, event.xid) for key in self._told):
                continue
            if log_is_read and now - event.at < TWIN_WITHIN:
                self._waiting.append(event)
                continue
            xid = Xid(gpu_uuid=event.gpu_uuid, xid=event.xid, at=event.at, source=EventSource.NVML)
            if self._is_new(xid, now):
                new.append(xid)
        return sorted(new, key=lambda xid: xid.at)

    def _is_new(self, xid: Xid, now: dt.datetime) -> bool:
        key = (xid.gpu_uuid, xid.xid, xid.pid)
        if key in self._told:
            return False
        while len(self._told) >= REMEMBERED_MAX:
            del self._told[next(iter(self._told))]
        self._told[key] = now
        return True
