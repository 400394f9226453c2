"""Idleness seen through the whole agent: reported at once, asked for, cured, and never on a leased GPU."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import replace

import pytest

from agents.node.cure import NotCured
from agents.node.reader import ReaderHung, Sample
from agents.node.simulated import SimulatedReader, parse_fleet
from agents.protocol import Health, IdleState, Reading
from tests.agents.node.rig import Rig
from tests.agents.node.scenes import enrolled, gpus, grant
from tests.agents.node.test_offering import HeldJobs, Scheduler
from tests.fakes.market import FakeMarket

GHOST_SECONDS = 600


class ScriptedReader(SimulatedReader):
    """Two idle GPUs of which a test makes the first what it likes, with lists only where asked for."""

    def __init__(self, rig: Rig) -> None:
        del rig
        super().__init__(
            fleet=parse_fleet(text="h100x2:idle"),
            node_name="n1",
            machine_id="m1",
            tenancies=lambda _: [],
        )
        self.first: dict[str, object] = {}
        self.reads: list[set[str]] = []
        self._listed: dict[str, tuple[int | None, dt.datetime]] = {}

    def read(
        self,
        *,
        at: dt.datetime,
        gpu_uuids: Collection[str] | None = None,
        with_processes: Collection[str] = (),
    ) -> list[Sample]:
        self.reads.append(set(with_processes))
        samples = super().read(at=at, gpu_uuids=gpu_uuids, with_processes=with_processes)
        told = []
        for sample in samples:
            now = replace(sample, **self.first) if sample.gpu_uuid == self._uuids[0] else sample  # type: ignore[arg-type]
            if now.gpu_uuid in with_processes:
                self._listed[now.gpu_uuid] = (now.process_count, at)
            count, listed_at = self._listed.get(now.gpu_uuid, (None, None))
            told.append(replace(now, process_count=count, processes_at=listed_at))
        return told


GHOST: dict[str, object] = {"utilization_percent": 100, "utilization_max_percent": 100}
HELD: dict[str, object] = {"memory_used_bytes": 40 << 30, "process_count": 1}


@pytest.fixture
def reader(rig: Rig) -> ScriptedReader:
    rig.reader = reader = ScriptedReader(rig)
    return reader


def last(market: FakeMarket, gpu_uuid: str) -> Reading:
    readings = [r for report in market.reports for r in report.readings if r.gpu_uuid == gpu_uuid]
    return readings[-1]


class TestOffers:
    def test_a_gpu_is_offerable_after_a_quiet_while(
        self, rig: Rig, market: FakeMarket, reader: ScriptedReader
    ) -> None:
        del reader
        rig.live(seconds=60)
        assert {last(market, uuid).idle_state for uuid in gpus(market)} == {IdleState.OFFERABLE}

    def test_a_withdrawal_is_reported_at_once(
        self, rig: Rig, market: FakeMarket, reader: ScriptedReader
    ) -> None:
        market.interval_seconds = 60
        rig.live(seconds=150)
        first = gpus(market)[0]
        assert last(market, first).idle_state is IdleState.OFFERABLE
        reports = len(market.reports)
        reader.first = HELD
        rig.live(seconds=16)
        assert len(market.reports) == reports + 1
        reading = last(market, first)
        assert (reading.idle_state, reading.idle_since) == (IdleState.BUSY, None)
        assert reading.idle_reason == "1 process holds 40.0 GiB"

    def test_processes_are_listed_about_once_a_minute(
        self, rig: Rig, market: FakeMarket, reader: ScriptedReader
    ) -> None:
        rig.live(seconds=100)
        reader.reads.clear()
        rig.live(seconds=600)
        listed = [wanted for wanted in reader.reads if wanted]
        assert 8 <= len(listed) <= 11
        assert market.reports

    def test_memory_that_moves_is_looked_into_with_the_same_look(
        self, rig: Rig, market: FakeMarket, reader: ScriptedReader
    ) -> None:
        rig.live(seconds=100)
        first = gpus(market)[0]
        reader.reads.clear()
        reader.first = {"memory_used_bytes": 50 << 20, "process_count": 1}
        rig.live(seconds=16)
        assert {first} in reader.reads
        assert last(market, first).idle_state is IdleState.BUSY

    def test_what_nobody_could_read_was_not_quiet(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rig.live(seconds=60)

        def hang(*_: object, **__: object) -> None:
            raise ReaderHung("stuck")

        with monkeypatch.context() as patch:
            patch.setattr(SimulatedReader, "read", hang)
            rig.live(seconds=90)
        rig.live(seconds=6)
        reading = market.reports[-1].readings[-1]
        assert reading.idle_state is IdleState.UNKNOWN
        rig.live(seconds=40)
        assert market.reports[-1].readings[-1].idle_state is IdleState.OFFERABLE

    def test_a_leased_gpu_is_busy_and_its_processes_are_hardly_listed(
        self, rig: Rig, market: FakeMarket, reader: ScriptedReader
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, count=1)]
        rig.live(seconds=90)
        leased, other = gpus(market)
        reader.reads.clear()
        rig.live(seconds=90)
        assert last(market, leased).idle_state is IdleState.BUSY
        assert last(market, leased).idle_reason == "a lease has it"
        assert last(market, other).idle_state is IdleState.OFFERABLE
        assert any(reader.reads)
        assert sum(leased in wanted for wanted in reader.reads) <= 1, "once in five minutes"


class TestScheduler:
    def test_is_asked_about_free_gpus_alone(
        self, rig: Rig, market: FakeMarket, reader: ScriptedReader
    ) -> None:
        rig.scheduler = scheduler = Scheduler()
        reader.first = HELD
        rig.live(seconds=60)
        held, free = gpus(market)
        assert scheduler.asked
        assert {uuid for asked in scheduler.asked for uuid in asked} == {free}
        assert last(market, free).idle_state is IdleState.OFFERABLE
        assert last(market, held).idle_state is IdleState.BUSY

    def test_withdraws_a_gpu_that_it_has_given_to_a_job(self, rig: Rig, market: FakeMarket) -> None:
        rig.scheduler = scheduler = Scheduler()
        rig.live(seconds=60)
        first = gpus(market)[0]
        assert last(market, first).idle_state is IdleState.OFFERABLE
        scheduler.busy = {first}
        rig.live(seconds=50)
        reading = last(market, first)
        assert reading.idle_state is IdleState.FREE
        assert reading.idle_reason == "free, but the owner's scheduler has it allocated"

    def test_is_heard_as_soon_as_it_answers(self, rig: Rig, market: FakeMarket) -> None:
        rig.scheduler, rig.jobs = Scheduler(), (jobs := HeldJobs())
        rig.live(seconds=31)
        first = gpus(market)[0]
        assert last(market, first).idle_state is IdleState.FREE
        assert rig.agent is not None
        jobs.ends[0]()
        rig.agent.step()
        rig.live(seconds=6)
        assert last(market, first).idle_state is IdleState.OFFERABLE


class TestCure:
    def test_makes_a_latched_gpu_free_again(
        self, rig: Rig, market: FakeMarket, reader: ScriptedReader
    ) -> None:
        cured: list[str] = []

        def cure(gpu_uuid: str) -> None:
            cured.append(gpu_uuid)
            reader.first = {"power_draw_milliwatts": 110_000, "energy_millijoules": None}

        rig.cure = cure
        reader.first = GHOST
        rig.live(seconds=GHOST_SECONDS - 30)
        latched = gpus(market)[0]
        assert (cured, last(market, latched).health) == ([], Health.HEALTHY)
        rig.live(seconds=60)
        assert cured == [latched]
        suspect = next(
            r
            for report in market.reports
            for r in report.readings
            if r.gpu_uuid == latched and r.health is Health.SUSPECT
        )
        assert suspect.idle_state is IdleState.BUSY
        assert suspect.health_reason.startswith("suspect: latched, 100 % load")
        rig.live(seconds=60)
        assert last(market, latched).idle_state is IdleState.OFFERABLE
        assert last(market, latched).health is Health.HEALTHY

    def test_that_fails_leaves_the_gpu_suspect_and_is_given_up(
        self, rig: Rig, market: FakeMarket, reader: ScriptedReader, caplog: pytest.LogCaptureFixture
    ) -> None:
        tries: list[str] = []

        def cure(gpu_uuid: str) -> None:
            tries.append(gpu_uuid)
            raise NotCured("libcuda.so.1 is not on this machine")

        rig.cure = cure
        reader.first = GHOST
        rig.live(seconds=5 * GHOST_SECONDS)
        assert len(tries) == 3
        assert last(market, tries[0]).health is Health.SUSPECT
        assert "reset the GPU" in last(market, tries[0]).idle_reason
        assert "was not cured: libcuda.so.1 is not on this machine" in caplog.text

    def test_is_never_tried_on_a_leased_gpu(
        self, rig: Rig, market: FakeMarket, reader: ScriptedReader
    ) -> None:
        tries: list[str] = []
        rig.cure = tries.append
        enrolled(rig)
        market.grants = [grant(market, count=1, minutes=60)]
        rig.live(seconds=60)
        reader.first = GHOST
        rig.live(seconds=3 * GHOST_SECONDS)
        assert tries == []
