"""Health seen through the whole agent: events that reach the market once, policies, the owner's word."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Collection
from pathlib import Path

import pytest

from agents.node.provision import ProvisionFailed
from agents.node.provision.simulated import SimulatedProvisioner
from agents.node.reader import ReaderHung, Sample, Xid, lost_sample
from agents.node.simulated import SimulatedReader, parse_fleet
from agents.protocol import (
    Cause,
    EventKind,
    EventSource,
    GpuCounters,
    GpuEvent,
    Health,
    HealthPolicy,
    NodePolicy,
)
from tests.agents.node.rig import START, Rig
from tests.agents.node.scenes import by_kind, enrolled, gpus, grant
from tests.fakes.market import FakeMarket


class FailingReader(SimulatedReader):
    """Simulated GPUs to which a test does harm."""

    def __init__(self) -> None:
        super().__init__(
            fleet=parse_fleet(text="h100x2:idle"),
            node_name="n1",
            machine_id="m1",
            tenancies=lambda _: [],
        )
        self.uuids = [gpu.uuid for gpu in self.identify()]
        self.waiting: list[Xid] = []
        self.lost: set[str] = set()
        self.counted: dict[str, GpuCounters] = {}
        self.counter_reads = 0

    def fail(self, *, xid: int, at: dt.datetime, gpu: int = 0, pid: int | None = None) -> None:
        told = Xid(
            gpu_uuid=self.uuids[gpu],
            xid=xid,
            at=at,
            source=EventSource.KERNEL_LOG,
            pid=pid,
            process_name="py",
        )
        self.waiting.append(told)

    def read(
        self,
        *,
        at: dt.datetime,
        gpu_uuids: Collection[str] | None = None,
        with_processes: Collection[str] = (),
    ) -> list[Sample]:
        samples = super().read(at=at, gpu_uuids=gpu_uuids, with_processes=with_processes)
        return [
            lost_sample(gpu_uuid=s.gpu_uuid, measured_at=at) if s.gpu_uuid in self.lost else s
            for s in samples
        ]

    def counters(self, *, gpu_uuids: Collection[str]) -> list[GpuCounters]:
        self.counter_reads += 1
        return [
            self.counted.get(counted.gpu_uuid, counted)
            for counted in super().counters(gpu_uuids=gpu_uuids)
        ]

    def xids(self) -> list[Xid]:
        waiting, self.waiting = self.waiting, []
        return waiting


@pytest.fixture
def reader(rig: Rig) -> FailingReader:
    reader = FailingReader()
    rig.reader = reader
    return reader


def told(market: FakeMarket) -> list[tuple[EventKind, int | None, Health | None, Cause]]:
    events = [market.events[key] for key in sorted(market.events)]
    return [(e.kind, e.xid, e.health, e.cause) for e in events]


def last_event(market: FakeMarket) -> GpuEvent:
    return market.events[max(market.events)]


def healths(market: FakeMarket) -> list[Health]:
    return [reading.health for reading in market.reports[-1].readings[-2:]]


class TestEvents:
    def test_an_xid_and_what_it_makes_of_the_gpu_reach_the_market_once(
        self, rig: Rig, market: FakeMarket, reader: FailingReader
    ) -> None:
        enrolled(rig)
        reader.fail(xid=119, at=rig.clock.at)
        rig.live(seconds=60)
        assert told(market) == [
            (EventKind.XID, 119, None, Cause.HARDWARE),
            (EventKind.HEALTH, None, Health.QUARANTINED, Cause.HARDWARE),
        ]
        assert healths(market) == [Health.QUARANTINED, Health.HEALTHY]
        assert rig.spool is not None
        assert rig.spool.depth() == 0
        assert sum(len(report.events) for report in market.reports) == 2

    def test_a_quarantine_is_told_at_once(
        self, rig: Rig, market: FakeMarket, reader: FailingReader
    ) -> None:
        market.interval_seconds = 300
        enrolled(rig)
        rig.live(seconds=30)
        before = len(market.reports)
        reader.fail(xid=119, at=rig.clock.at)
        rig.live(seconds=16)
        assert len(market.reports) == before + 1
        assert Health.QUARANTINED in healths(market)

    def test_what_was_seen_while_the_market_was_away_comes_later_in_its_order(
        self, rig: Rig, market: FakeMarket, reader: FailingReader
    ) -> None:
        enrolled(rig)
        market.down()
        reader.fail(xid=119, at=rig.clock.at)
        rig.live(seconds=30)
        reader.lost.add(reader.uuids[1])
        rig.live(seconds=30)
        rig.restart()
        market.up()
        rig.live(seconds=90)
        assert [row[:3] for row in told(market)] == [
            (EventKind.XID, 119, None),
            (EventKind.HEALTH, None, Health.QUARANTINED),
            (EventKind.HEALTH, None, Health.LOST),
        ]

    def test_a_lost_answer_does_not_tell_an_event_twice(
        self, rig: Rig, market: FakeMarket, reader: FailingReader
    ) -> None:
        enrolled(rig)
        market.lose_answers = 3
        reader.fail(xid=119, at=rig.clock.at)
        rig.live(seconds=120)
        assert len(market.events) == 2
        assert rig.spool is not None
        assert rig.spool.depth() == 0

    def test_a_quarantine_survives_the_agent_and_ends_with_a_reboot(
        self, rig: Rig, market: FakeMarket, reader: FailingReader
    ) -> None:
        enrolled(rig)
        reader.fail(xid=119, at=rig.clock.at)
        rig.live(seconds=20)
        rig.restart()
        rig.live(seconds=60)
        assert Health.QUARANTINED in healths(market)
        assert len(market.events) == 2, "nothing new happened"
        rig.boot_id = "boot-2"
        rig.restart()
        rig.live(seconds=60)
        assert healths(market) == [Health.HEALTHY, Health.HEALTHY]
        assert last_event(market).health is Health.HEALTHY

    def test_an_event_names_the_lease_that_had_the_gpu(
        self, rig: Rig, market: FakeMarket, reader: FailingReader
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, count=1)]
        rig.live(seconds=60)
        assert by_kind(market)
        reader.fail(xid=31, at=rig.clock.at)
        reader.fail(xid=31, at=rig.clock.at, gpu=1)
        rig.live(seconds=20)
        leased, other = gpus(market)
        found = {e.gpu_uuid: (e.lease_id, e.lease_epoch, e.cause) for e in market.events.values()}
        assert found == {leased: ("lease-1", 1, Cause.TENANT), other: (None, None, Cause.UNKNOWN)}
        assert all(reading.health is Health.HEALTHY for reading in market.reports[-1].readings)

    @pytest.mark.parametrize(
        ("is_in_container", "cause"), [(True, Cause.TENANT), (False, Cause.UNKNOWN)]
    )
    def test_a_tenants_fault_is_known_by_the_control_group_of_its_container(
        self,
        rig: Rig,
        market: FakeMarket,
        reader: FailingReader,
        monkeypatch: pytest.MonkeyPatch,
        is_in_container: bool,  # noqa: FBT001 - pytest passes by name
        cause: Cause,
    ) -> None:
        # The mark is whatever stands in this process's own group: it plays the tenant's process.
        mark = Path("/proc/self/cgroup").read_text() if is_in_container else "of another container"
        marks = {mark: "lease-1"}
        monkeypatch.setattr(SimulatedProvisioner, "cgroup_marks", lambda _: marks)
        enrolled(rig)
        market.grants = [grant(market, count=1)]
        rig.live(seconds=60)
        reader.fail(xid=31, at=rig.clock.at, pid=os.getpid())
        rig.live(seconds=20)
        assert told(market) == [(EventKind.XID, 31, None, cause)]

    def test_xids_of_a_reader_that_hangs_are_told_all_the_same(
        self,
        rig: Rig,
        market: FakeMarket,
        reader: FailingReader,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        enrolled(rig)

        def hang(**_: object) -> None:
            raise ReaderHung("stuck")

        monkeypatch.setattr(reader, "read", hang)
        reader.fail(xid=119, at=rig.clock.at)
        rig.live(seconds=40)
        assert (EventKind.HEALTH, None, Health.QUARANTINED, Cause.HARDWARE) in told(market)

    def test_a_gpu_that_the_driver_lists_no_more_is_lost(
        self,
        rig: Rig,
        market: FakeMarket,
        reader: FailingReader,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        enrolled(rig)
        identities = reader.identify()
        whole = reader.read
        monkeypatch.setattr(reader, "identify", lambda: identities[:1])
        monkeypatch.setattr(
            reader,
            "read",
            lambda **how: [s for s in whole(**how) if s.gpu_uuid == identities[0].uuid],
        )
        rig.live(seconds=90)
        event = last_event(market)
        assert (event.gpu_uuid, event.health) == (identities[1].uuid, Health.LOST)
        assert event.reason == "the driver no longer lists this GPU"


class TestChecksAroundALease:
    def test_quarantine_what_does_not_come_back_clean_and_say_under_which_lease(
        self,
        rig: Rig,
        market: FakeMarket,
        reader: FailingReader,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=1, count=1)]

        def fail(*_: object, **__: object) -> None:
            raise ProvisionFailed("it does not go away")

        monkeypatch.setattr("agents.node.provision.simulated.SimulatedProvisioner.stop", fail)
        rig.live(seconds=200)
        leased, _ = gpus(market)
        event = last_event(market)
        assert (event.gpu_uuid, event.health) == (leased, Health.QUARANTINED)
        assert (event.lease_id, event.lease_epoch) == ("lease-1", 1)
        rig.restart()
        rig.live(seconds=60)
        health = {r.gpu_uuid: r.health for r in market.reports[-1].readings}
        assert health[leased] is Health.QUARANTINED, "a restart of the agent cleans nothing"


class TestCounters:
    def test_are_read_once_a_minute_and_told(
        self, rig: Rig, market: FakeMarket, reader: FailingReader
    ) -> None:
        enrolled(rig)
        rig.live(seconds=600)
        assert 9 <= reader.counter_reads <= 12
        assert {c.gpu_uuid for report in market.reports for c in report.counters} == set(
            reader.uuids
        )

    def test_are_read_at_once_when_the_driver_hints_at_more(
        self, rig: Rig, market: FakeMarket, reader: FailingReader
    ) -> None:
        enrolled(rig)
        rig.live(seconds=10)
        reads = reader.counter_reads
        reader.fail(xid=154, at=rig.clock.at)
        reader.counted[reader.uuids[0]] = GpuCounters(gpu_uuid=reader.uuids[0], recovery_action=1)
        rig.live(seconds=12)
        assert reader.counter_reads == reads + 1
        assert Health.QUARANTINED in healths(market)


class TestPolicy:
    def test_is_followed_told_and_survives_a_restart(
        self, rig: Rig, market: FakeMarket, reader: FailingReader
    ) -> None:
        enrolled(rig)
        market.policy = NodePolicy(version=3, health=HealthPolicy(xid_rules={"31": "quarantine"}))
        rig.live(seconds=20)
        market.policy = None
        rig.restart()
        reader.fail(xid=31, at=rig.clock.at)
        rig.live(seconds=20)
        assert market.reports[-1].policy_version == 3
        assert Health.QUARANTINED in healths(market)

    def test_that_makes_no_sense_is_not_followed(
        self, rig: Rig, market: FakeMarket, reader: FailingReader
    ) -> None:
        enrolled(rig)
        market.policy = NodePolicy(version=4, health=HealthPolicy(xid_rules={"31": "shrug"}))
        rig.live(seconds=20)
        reader.fail(xid=31, at=rig.clock.at)
        rig.live(seconds=20)
        assert market.reports[-1].policy_version == 0

    def test_the_owners_word_ends_a_quarantine(
        self, rig: Rig, market: FakeMarket, reader: FailingReader
    ) -> None:
        enrolled(rig)
        reader.fail(xid=119, at=rig.clock.at)
        rig.live(seconds=30)
        market.vouched_at = START + dt.timedelta(seconds=30)
        rig.live(seconds=30)
        assert healths(market) == [Health.HEALTHY, Health.HEALTHY]
        assert last_event(market).health is Health.HEALTHY
        assert last_event(market).cause is Cause.UNKNOWN
