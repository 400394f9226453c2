"""The tables of the spool, and how a file of an older agent becomes one of this agent."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from agents.node.host import StateUnusable
from agents.node.spool.facts import FactKind

VERSION = 1

# `number` is the order of writing, and that of sending. A fact waits until it is acknowledged, or refused for
# good. The two indexes are partial: what waits is found at once, however much is kept that does not.
_TABLES = """
CREATE TABLE IF NOT EXISTS value (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS lease (
  lease_id TEXT NOT NULL, lease_epoch INTEGER NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY (lease_id, lease_epoch)) STRICT;
CREATE TABLE IF NOT EXISTS fact (
  number INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL,
  refused TEXT, acknowledged_at TEXT, UNIQUE (kind, name)) STRICT;
CREATE INDEX IF NOT EXISTS fact_waiting ON fact (kind, number)
  WHERE acknowledged_at IS NULL AND refused IS NULL;
CREATE INDEX IF NOT EXISTS fact_acknowledged ON fact (acknowledged_at)
  WHERE acknowledged_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS tenancy (
  number INTEGER PRIMARY KEY, lease_id TEXT NOT NULL, lease_epoch INTEGER NOT NULL,
  gpu_uuid TEXT NOT NULL, starts_at TEXT NOT NULL, ends_at TEXT,
  UNIQUE (lease_id, lease_epoch, gpu_uuid)) STRICT;
"""

# The first spools had a table for each kind of fact and no version.
_FROM_FIRST = f"""
INSERT INTO fact (kind, name, body, refused)
  SELECT '{FactKind.METER}', epoch || '/' || sequence, body, refused FROM meter
  ORDER BY epoch, sequence;
INSERT INTO fact (kind, name, body, refused)
  SELECT '{FactKind.RECEIPT}', lease_id || '/' || lease_epoch || '/' || kind, body, refused
  FROM receipt ORDER BY number;
DROP TABLE meter;
DROP TABLE receipt;
"""  # noqa: S608 - the kinds are our own constants


def open_file(*, path: Path) -> sqlite3.Connection:
    """Open the spool, make it or bring it up to this agent's version; what commits is on the disk.

    :raises StateUnusable: when it cannot be used, or a newer agent wrote it.
    """
    try:
        # Autocommit: each transaction is begun and ended by name.
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise StateUnusable(
                f"the spool {path} was written by a newer agent (version {version}, not {VERSION})"
            )
        if version < VERSION:
            _migrate(connection)
        path.chmod(0o600)
    except (sqlite3.Error, OSError) as error:
        raise StateUnusable(f"cannot use the spool {path}: {error}") from None
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring a file up to this version, whole or not at all."""
    first = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meter'").fetchone()
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_TABLES} {_FROM_FIRST if first else ''}"
            f" PRAGMA user_version={VERSION}; COMMIT;"
        )
    except sqlite3.Error:
        connection.rollback()
        raise
