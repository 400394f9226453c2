"""What must survive the agent: unsent meters and receipts, leases and how far they are, the epoch.

One SQLite file in WAL mode with synchronous=FULL: what `commit` returned from is on the disk. Meters and
receipts are written before they are sent and removed only when the market has acknowledged them. The epoch
is raised by one at each start, so that (epoch, sequence) never repeats.
"""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agents.node.host import StateUnusable
from agents.protocol import (
    Access,
    Grant,
    LeaseState,
    MalformedMessage,
    MeterReading,
    Receipt,
    ReceiptEvidence,
    decode,
    encode,
)

TERMINAL_STATES = frozenset({LeaseState.ENDED, LeaseState.FAILED})
LEASES_KEPT = dt.timedelta(
    days=7
)  # how long a finished lease is remembered, so that it never starts again

LeaseKey = tuple[str, int]
MeterKey = tuple[int, int]
ReceiptKey = tuple[str, int, str]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS value (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS lease (
  lease_id TEXT NOT NULL, lease_epoch INTEGER NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY (lease_id, lease_epoch)) STRICT;
CREATE TABLE IF NOT EXISTS meter (
  epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, body TEXT NOT NULL, refused TEXT,
  PRIMARY KEY (epoch, sequence)) STRICT;
CREATE TABLE IF NOT EXISTS receipt (
  number INTEGER PRIMARY KEY, lease_id TEXT NOT NULL, lease_epoch INTEGER NOT NULL, kind TEXT NOT NULL,
  body TEXT NOT NULL, refused TEXT, UNIQUE (lease_id, lease_epoch, kind)) STRICT;
CREATE TABLE IF NOT EXISTS tenancy (
  number INTEGER PRIMARY KEY, lease_id TEXT NOT NULL, lease_epoch INTEGER NOT NULL,
  gpu_uuid TEXT NOT NULL, starts_at TEXT NOT NULL, ends_at TEXT,
  UNIQUE (lease_id, lease_epoch, gpu_uuid)) STRICT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """How far the agent is with a grant. `metered_until` and `returned_at` are whole seconds.

    `is_clean` is false while something of a finished lease may be left on its GPUs. `evidence` is what was
    seen before the handover: the settings in it are those that the return restores.
    """

    grant: Grant
    state: LeaseState
    changed_at: dt.datetime
    detail: str = ""
    access: Access | None = None
    handed_over_at: dt.datetime | None = None
    metered_until: dt.datetime | None = None
    returned_at: dt.datetime | None = None
    return_energies: list[int | None] = field(default_factory=list)
    is_clean: bool = True
    evidence: ReceiptEvidence | None = None

    @property
    def key(self) -> LeaseKey:
        """Return (lease, epoch)."""
        return self.grant.lease_id, self.grant.lease_epoch


class Spool:
    """The state file of one agent. Used by one thread."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        try:
            # Autocommit: each transaction is begun and ended by name below.
            self.connection = sqlite3.connect(path, isolation_level=None)
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=FULL")
            self.connection.executescript(_SCHEMA)
            path.chmod(0o600)
        except (sqlite3.Error, OSError) as error:
            raise StateUnusable(f"cannot use the spool {path}: {error}") from None

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def commit(
        self,
        *,
        leases: Iterable[LeaseRecord] = (),
        meters: Iterable[MeterReading] = (),
        receipts: Iterable[Receipt] = (),
        values: Mapping[str, str] | None = None,
    ) -> None:
        """Write all of this or none of it. A receipt that is already there stays as it is."""
        with _Transaction(self.connection) as connection:
            connection.executemany(
                "INSERT INTO lease VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
                [(*record.key, encode(record).decode()) for record in leases],
            )
            connection.executemany(
                "INSERT INTO meter (epoch, sequence, body) VALUES (?, ?, ?)",
                [(m.epoch, m.sequence, encode(m).decode()) for m in meters],
            )
            connection.executemany(
                "INSERT INTO receipt (lease_id, lease_epoch, kind, body) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                [(r.lease_id, r.lease_epoch, r.kind, encode(r).decode()) for r in receipts],
            )
            connection.executemany(
                "INSERT INTO value VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                list((values or {}).items()),
            )

    def value(self, *, name: str) -> str | None:
        """Return a remembered value, or `None`."""
        row = self.connection.execute("SELECT value FROM value WHERE name = ?", [name]).fetchone()
        return None if row is None else str(row[0])

    def raise_epoch(self, *, above: int = 0) -> int:
        """Return the next epoch, higher than every earlier one and than `above`; it is on the disk."""
        epoch = max(int(self.value(name="epoch") or 0), above) + 1
        self.commit(values={"epoch": str(epoch)})
        return epoch

    def leases(self) -> list[LeaseRecord]:
        """Return all remembered leases.

        :raises StateUnusable: when the file holds something else.
        """
        rows = self.connection.execute("SELECT body FROM lease ORDER BY lease_id, lease_epoch")
        try:
            return [decode(LeaseRecord, body.encode()) for (body,) in rows]
        except MalformedMessage as error:
            raise StateUnusable(f"the spool holds a lease of another version: {error}") from None

    def forget_leases(self, *, before: dt.datetime) -> None:
        """Drop leases that were finished before `before`."""
        old = [r for r in self.leases() if r.state in TERMINAL_STATES and r.changed_at < before]
        with _Transaction(self.connection) as connection:
            connection.executemany(
                "DELETE FROM lease WHERE lease_id = ? AND lease_epoch = ?", [r.key for r in old]
            )

    def meters(self, *, limit: int) -> list[MeterReading]:
        """Return the oldest unsent readings."""
        rows = self.connection.execute(
            "SELECT body FROM meter WHERE refused IS NULL ORDER BY epoch, sequence LIMIT ?", [limit]
        )
        return [decode(MeterReading, body.encode()) for (body,) in rows]

    def receipts(self, *, limit: int) -> list[Receipt]:
        """Return the oldest unsent receipts."""
        rows = self.connection.execute(
            "SELECT body FROM receipt WHERE refused IS NULL ORDER BY number LIMIT ?", [limit]
        )
        return [decode(Receipt, body.encode()) for (body,) in rows]

    def depth(self) -> int:
        """Return how many meters and receipts wait to be sent."""
        query = (
            "SELECT (SELECT count(*) FROM meter WHERE refused IS NULL)"
            " + (SELECT count(*) FROM receipt WHERE refused IS NULL)"
        )
        return int(self.connection.execute(query).fetchone()[0])

    def acknowledge(self, *, meters: Iterable[MeterKey], receipts: Iterable[ReceiptKey]) -> None:
        """Remove what the market has stored."""
        with _Transaction(self.connection) as connection:
            connection.executemany(
                "DELETE FROM meter WHERE epoch = ? AND sequence = ?", list(meters)
            )
            connection.executemany(
                "DELETE FROM receipt WHERE lease_id = ? AND lease_epoch = ? AND kind = ?",
                list(receipts),
            )

    def set_aside(
        self, *, meters: Iterable[MeterKey], receipts: Iterable[ReceiptKey], reason: str
    ) -> None:
        """Keep what the market refuses for good on the disk, but send it no more."""
        why = json.dumps(reason)
        with _Transaction(self.connection) as connection:
            connection.executemany(
                "UPDATE meter SET refused = ? WHERE epoch = ? AND sequence = ?",
                [(why, *key) for key in meters],
            )
            connection.executemany(
                "UPDATE receipt SET refused = ?"
                " WHERE lease_id = ? AND lease_epoch = ? AND kind = ?",
                [(why, *key) for key in receipts],
            )


class _Transaction:
    """One write transaction: committed at the end, rolled back when something was raised."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._connection.execute("COMMIT" if kind is None else "ROLLBACK")
