"""Liveness without a row update per report: what was heard is collected here and written once a second.

A beat is a report that says nothing new. Each process keeps the newest one of every node and writes all of
them in one statement. A process that is killed loses a second of them, which costs a node a second of its
age and nothing else: every fact goes through the transaction of `ingest`.

A beat may be repeated by whoever recorded it, for as long as its signature is taken. It can only move a
node's pair and its last report forward, and a pair that is written already moves nothing.
"""

import atexit
import datetime as dt
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from django.conf import settings
from django.db import Error, close_old_connections, connection
from prometheus_client import Counter

log = structlog.get_logger(__name__)

FLUSH_SECONDS = 1.0
# One statement holds its rows for some ten milliseconds; more nodes take several.
FLUSH_NODES_MAX = 2_000

BEATS = Counter("headroom_agent_beats", "Reports that said nothing new")
FLUSHES_FAILED = Counter(
    "headroom_agent_beat_flushes_failed", "Writes of beats that are tried again"
)

# The rows are taken in one order, so that two processes that heard the same nodes wait for each other
# instead of blocking each other. A beat of a former key must not move the pair of the present one.
_WRITE = """
WITH beat AS (
    SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::timestamptz[])
        AS b (node_id, enrolment, epoch, sequence, at)
), held AS (
    SELECT n.id, beat.epoch, beat.sequence, beat.at
    FROM agents_node n JOIN beat ON beat.node_id = n.id
    WHERE n.enrolments = beat.enrolment
        AND n.status <> 'revoked'
        AND (beat.epoch, beat.sequence) > (n.last_epoch, n.last_sequence)
    ORDER BY n.id
    FOR NO KEY UPDATE OF n
)
UPDATE agents_node n
SET last_epoch = held.epoch,
    last_sequence = held.sequence,
    last_report_at = GREATEST(n.last_report_at, held.at)
FROM held
WHERE n.id = held.id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A node was heard at `at` with this pair. `enrolment` counts the keys that the machine has had."""

    node_id: str
    enrolment: int
    epoch: int
    sequence: int
    at: dt.datetime

    def is_newer_than(self, other: "Beat") -> bool:
        """Say which of two beats of one node counts."""
        own = (self.enrolment, self.epoch, self.sequence)
        return own > (other.enrolment, other.epoch, other.sequence)


class BeatBook:
    """The beats that this process has heard and not yet written, the newest of each node."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._beats: dict[str, Beat] = {}
        self._writing = threading.Lock()
        self._writer_of_process: int | None = None
        self._ends = threading.Event()

    def note(self, *, beat: Beat) -> None:
        """Keep a beat until it is written: within a second, or at once where the settings say so."""
        BEATS.inc()
        if settings.AGENT_BEATS_AT_ONCE:
            write(beats=[beat])
            return
        with self._lock:
            self._keep(beat)
            if self._writer_of_process != os.getpid():
                self._start_writer()

    def flush(self) -> int:
        """Write all that is kept; return of how many nodes. What cannot be written is kept for the next time.

        :raises Error: when PostgreSQL does not take it.
        """
        with self._writing:
            with self._lock:
                beats, self._beats = list(self._beats.values()), {}
            beats.sort(key=lambda beat: beat.node_id)
            for start in range(0, len(beats), FLUSH_NODES_MAX):
                try:
                    write(beats=beats[start : start + FLUSH_NODES_MAX])
                except Error:
                    with self._lock:
                        for beat in beats[start:]:
                            self._keep(beat)
                    raise
            return len(beats)

    def _keep(self, beat: Beat) -> None:
        known = self._beats.get(beat.node_id)
        if known is None or beat.is_newer_than(known):
            self._beats[beat.node_id] = beat

    def _start_writer(self) -> None:
        """Start the thread of this process: a thread does not survive a fork."""
        self._writer_of_process = os.getpid()
        threading.Thread(target=self._write_for_ever, name="beats", daemon=True).start()
        atexit.register(self._write_the_last)

    def _write_for_ever(self) -> None:
        while not self._ends.wait(FLUSH_SECONDS):
            self._write_or_log()

    def _write_the_last(self) -> None:
        self._ends.set()
        self._write_or_log()

    def _write_or_log(self) -> None:
        try:
            close_old_connections()
            self.flush()
        except Error as error:
            FLUSHES_FAILED.inc()
            log.warning("beats_not_written", detail=str(error))


def write(*, beats: Sequence[Beat]) -> int:
    """Move the pairs and last reports of nodes forward, never back; return how many moved.

    There is at most one beat of a node among them.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            _WRITE,
            [
                [beat.node_id for beat in beats],
                [beat.enrolment for beat in beats],
                [beat.epoch for beat in beats],
                [beat.sequence for beat in beats],
                [beat.at for beat in beats],
            ],
        )
        return int(cursor.rowcount)


book = BeatBook()
