"""What the spool keeps, for how long, in what order, and what it does when the disk does not."""

from __future__ import annotations

import datetime as dt
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.evidence import METER_SECONDS_MAX
from agents.node.host import StateUnusable
from agents.node.spool import ACKNOWLEDGED_KEPT, Spool, quota
from agents.node.spool.facts import meter_fact, receipt_fact
from agents.node.spool.merging import MERGED_SECONDS_MAX, merge
from agents.node.spool.unwritten import Unwritten
from agents.protocol import (
    REPORT_METERS_MAX,
    Cause,
    EventKind,
    EventSource,
    GpuEvent,
    LeaseState,
    MeterReading,
    encode,
)
from tests.agents.node.test_state import AT, METER, RECEIPT, RECORD

MINUTE = dt.timedelta(minutes=1)
EVENT = GpuEvent(
    epoch=1,
    sequence=1,
    gpu_uuid="GPU-0",
    at=AT,
    kind=EventKind.XID,
    source=EventSource.NVML,
    cause=Cause.UNKNOWN,
    xid=79,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite3"


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    spool = Spool(path=path)
    yield spool
    spool.connection.execute("PRAGMA max_page_count = 1000000")
    spool.close()


def minutes(count: int, *, gpus: int = 1, first: int = 1) -> list[MeterReading]:
    """Return minute readings as the agent writes them: GPU by GPU in each minute."""
    return [
        replace(
            METER,
            sequence=first + minute * gpus + gpu,
            gpu_uuid=f"GPU-{gpu}",
            starts_at=AT + MINUTE * minute,
            ends_at=AT + MINUTE * (minute + 1),
            busy_seconds=30,
            energy_millijoules=1000 + minute,
            memory_used_bytes_max=minute,
        )
        for minute in range(count)
        for gpu in range(gpus)
    ]


def fill(spool: Spool) -> None:
    """Let the disk be full: SQLite may add no page to the file."""
    pages = spool.connection.execute("PRAGMA page_count").fetchone()[0]
    spool.connection.execute(f"PRAGMA max_page_count = {pages}")


def is_writable(spool: Spool) -> bool:
    return spool.is_writable


def empty(spool: Spool) -> None:
    spool.connection.execute("PRAGMA max_page_count = 1000000")


class TestKeeping:
    def test_keeps_what_was_acknowledged_for_a_week_and_does_not_send_it(
        self, spool: Spool
    ) -> None:
        spool.commit(meters=[METER], receipts=[RECEIPT], events=[EVENT])
        spool.acknowledge(
            meters=[(1, 1)], receipts=[("lease-1", 1, "handover")], events=[(1, 1)], at=AT
        )
        assert (spool.depth(), spool.meters(limit=9), spool.events(limit=9)) == (0, [], [])
        spool.tidy(at=AT + ACKNOWLEDGED_KEPT)
        count = "SELECT count(*) FROM fact"
        assert spool.connection.execute(count).fetchone() == (3,)
        spool.tidy(at=AT + ACKNOWLEDGED_KEPT + MINUTE)
        assert spool.connection.execute(count).fetchone() == (0,)

    def test_never_drops_what_waits_or_was_refused(self, spool: Spool) -> None:
        spool.commit(meters=minutes(3))
        spool.set_aside(meters=[(1, 2)], reason="422")
        spool.tidy(at=AT + 100 * ACKNOWLEDGED_KEPT)
        assert [m.sequence for m in spool.meters(limit=9)] == [1, 3]
        assert spool.connection.execute("SELECT count(*) FROM fact").fetchone() == (3,)

    def test_sends_in_the_order_of_writing(self, spool: Spool) -> None:
        for sequence in (10, 9, 100, 2):
            spool.commit(meters=[replace(METER, sequence=sequence)])
        assert [m.sequence for m in spool.meters(limit=3)] == [10, 9, 100]

    def test_counts_what_waits_whatever_kind_it_is_of(self, spool: Spool) -> None:
        spool.commit(meters=minutes(2), receipts=[RECEIPT], events=[EVENT])
        assert spool.depth() == 4
        spool.acknowledge(events=[(1, 1)], at=AT)
        assert spool.depth() == 3

    def test_reads_a_batch_as_fast_behind_a_week_of_old_readings(
        self, spool: Spool, tmp_path: Path
    ) -> None:
        weeks = minutes(7 * 24 * 60, gpus=8)
        assert len(weeks) == 80_640
        fresh = minutes(500, first=1_000_000)
        spool.connection.execute("PRAGMA synchronous=OFF")
        spool.commit(meters=weeks)
        spool.acknowledge(meters=[(m.epoch, m.sequence) for m in weeks], at=AT)
        spool.commit(meters=fresh)
        small = Spool(path=tmp_path / "small.sqlite3")
        small.commit(meters=fresh)

        def cost(one: Spool) -> float:
            tries = []
            for _ in range(5):
                began = time.perf_counter()
                assert one.meters(limit=500) == fresh
                assert one.depth() == 500
                tries.append(time.perf_counter() - began)
            return min(tries)

        assert cost(spool) < 3 * cost(small)
        small.close()


class TestMigration:
    def test_takes_over_the_file_of_the_first_agents(self, path: Path) -> None:
        old = sqlite3.connect(path, isolation_level=None)
        old.executescript(
            # As the first agents made it.
            """
            PRAGMA journal_mode=WAL;
            CREATE TABLE value (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
            CREATE TABLE lease (
              lease_id TEXT NOT NULL, lease_epoch INTEGER NOT NULL, body TEXT NOT NULL,
              PRIMARY KEY (lease_id, lease_epoch)) STRICT;
            CREATE TABLE meter (
              epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, body TEXT NOT NULL, refused TEXT,
              PRIMARY KEY (epoch, sequence)) STRICT;
            CREATE TABLE receipt (
              number INTEGER PRIMARY KEY, lease_id TEXT NOT NULL, lease_epoch INTEGER NOT NULL,
              kind TEXT NOT NULL, body TEXT NOT NULL, refused TEXT,
              UNIQUE (lease_id, lease_epoch, kind)) STRICT;
            CREATE TABLE tenancy (
              number INTEGER PRIMARY KEY, lease_id TEXT NOT NULL, lease_epoch INTEGER NOT NULL,
              gpu_uuid TEXT NOT NULL, starts_at TEXT NOT NULL, ends_at TEXT,
              UNIQUE (lease_id, lease_epoch, gpu_uuid)) STRICT;
            """
        )
        old.execute("INSERT INTO value VALUES ('epoch', '7'), ('node_id', 'n')")
        old.execute("INSERT INTO lease VALUES ('lease-1', 1, ?)", [encode(RECORD).decode()])
        for meter in [*minutes(3)[::-1], replace(METER, epoch=2)]:
            refused = '"422"' if meter.sequence == 2 else None
            row = [meter.epoch, meter.sequence, encode(meter, protocol=1).decode(), refused]
            old.execute("INSERT INTO meter VALUES (?, ?, ?, ?)", row)
        receipt = encode(RECEIPT, protocol=1).decode()
        old.execute("INSERT INTO receipt VALUES (1, 'lease-1', 1, 'handover', ?, NULL)", [receipt])
        old.execute("INSERT INTO tenancy VALUES (1, 'lease-1', 1, 'GPU-0', 'x', NULL)")
        old.close()

        spool = Spool(path=path)
        assert spool.leases() == [RECORD]
        assert [(m.epoch, m.sequence) for m in spool.meters(limit=9)] == [(1, 1), (1, 3), (2, 1)]
        assert spool.receipts(limit=9) == [RECEIPT]
        assert spool.depth() == 4
        assert spool.connection.execute("SELECT count(*) FROM tenancy").fetchone() == (1,)
        assert spool.raise_epoch() == 8
        spool.acknowledge(meters=[(1, 1)], receipts=[("lease-1", 1, "handover")], at=AT)
        spool.close()
        again = Spool(path=path)
        assert [(m.epoch, m.sequence) for m in again.meters(limit=9)] == [(1, 3), (2, 1)]
        again.close()

    def test_refuses_the_file_of_a_newer_agent(self, path: Path) -> None:
        Spool(path=path).close()
        newer = sqlite3.connect(path)
        newer.execute("PRAGMA user_version = 99")
        newer.close()
        with pytest.raises(StateUnusable, match="newer agent"):
            Spool(path=path)


class TestMerging:
    def test_takes_windows_that_the_market_takes(self) -> None:
        assert MERGED_SECONDS_MAX == METER_SECONDS_MAX

    def test_joins_neighbours_up_to_the_longest_window(self) -> None:
        merged = merge(readings=minutes(40))
        assert [len(one.absorbed) for one in merged] == [14, 14, 9]
        first = merged[0].reading
        assert (first.sequence, first.starts_at, first.ends_at) == (1, AT, AT + 15 * MINUTE)
        assert (first.up_seconds, first.busy_seconds) == (900, 450)
        assert first.energy_millijoules == sum(range(1000, 1015))
        assert first.memory_used_bytes_max == 14

    def test_leaves_apart_what_is_not_known_of_both(self) -> None:
        first, second = minutes(2)
        for unknown in (
            replace(second, busy_seconds=None),
            replace(second, energy_millijoules=None),
            replace(second, memory_used_bytes_max=None),
        ):
            assert merge(readings=[first, unknown]) == []

    def test_leaves_apart_what_does_not_touch_or_is_of_another_lease(self) -> None:
        first, second, third = minutes(3)
        assert merge(readings=[first, third]) == []
        assert merge(readings=[first, replace(second, lease_id="lease-2")]) == []
        assert merge(readings=[first, replace(second, lease_epoch=2)]) == []

    @settings(max_examples=50, deadline=None)
    @given(
        known=st.lists(st.booleans(), min_size=1, max_size=40),
        gaps=st.sets(st.integers(0, 39)),
        gpus=st.integers(1, 3),
    )
    def test_loses_no_second_and_no_energy(
        self, known: list[bool], gaps: set[int], gpus: int
    ) -> None:
        readings = [
            replace(m, energy_millijoules=m.energy_millijoules if known[i // gpus] else None)
            for i, m in enumerate(minutes(len(known), gpus=gpus))
            if i // gpus not in gaps
        ]
        merged = merge(readings=readings)
        gone = {part.sequence for one in merged for part in one.absorbed}
        whole = {one.reading.sequence: one.reading for one in merged}
        left = [whole.get(m.sequence, m) for m in readings if m.sequence not in gone]
        for gpu in {m.gpu_uuid for m in readings}:
            before = [m for m in readings if m.gpu_uuid == gpu]
            after = [m for m in left if m.gpu_uuid == gpu]
            for of in ("up_seconds", "busy_seconds", "energy_millijoules"):
                assert sum(getattr(m, of) or 0 for m in before) == sum(
                    getattr(m, of) or 0 for m in after
                )
            assert all(m.ends_at - m.starts_at <= 15 * MINUTE for m in after)
            assert all(a.ends_at <= b.starts_at for a, b in pairwise(after))


class TestQuota:
    def test_gives_up_old_acknowledged_readings_before_it_merges(self, path: Path) -> None:
        spool = Spool(path=path, quota_bytes=1)
        spool.commit(meters=minutes(400))
        spool.acknowledge(meters=[(1, n) for n in range(1, 51)], at=AT)
        spool.tidy(at=AT)
        assert spool.connection.execute("SELECT count(*) FROM fact").fetchone() == (350,)
        assert spool.depth() == 350
        spool.tidy(at=AT)
        assert spool.depth() < 350
        assert "quota" in spool.warnings()[0]

    def test_merges_what_was_never_sent_and_loses_no_second(self, path: Path) -> None:
        spool = Spool(path=path, quota_bytes=1)
        all_readings = minutes(200, gpus=8)
        spool.commit(meters=all_readings)
        sent = spool.meters(limit=REPORT_METERS_MAX)
        spool.tidy(at=AT)
        assert spool.meters(limit=REPORT_METERS_MAX) == sent, "they may have been sent"
        left = spool.meters(limit=10_000)
        assert len(left) < REPORT_METERS_MAX + (len(all_readings) - REPORT_METERS_MAX) / 10
        assert sum(m.up_seconds for m in left) == sum(m.up_seconds for m in all_readings)
        energy = sum(m.energy_millijoules or 0 for m in all_readings)
        assert sum(m.energy_millijoules or 0 for m in left) == energy

    def test_never_merges_receipts_or_events(self, path: Path) -> None:
        spool = Spool(path=path, quota_bytes=1)
        spool.commit(receipts=[RECEIPT], events=[EVENT, replace(EVENT, sequence=2)])
        for _ in range(3):
            spool.tidy(at=AT)
        assert spool.depth() == 3

    def test_goes_on_in_pieces(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quota, "MERGED_ROWS_MAX", 300)
        spool = Spool(path=path, quota_bytes=1)
        spool.commit(meters=minutes(1000))
        depths = []
        for _ in range(6):
            spool.tidy(at=AT)
            depths.append(spool.depth())
        assert depths[0] > depths[1] > depths[2]
        assert depths[-1] == depths[-2] < 200 + 800 / 14 + 4


class TestFullDisk:
    def test_goes_on_from_memory_and_writes_when_it_can(self, spool: Spool, path: Path) -> None:
        fill(spool)
        readings = minutes(500)
        for start in range(0, 500, 50):
            spool.commit(meters=readings[start : start + 50])
        spool.commit(leases=[RECORD], receipts=[RECEIPT], values={"a": "1"})
        assert not is_writable(spool)
        assert "full" in spool.warnings()[0]
        assert spool.meters(limit=1000) == readings
        assert spool.receipts(limit=9) == [RECEIPT]
        assert (spool.leases(), spool.value(name="a")) == ([RECORD], "1")
        assert spool.values(prefix="") == {"a": "1"}
        assert spool.depth() == 501
        spool.acknowledge(meters=[(1, n) for n in range(1, 401)], at=AT)
        assert spool.depth() == 101
        assert spool.meters(limit=1000) == readings[400:]
        empty(spool)
        spool.tidy(at=AT)
        assert is_writable(spool)
        assert spool.warnings() == []
        other = Spool(path=path)
        assert other.meters(limit=1000) == readings[400:]
        assert (other.leases(), other.value(name="a"), other.depth()) == ([RECORD], "1", 101)
        other.close()

    def test_keeps_the_order_of_sending_over_the_gap(self, spool: Spool) -> None:
        readings = minutes(900)
        spool.commit(meters=readings[:300])
        fill(spool)
        spool.commit(meters=readings[300:600])
        empty(spool)
        spool.commit(meters=readings[600:])
        assert spool.meters(limit=1000) == readings

    def test_remembers_the_newest_state_of_a_lease(self, spool: Spool) -> None:
        spool.commit(leases=[RECORD])
        fill(spool)
        spool.commit(meters=minutes(500))
        ended = replace(RECORD, state=LeaseState.ENDED)
        spool.commit(leases=[ended])
        assert spool.leases() == [ended]

    def test_gives_no_new_epoch_that_is_not_on_the_disk(self, spool: Spool) -> None:
        fill(spool)
        spool.commit(meters=minutes(500))
        with pytest.raises(StateUnusable, match="cannot be written"):
            spool.start_epoch()

    def test_is_told_from_a_mistake_of_ours(self, spool: Spool) -> None:
        spool.commit(meters=[METER])
        with pytest.raises(sqlite3.IntegrityError):
            spool.commit(meters=[METER], receipts=[RECEIPT])
        assert spool.is_writable
        assert spool.receipts(limit=9) == []
        spool.commit(receipts=[RECEIPT])
        assert spool.receipts(limit=9) == [RECEIPT]

    def test_that_cannot_be_read_either_leaves_what_is_in_memory(
        self, spool: Spool, path: Path
    ) -> None:
        spool.commit(meters=minutes(2))
        spool.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        spool.connection.execute("DROP INDEX fact_waiting")  # each read of facts fails from here on
        assert spool.meters(limit=9) == []
        assert spool.depth() == 0
        assert not spool.is_writable
        assert "fact_waiting" in spool.warnings()[0]


class TestUnwritten:
    def test_merges_meters_at_its_bound_but_not_those_that_may_have_been_sent(self) -> None:
        readings = minutes(1000)
        unwritten = Unwritten()
        unwritten.add(facts=[receipt_fact(RECEIPT), *map(meter_fact, readings)])
        assert unwritten.shrink(facts_max=500) == 0
        names = [fact.name for fact in unwritten.facts.values()]
        assert len(names) == 1 + REPORT_METERS_MAX + -(-800 // 15)
        assert names[1 : REPORT_METERS_MAX + 1] == [f"1/{n}" for n in range(1, 201)]

    def test_gives_up_meters_but_never_receipts_and_says_how_many(self) -> None:
        apart = [replace(m, lease_epoch=m.sequence) for m in minutes(300)]
        unwritten = Unwritten()
        unwritten.add(facts=[receipt_fact(RECEIPT), *map(meter_fact, apart)])
        assert unwritten.shrink(facts_max=100) == 201
        assert unwritten.given_up == 201
        names = [fact.name for fact in unwritten.facts.values()]
        assert names == ["lease-1/1/handover", *(f"1/{n}" for n in range(202, 301))]
