"""GPUs that hang, are lost, come back from a lease, or are simulated, seen through the whole agent."""

from __future__ import annotations

import datetime as dt
import itertools
from collections import Counter
from collections.abc import Collection

import pytest

from agents.node.reader import ReaderHung, Sample, lost_sample
from agents.node.simulated import SimulatedReader, parse_fleet
from agents.protocol import Health, ReceiptKind
from tests.agents.node.rig import START, Rig
from tests.agents.node.scenes import assert_meters_fill_the_lease, by_kind, enrolled, gpus, grant
from tests.fakes.market import FakeMarket


class TestGpus:
    def test_a_reader_that_hangs_is_reported_and_starts_no_lease(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)

        def hang(*_: object, **__: object) -> None:
            raise ReaderHung("stuck")

        with monkeypatch.context() as patch:
            patch.setattr(SimulatedReader, "read", hang)
            market.grants = [grant(market, minutes=10)]
            rig.live(seconds=120)
            assert market.receipts == []
            hung = market.reports[-1]
            assert hung.reader_hung_since is not None
            assert hung.readings == []
        rig.live(seconds=60)
        recovered = market.reports[-1]
        assert recovered.reader_hung_since is None
        assert ReceiptKind.HANDOVER in by_kind(market)

    def test_a_hang_in_the_middle_of_a_lease_is_delivered_with_unknown_load(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=90)

        def hang(*_: object, **__: object) -> None:
            raise ReaderHung("stuck")

        with monkeypatch.context() as patch:
            patch.setattr(SimulatedReader, "read", hang)
            rig.live(seconds=30)
        rig.live(seconds=200)
        assert_meters_fill_the_lease(market)
        assert any(m.busy_seconds is None for m in market.meters.values())

    def test_a_lost_gpu_is_not_delivered_and_says_so(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=90)
        whole = SimulatedReader.read

        fallen = gpus(market)[1]

        def lose_one(
            self: SimulatedReader, *, at: dt.datetime, gpu_uuids: Collection[str], **_: object
        ) -> list[Sample]:
            return [
                lost_sample(gpu_uuid=fallen, measured_at=at) if s.gpu_uuid == fallen else s
                for s in whole(self, at=at, gpu_uuids=gpu_uuids)
            ]

        monkeypatch.setattr(SimulatedReader, "read", lose_one)
        rig.live(seconds=200)
        healths = {r.gpu_uuid: r.health for r in market.reports[-1].readings}
        alive, dead = gpus(market)
        assert healths == {alive: Health.HEALTHY, dead: Health.LOST}
        up = Counter[str]()
        for meter in market.meters.values():
            up[meter.gpu_uuid] += meter.up_seconds
        assert up[alive] == 180
        assert up[dead] < 80

    def test_leased_gpus_are_read_half_as_often_and_together_at_every_change(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        market.interval_seconds = 30
        reads: list[tuple[float, frozenset[str]]] = []
        whole = SimulatedReader.read

        def record(
            self: SimulatedReader, *, at: dt.datetime, gpu_uuids: Collection[str], **_: object
        ) -> list[Sample]:
            reads.append(((at - START).total_seconds(), frozenset(gpu_uuids)))
            return whole(self, at=at, gpu_uuids=gpu_uuids)

        monkeypatch.setattr(SimulatedReader, "read", record)
        enrolled(rig)
        own, let = gpus(market)[1], gpus(market)[0]
        market.grants = [grant(market, start=1, minutes=6, count=1)]
        rig.live(seconds=600)
        handover, returned = (by_kind(market)[kind].at for kind in ReceiptKind)
        held = [
            at for at, read in reads
            if let in read and handover.timestamp() < START.timestamp() + at < returned.timestamp()
        ]  # fmt: skip
        free = [at for at, read in reads if own in read]
        assert held
        assert {round(b - a) for a, b in itertools.pairwise(held)} == {30}
        assert all(b - a < 15.5 for a, b in itertools.pairwise(free))
        both = [at for at, read in reads if read == {own, let}]
        for change in (handover, returned):
            instant = change.timestamp() - START.timestamp()
            assert any(abs(at - instant) <= 1 for at in both), "the counters of a receipt are fresh"
        assert_meters_fill_the_lease(market)
        assert sorted(m.up_seconds for m in market.meters.values()) == [60] * 6

    def test_the_fleet_of_a_simulated_node_is_the_same_after_a_restart(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        rig.restart()
        rig.live(seconds=10)
        inventories = [r.inventory for r in market.reports if r.inventory is not None]
        hosts = [r.host for r in market.reports if r.host is not None]
        assert len(inventories) == len(hosts) == 2
        assert hosts[0].provisioner == "simulated"
        assert hosts[0].kernel_version
        assert inventories[0] == inventories[1]

    def test_the_inventory_is_told_again_every_day_and_warnings_with_every_report(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        market.interval_seconds = 60
        monkeypatch.setattr(SimulatedReader, "warnings", lambda _: ["the kernel's log is shut"])
        enrolled(rig)
        rig.live(seconds=25 * 3600)
        told = [r.sent_at for r in market.reports if r.inventory is not None]
        assert len(told) == 2
        assert abs(told[1] - told[0] - dt.timedelta(days=1)) < dt.timedelta(minutes=2)
        assert market.reports[-1].warnings == ["the kernel's log is shut"]

    def test_an_idle_gpu_counts_from_anew_after_a_lease(self, rig: Rig, market: FakeMarket) -> None:
        rig.reader = None
        enrolled(rig)
        market.grants = [grant(market, count=1)]
        rig.live(seconds=240)
        leased, other = gpus(market)
        states = {r.gpu_uuid: r for r in market.reports[-1].readings}
        assert states[other].idle_since == START
        since = states[leased].idle_since
        assert since is not None
        assert since >= market.grants[0].not_after


def test_a_fleet_spec_is_used_as_given() -> None:
    assert parse_fleet(text="a100x4").count == 4
