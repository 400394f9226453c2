"""What the agent keeps on the disk: its key, its lock, its spool."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest

from agents.node import host
from agents.node.host import StateUnusable
from agents.node.spool import LeaseRecord, Spool
from agents.protocol import DesiredState, Grant, LeaseState, MeterReading, Receipt, ReceiptKind

AT = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)

GRANT = Grant(
    lease_id="lease-1",
    lease_epoch=1,
    gpu_uuids=["GPU-0"],
    not_before=AT,
    not_after=AT + dt.timedelta(hours=1),
    desired_state=DesiredState.RUN,
    ssh_public_keys=["ssh-ed25519 " + "A" * 600],
)
METER = MeterReading(
    epoch=1,
    sequence=1,
    lease_id="lease-1",
    lease_epoch=1,
    gpu_uuid="GPU-0",
    starts_at=AT,
    ends_at=AT + dt.timedelta(seconds=60),
    up_seconds=60,
    busy_seconds=None,
)
RECEIPT = Receipt(
    kind=ReceiptKind.HANDOVER,
    lease_id="lease-1",
    lease_epoch=1,
    node_id="node-1",
    gpu_uuids=["GPU-0"],
    at=AT,
    energy_millijoules=[None],
)
RECORD = LeaseRecord(grant=GRANT, state=LeaseState.ACTIVE, changed_at=AT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite3"


class TestSpool:
    def test_gives_back_after_a_restart_what_was_committed(self, path: Path) -> None:
        spool = Spool(path=path)
        spool.commit(leases=[RECORD], meters=[METER], receipts=[RECEIPT], values={"node_id": "n"})
        spool.close()
        again = Spool(path=path)
        assert again.leases() == [RECORD]
        assert again.meters(limit=10) == [METER]
        assert again.receipts(limit=10) == [RECEIPT]
        assert again.value(name="node_id") == "n"
        assert again.depth() == 2

    def test_is_durable_at_every_commit(self, path: Path) -> None:
        spool = Spool(path=path)
        assert spool.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert spool.connection.execute("PRAGMA synchronous").fetchone() == (2,), "2 is FULL"
        assert path.stat().st_mode & 0o077 == 0

    def test_writes_all_or_nothing(self, path: Path) -> None:
        spool = Spool(path=path)
        spool.commit(meters=[METER])
        with pytest.raises(Exception, match="UNIQUE"):
            spool.commit(leases=[RECORD], receipts=[RECEIPT], meters=[METER])
        assert spool.leases() == []
        assert spool.receipts(limit=10) == []

    def test_keeps_the_first_receipt_of_a_kind(self, path: Path) -> None:
        spool = Spool(path=path)
        spool.commit(receipts=[RECEIPT])
        spool.commit(receipts=[replace(RECEIPT, detail="another")])
        assert spool.receipts(limit=10) == [RECEIPT]

    def test_removes_only_what_was_acknowledged(self, path: Path) -> None:
        spool = Spool(path=path)
        spool.commit(meters=[METER, replace(METER, sequence=2)], receipts=[RECEIPT])
        spool.acknowledge(meters=[(1, 1)], receipts=[], at=AT)
        assert [m.sequence for m in spool.meters(limit=10)] == [2]
        spool.acknowledge(meters=[], receipts=[("lease-1", 1, "return")], at=AT)
        assert spool.receipts(limit=10) == [RECEIPT]
        spool.acknowledge(meters=[], receipts=[("lease-1", 1, "handover")], at=AT)
        assert spool.depth() == 1

    def test_keeps_but_does_not_send_what_the_market_refuses_for_good(self, path: Path) -> None:
        spool = Spool(path=path)
        spool.commit(meters=[METER], receipts=[RECEIPT])
        spool.set_aside(meters=[(1, 1)], receipts=[("lease-1", 1, "handover")], reason="422 x")
        assert (spool.meters(limit=10), spool.receipts(limit=10), spool.depth()) == ([], [], 0)
        kept = spool.connection.execute("SELECT count(*) FROM fact").fetchone()
        assert kept == (2,)

    def test_raises_the_epoch_at_each_start_and_above_what_the_market_knows(
        self, path: Path
    ) -> None:
        assert [Spool(path=path).raise_epoch() for _ in range(3)] == [1, 2, 3]
        assert Spool(path=path).raise_epoch(above=70) == 71
        assert Spool(path=path).raise_epoch(above=5) == 72

    def test_forgets_finished_leases_after_a_while_and_running_ones_never(self, path: Path) -> None:
        spool = Spool(path=path)
        other = replace(GRANT, lease_id="lease-2")
        ended = LeaseRecord(grant=other, state=LeaseState.ENDED, changed_at=AT)
        spool.commit(leases=[RECORD, ended])
        spool.forget_leases(before=AT)
        assert len(spool.leases()) == 2
        spool.forget_leases(before=AT + dt.timedelta(seconds=1))
        assert spool.leases() == [RECORD]

    def test_says_that_a_file_is_no_spool(self, path: Path) -> None:
        path.write_bytes(b"no database at all, only some text that is long enough to be read")
        with pytest.raises(StateUnusable, match=r"cannot use the spool .*spool\.sqlite3"):
            Spool(path=path)

    def test_says_that_a_lease_is_of_another_version(self, path: Path) -> None:
        spool = Spool(path=path)
        spool.connection.execute("INSERT INTO lease VALUES ('x', 1, '{\"new\": 1}')")
        with pytest.raises(StateUnusable, match="another version"):
            spool.leases()


class TestKey:
    def test_is_private_and_stays_the_same(self, tmp_path: Path) -> None:
        key = host.load_key(directory=tmp_path)
        assert (tmp_path / "node.key").stat().st_mode & 0o777 == 0o600
        assert host.load_key(directory=tmp_path) == key

    def test_does_not_show_in_a_log(self, tmp_path: Path) -> None:
        key = host.load_key(directory=tmp_path)
        assert key.seed.hex() not in repr(key)
        assert repr(key.seed) not in repr(key)

    @pytest.mark.parametrize("text", ["", "00", "no hex", "00" * 33])
    def test_that_is_broken_is_not_replaced_in_silence(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "node.key").write_text(text)
        with pytest.raises(StateUnusable, match="holds no key"):
            host.load_key(directory=tmp_path)
        assert (tmp_path / "node.key").read_text() == text


class TestStateDirectory:
    def test_is_private(self, tmp_path: Path) -> None:
        host.open_state(directory=tmp_path / "a" / "b").close()
        assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700

    def test_serves_one_agent_at_a_time(self, tmp_path: Path) -> None:
        lock = host.open_state(directory=tmp_path)
        with pytest.raises(StateUnusable, match="another agent runs"):
            host.open_state(directory=tmp_path)
        lock.close()
        host.open_state(directory=tmp_path).close()

    def test_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StateUnusable, match="cannot use the state directory"):
            host.open_state(directory=tmp_path / "file" / "state")


def test_simulated_machines_on_one_host_are_two(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = host.simulated_machine_id(directory=tmp_path / "a")
    assert first != host.simulated_machine_id(directory=tmp_path / "b")
    assert first == host.simulated_machine_id(directory=tmp_path / "a")
