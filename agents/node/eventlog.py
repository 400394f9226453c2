"""The node's log of what happened to its GPUs: each event is on the disk before it is sent.

Events are numbered (epoch, sequence) like meter readings, but counted by themselves.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping

from agents.node.health import BlamedXid, HealthTrack
from agents.node.leasebook import LeaseBook
from agents.node.spool import LeaseKey, Spool
from agents.protocol import (
    TEXT_LENGTH_MAX,
    EventKind,
    EventSource,
    GpuEvent,
    canonical_json,
    decode,
    to_json,
)

PROCESS_NAME_LENGTH_MAX = 100  # the market's column; the kernel itself cuts names at 15 bytes
_TRACK_PREFIX = "health/"


class EventLog:
    """The only writer of events and of what is remembered of each GPU's health."""

    def __init__(self, *, spool: Spool, book: LeaseBook, simulated: bool) -> None:
        self._spool = spool
        self._book = book
        self._simulated = simulated
        self._sequence = 0

    def remembered(self) -> dict[str, HealthTrack]:
        """Return the tracks of the agent's last run, by the UUIDs of their GPUs."""
        stored = self._spool.values(prefix=_TRACK_PREFIX)
        return {uuid: decode(HealthTrack, body.encode()) for uuid, body in stored.items()}

    def write(self, *, events: Iterable[GpuEvent], tracks: Mapping[str, HealthTrack]) -> None:
        """Write events together with the tracks that they changed."""
        values = {
            f"{_TRACK_PREFIX}{uuid}": canonical_json(to_json(track)).decode()
            for uuid, track in tracks.items()
        }
        self._spool.commit(events=events, values=values)

    def of_xid(self, *, blamed: BlamedXid, lease: LeaseKey | None) -> GpuEvent:
        """Return the event of an Xid; it counts once `write` has written it."""
        xid = blamed.xid
        return GpuEvent(
            epoch=self._book.epoch,
            sequence=self._next(),
            gpu_uuid=xid.gpu_uuid,
            at=xid.at,
            kind=EventKind.XID,
            source=xid.source,
            cause=blamed.cause,
            xid=xid.xid,
            pid=xid.pid,
            process_name=xid.process_name[:PROCESS_NAME_LENGTH_MAX],
            lease_id=None if lease is None else lease[0],
            lease_epoch=None if lease is None else lease[1],
            simulated=self._simulated,
        )

    def of_health(
        self, *, gpu_uuid: str, track: HealthTrack, lease: LeaseKey | None, at: dt.datetime
    ) -> GpuEvent:
        """Return the event that says what a GPU is from `at` on."""
        return GpuEvent(
            epoch=self._book.epoch,
            sequence=self._next(),
            gpu_uuid=gpu_uuid,
            at=at,
            kind=EventKind.HEALTH,
            source=EventSource.AGENT,
            cause=track.cause,
            health=track.health,
            reason=track.reason[:TEXT_LENGTH_MAX],
            lease_id=None if lease is None else lease[0],
            lease_epoch=None if lease is None else lease[1],
            simulated=self._simulated,
        )

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence
