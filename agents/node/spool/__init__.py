"""What must survive the agent: meters, receipts and events, leases and how far they are, the epoch.

One SQLite file in WAL mode with synchronous=FULL: what `commit` wrote is on the disk. Facts are written
before they are sent, wait until the market has acknowledged them, and are kept `ACKNOWLEDGED_KEPT` longer.
The epoch is raised by one at each start, so that (epoch, sequence) never repeats.

A disk that is full or fails does not end the agent: what it could not write stays in memory, is read and sent
as if it were written, and is written as soon as that is possible. `warnings` says so, and `is_writable` lets
nobody start a lease meanwhile.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from agents.node.host import StateUnusable
from agents.node.spool import quota
from agents.node.spool.facts import (
    TERMINAL_STATES,
    EventKey,
    Fact,
    FactKey,
    FactKind,
    LeaseKey,
    LeaseRecord,
    MeterKey,
    ReceiptKey,
    event_fact,
    event_name,
    meter_fact,
    meter_name,
    receipt_fact,
    receipt_name,
)
from agents.node.spool.schema import open_file
from agents.node.spool.unwritten import Mark, Unwritten
from agents.protocol import (
    GpuEvent,
    MalformedMessage,
    MessageT,
    MeterReading,
    Receipt,
    decode,
    encode,
    to_json,
)

__all__ = [
    "ACKNOWLEDGED_KEPT",
    "LEASES_KEPT",
    "TERMINAL_STATES",
    "EventKey",
    "LeaseKey",
    "LeaseRecord",
    "MeterKey",
    "ReceiptKey",
    "Spool",
]

# How long a finished lease is remembered, so that it never starts again.
LEASES_KEPT = dt.timedelta(days=7)
# How long facts are kept that the market has stored, for whoever asks what this node said.
ACKNOWLEDGED_KEPT = dt.timedelta(days=7)

_INSERT = "INSERT INTO fact (kind, name, body) VALUES (?, ?, ?)"
_INSERT_AGAIN = f"{_INSERT} ON CONFLICT DO NOTHING"
_WAITING = "acknowledged_at IS NULL AND refused IS NULL"

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class Spool:
    """The state file of one agent. Used by one thread."""

    def __init__(self, *, path: Path, quota_bytes: int = quota.QUOTA_BYTES_DEFAULT) -> None:
        self.path = path
        self.connection = open_file(path=path)
        self._quota_bytes = quota_bytes
        self._unwritten = Unwritten()
        self._failure = ""
        self._merged_until = 0
        self._used_bytes = quota.used_bytes(self.connection)

    def close(self) -> None:
        """Close the file, after one more try to write what could not be written."""
        if self._unwritten:
            self._flush()
        self.connection.close()

    # --- writing ------------------------------------------------------------------------------------

    def commit(
        self,
        *,
        leases: Iterable[LeaseRecord] = (),
        meters: Iterable[MeterReading] = (),
        receipts: Iterable[Receipt] = (),
        events: Iterable[GpuEvent] = (),
        values: Mapping[str, str] | None = None,
    ) -> None:
        """Write all of this or none of it. A fact that is already there stays as it is."""
        facts = [meter_fact(m) for m in meters] + [receipt_fact(r) for r in receipts]
        facts += [event_fact(e) for e in events]
        self._change(leases=list(leases), facts=facts, values=values)

    def acknowledge(
        self,
        *,
        meters: Iterable[MeterKey] = (),
        receipts: Iterable[ReceiptKey] = (),
        events: Iterable[EventKey] = (),
        at: dt.datetime,
    ) -> None:
        """Send no more what the market has stored."""
        self._mark(meters, receipts, events, Mark(acknowledged_at=at))

    def set_aside(
        self,
        *,
        meters: Iterable[MeterKey] = (),
        receipts: Iterable[ReceiptKey] = (),
        events: Iterable[EventKey] = (),
        reason: str,
    ) -> None:
        """Keep what the market refuses for good, but send it no more."""
        self._mark(meters, receipts, events, Mark(refused=json.dumps(reason)))

    def raise_epoch(self, *, above: int = 0) -> int:
        """Return the next epoch, higher than every earlier one and than `above`."""
        epoch = max(int(self.value(name="epoch") or 0), above) + 1
        self.commit(values={"epoch": str(epoch)})
        return epoch

    def start_epoch(self) -> int:
        """Return the epoch of a new start; it is on the disk.

        :raises StateUnusable: when it cannot be written: two starts would give two things one name.
        """
        epoch = self.raise_epoch()
        if not self.is_writable:
            raise StateUnusable(f"the spool cannot be written: {self._failure}")
        return epoch

    def forget_leases(self, *, before: dt.datetime) -> None:
        """Drop leases that were finished before `before`."""
        old = [r for r in self.leases() if r.state in TERMINAL_STATES and r.changed_at < before]

        def delete() -> None:
            self.connection.executemany(
                "DELETE FROM lease WHERE lease_id = ? AND lease_epoch = ?", [r.key for r in old]
            )

        self._transact(delete)

    def tidy(self, *, at: dt.datetime) -> None:
        """Write what could not be written, drop what was kept long enough, and make room if it is needed.

        Each call does a bounded piece of work; the next one goes on.
        """
        if self._unwritten:
            self._flush()
        before = at - ACKNOWLEDGED_KEPT
        self._transact(lambda: quota.prune_acknowledged(self.connection, before=before))
        self._used_bytes = self._read(lambda: quota.used_bytes(self.connection), self._used_bytes)
        if self._is_tight():
            self._transact(self._make_room)

    def _make_room(self) -> None:
        if quota.prune_acknowledged(self.connection, before=None):
            return
        self._merged_until = quota.merge_waiting(self.connection, after=self._merged_until)

    def _is_tight(self) -> bool:
        return self._used_bytes * 100 >= self._quota_bytes * quota.TIGHT_PERCENT

    def _mark(
        self,
        meters: Iterable[MeterKey],
        receipts: Iterable[ReceiptKey],
        events: Iterable[EventKey],
        mark: Mark,
    ) -> None:
        keys = [meter_name(key) for key in meters] + [receipt_name(key) for key in receipts]
        keys += [event_name(key) for key in events]
        self._change(marks=dict.fromkeys(keys, mark))

    def _change(
        self,
        *,
        leases: Sequence[LeaseRecord] = (),
        facts: Sequence[Fact] = (),
        marks: Mapping[FactKey, Mark] | None = None,
        values: Mapping[str, str] | None = None,
    ) -> None:
        """Write a change, and all that could not be written before it.

        :raises sqlite3.IntegrityError: when another fact has this name: nothing of the change is kept.
        """
        before = self._unwritten.copied()
        self._unwritten.add(leases=leases, facts=facts, marks=marks, values=values)
        try:
            self._flush()
        except sqlite3.IntegrityError:
            self._unwritten = before
            raise

    def _flush(self) -> None:
        """Write all that is unwritten in one transaction, or keep it."""
        if self._transact(self._write_unwritten):
            self._unwritten = Unwritten(given_up=self._unwritten.given_up)
            return
        lost = self._unwritten.shrink()
        if lost:
            logger.error("%d meter readings were given up: memory for them is bounded", lost)

    def _write_unwritten(self) -> None:
        unwritten, connection = self._unwritten, self.connection
        connection.executemany(
            "INSERT INTO lease VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
            [(*record.key, encode(record).decode()) for record in unwritten.leases.values()],
        )
        for fact in unwritten.facts.values():
            # A receipt is asked for twice, and a disk that failed may have kept what it said it did not.
            again = fact.kind is FactKind.RECEIPT or bool(self._failure)
            connection.execute(
                _INSERT_AGAIN if again else _INSERT, [fact.kind, fact.name, fact.body]
            )
        connection.executemany(
            "UPDATE fact SET acknowledged_at = ?, refused = ? WHERE kind = ? AND name = ?",
            [
                (mark.acknowledged_at and to_json(mark.acknowledged_at), mark.refused, *key)
                for key, mark in unwritten.marks.items()
            ],
        )
        connection.executemany(
            "INSERT INTO value VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
            list(unwritten.values.items()),
        )

    def _transact(self, work: Callable[[], object]) -> bool:
        """Do the work in one transaction; return whether it is on the disk.

        What the disk does is no reason to end: it is remembered, and told by `warnings`.
        """
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            work()
            self.connection.execute("COMMIT")
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            self._roll_back()
            raise  # a mistake of ours, not of the disk
        except sqlite3.DatabaseError as error:
            self._roll_back()
            if not self._failure:
                logger.error("the spool cannot be written: %s", error)
            self._failure = str(error)
            return False
        except BaseException:
            self._roll_back()
            raise
        if self._failure:
            logger.warning("the spool can be written again")
        self._failure = ""
        return True

    def _roll_back(self) -> None:
        """End the transaction that failed, if SQLite has not done so itself."""
        try:
            self.connection.rollback()
        except sqlite3.Error as error:
            logger.warning("the spool cannot roll back: %s", error)

    # --- reading ------------------------------------------------------------------------------------

    @property
    def is_writable(self) -> bool:
        """Return whether all that was to be written is on the disk."""
        return not self._failure and not self._unwritten

    def warnings(self) -> list[str]:
        """Say in words what the owner should know of the spool."""
        found = []
        if self._failure:
            found.append(
                f"the state directory cannot be written ({self._failure}); {len(self._unwritten.facts)}"
                " records wait in memory, and no lease is started"
            )
        if self._unwritten.given_up:
            found.append(
                f"{self._unwritten.given_up} meter readings were lost: the state directory could not be"
                " written for too long"
            )
        if self._is_tight():
            percent = self._used_bytes * 100 // self._quota_bytes
            found.append(f"the spool fills {percent} % of its quota; old readings are being merged")
        return found

    def value(self, *, name: str) -> str | None:
        """Return a remembered value, or `None`."""
        if name in self._unwritten.values:
            return self._unwritten.values[name]
        row = self.connection.execute("SELECT value FROM value WHERE name = ?", [name]).fetchone()
        return None if row is None else str(row[0])

    def values(self, *, prefix: str) -> dict[str, str]:
        """Return the remembered values whose names begin with `prefix`, by the rest of their names."""
        rows = self.connection.execute(
            "SELECT name, value FROM value WHERE substr(name, 1, ?) = ?", [len(prefix), prefix]
        )
        found = dict(rows) | {
            name: value for name, value in self._unwritten.values.items() if name.startswith(prefix)
        }
        return {name[len(prefix) :]: found[name] for name in sorted(found)}

    def leases(self) -> list[LeaseRecord]:
        """Return all remembered leases.

        :raises StateUnusable: when the file holds something else.
        """
        rows = self.connection.execute("SELECT body FROM lease ORDER BY lease_id, lease_epoch")
        try:
            records = [decode(LeaseRecord, body.encode()) for (body,) in rows]
        except MalformedMessage as error:
            raise StateUnusable(f"the spool holds a lease of another version: {error}") from None
        found = {record.key: record for record in records} | self._unwritten.leases
        return [found[key] for key in sorted(found)]

    def meters(self, *, limit: int) -> list[MeterReading]:
        """Return the oldest readings that wait."""
        return self._waiting(FactKind.METER, MeterReading, limit)

    def receipts(self, *, limit: int) -> list[Receipt]:
        """Return the oldest receipts that wait."""
        return self._waiting(FactKind.RECEIPT, Receipt, limit)

    def events(self, *, limit: int) -> list[GpuEvent]:
        """Return the oldest events that wait."""
        return self._waiting(FactKind.EVENT, GpuEvent, limit)

    def depth(self) -> int:
        """Return how many facts wait to be sent."""
        query = f"SELECT count(*) FROM fact INDEXED BY fact_waiting WHERE {_WAITING}"  # noqa: S608
        on_disk = self._read(lambda: int(self.connection.execute(query).fetchone()[0]), 0)
        marked_on_disk = sum(key not in self._unwritten.facts for key in self._unwritten.marks)
        in_memory = sum(key not in self._unwritten.marks for key in self._unwritten.facts)
        return max(0, on_disk - marked_on_disk) + in_memory

    def _waiting(self, kind: FactKind, message_type: type[MessageT], limit: int) -> list[MessageT]:
        marks = self._unwritten.marks
        query = (
            "SELECT name, body FROM fact INDEXED BY fact_waiting"  # noqa: S608
            f" WHERE kind = ? AND {_WAITING} ORDER BY number LIMIT ?"
        )
        rows: list[tuple[str, str]] = self._read(
            lambda: self.connection.execute(query, [kind, limit + len(marks)]).fetchall(), []
        )
        facts = [Fact(kind=kind, name=name, body=body) for name, body in rows]
        facts += [fact for fact in self._unwritten.facts.values() if fact.kind is kind]
        waiting: dict[FactKey, Fact] = {}
        for fact in facts:
            if fact.key not in marks:
                waiting.setdefault(fact.key, fact)
        return [decode(message_type, f.body.encode()) for f in list(waiting.values())[:limit]]

    def _read(self, work: Callable[[], ResultT], otherwise: ResultT) -> ResultT:
        """Return what can be read, or something else while the disk fails."""
        try:
            return work()
        except sqlite3.ProgrammingError:
            raise  # a mistake of ours
        except sqlite3.DatabaseError as error:
            if not self._failure:
                logger.error("the spool cannot be read: %s", error)
            self._failure = str(error)
            return otherwise
