"""Keep the spool within its share of the disk without losing what is not acknowledged."""

from __future__ import annotations

import datetime as dt
import sqlite3

from agents.node.spool.facts import FactKind, meter_fact
from agents.node.spool.merging import merge
from agents.protocol import REPORT_METERS_MAX, MeterReading, decode, to_json

QUOTA_BYTES_DEFAULT = 1024 * 1024 * 1024
TIGHT_PERCENT = 90  # of the quota; from here on room is made
PRUNED_ROWS_MAX = 5000  # in one go: some ten milliseconds
MERGED_ROWS_MAX = 2000  # in one go: some hundred milliseconds, most of them for reading JSON


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return how much of the file is in use; room that was freed inside it is used again."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


def prune_acknowledged(connection: sqlite3.Connection, *, before: dt.datetime | None) -> int:
    """Drop the oldest acknowledged facts, those from before an instant or any; return how many."""
    cursor = connection.execute(
        "DELETE FROM fact WHERE number IN (SELECT number FROM fact"
        " WHERE acknowledged_at IS NOT NULL AND (?1 IS NULL OR acknowledged_at < ?1)"
        " ORDER BY acknowledged_at LIMIT ?2)",
        [None if before is None else to_json(before), PRUNED_ROWS_MAX],
    )
    return cursor.rowcount


def merge_waiting(connection: sqlite3.Connection, *, after: int) -> int:
    """Join neighbouring meters beyond number `after` that were never sent; return how far it came.

    The first `REPORT_METERS_MAX` that wait may have been sent under their names, and a report takes no
    others: they are left alone.
    """
    waiting = "kind = ? AND acknowledged_at IS NULL AND refused IS NULL"
    untouched = connection.execute(
        f"SELECT number FROM fact WHERE {waiting} ORDER BY number LIMIT 1 OFFSET ?",  # noqa: S608
        [FactKind.METER, REPORT_METERS_MAX],
    ).fetchone()
    if untouched is None:
        return after
    rows = connection.execute(
        f"SELECT number, body FROM fact WHERE {waiting} AND number >= ? AND number > ?"  # noqa: S608
        " ORDER BY number LIMIT ?",
        [FactKind.METER, untouched[0], after, MERGED_ROWS_MAX],
    ).fetchall()
    for merged in merge(readings=[decode(MeterReading, body.encode()) for _, body in rows]):
        whole = meter_fact(merged.reading)
        connection.execute(
            "UPDATE fact SET body = ? WHERE kind = ? AND name = ?",
            [whole.body, whole.kind, whole.name],
        )
        connection.executemany(
            "DELETE FROM fact WHERE kind = ? AND name = ?",
            [meter_fact(part).key for part in merged.absorbed],
        )
    return int(rows[-1][0]) if rows else after
