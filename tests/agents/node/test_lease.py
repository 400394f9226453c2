"""A lease from the grant to the receipts, through the whole agent and a market on loopback."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from agents.node.provision import NoProvisioner, ProvisionFailed
from agents.protocol import DesiredState, LeaseState, ReceiptKind
from tests.agents.node.rig import START, FakeClock, Rig
from tests.agents.node.scenes import (
    MINUTE,
    assert_meters_fill_the_lease,
    by_kind,
    enrolled,
    grant,
    last_states,
)
from tests.fakes.market import FakeMarket


class TestLease:
    def test_is_handed_over_metered_and_returned(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=300)
        receipts = by_kind(market)
        given, returned = receipts[ReceiptKind.HANDOVER], receipts[ReceiptKind.RETURN]
        assert given.at == market.grants[0].not_before
        assert returned.at == market.grants[0].not_after
        assert given.simulated
        assert returned.clean
        assert given.access is not None
        assert given.access.host.endswith(".simulated.invalid")
        assert_meters_fill_the_lease(market)
        meters = list(market.meters.values())
        assert all(m.simulated for m in meters)
        assert all(0.7 <= (m.busy_seconds or 0) / m.up_seconds <= 0.85 for m in meters)
        for index in range(2):
            gained = (returned.energy_millijoules[index] or 0) - (
                given.energy_millijoules[index] or 0
            )
            uuid = given.gpu_uuids[index]
            assert gained == sum(m.energy_millijoules or 0 for m in meters if m.gpu_uuid == uuid)
        assert last_states(market) == {("lease-1", 1): (LeaseState.ENDED, "")}

    def test_tells_each_change_at_once(
        self, rig: Rig, market: FakeMarket, clock: FakeClock
    ) -> None:
        market.interval_seconds = 60
        enrolled(rig)
        market.grants = [grant(market, start=2)]
        rig.live(seconds=400)
        told = {
            status.state: report.sent_at
            for report in reversed(market.reports)
            for status in report.leases
        }
        assert told[LeaseState.ACTIVE] - market.grants[0].not_before < dt.timedelta(seconds=2)
        assert told[LeaseState.ENDED] - market.grants[0].not_after < dt.timedelta(seconds=2)

    def test_begins_no_sooner_than_its_time(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.grants = [grant(market, start=10)]
        rig.live(seconds=500)
        assert market.receipts == []
        assert last_states(market) == {("lease-1", 1): (LeaseState.PREPARING, "")}

    def test_ends_when_the_market_says_stop(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=30)]
        rig.live(seconds=90)
        market.grants = [replace(market.grants[0], desired_state=DesiredState.STOP)]
        rig.live(seconds=30)
        assert by_kind(market)[ReceiptKind.RETURN].at < START + 2 * MINUTE
        assert_meters_fill_the_lease(market)

    def test_ends_when_its_grant_is_no_longer_listed(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=30)]
        rig.live(seconds=90)
        market.grants = []
        rig.live(seconds=30)
        assert_meters_fill_the_lease(market)

    def test_is_not_ended_by_an_answer_that_lists_nothing_because_it_was_a_replay(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=30)]
        rig.live(seconds=90)
        market.lose_answers = 1
        rig.live(seconds=30)
        assert ReceiptKind.RETURN not in by_kind(market)

    def test_stopped_before_its_start_is_never_handed_over(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, start=5)]
        rig.live(seconds=20)
        market.grants = [replace(market.grants[0], desired_state=DesiredState.STOP)]
        rig.live(seconds=600)
        assert market.receipts == []
        assert last_states(market)["lease-1", 1] == (LeaseState.ENDED, "it was never handed over")

    def test_whose_term_passed_before_it_was_heard_of_is_never_started(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, start=-10, minutes=5)]
        rig.live(seconds=30)
        assert market.receipts == []
        assert last_states(market)["lease-1", 1][0] is LeaseState.ENDED

    def test_may_be_prolonged_while_it_runs(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=60)
        later = market.grants[0].not_after + MINUTE
        market.grants = [replace(market.grants[0], not_after=later)]
        rig.live(seconds=300)
        assert by_kind(market)[ReceiptKind.RETURN].at == later
        assert_meters_fill_the_lease(market)

    def test_of_a_higher_epoch_takes_over_from_the_lower_one(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        first = grant(market, minutes=30)
        market.grants = [first]
        rig.live(seconds=90)
        market.grants = [first, grant(market, minutes=30, epoch=2)]
        rig.live(seconds=60)
        kinds = [(r.lease_epoch, r.kind) for r in market.receipts]
        assert kinds == [
            (1, ReceiptKind.HANDOVER),
            (1, ReceiptKind.RETURN),
            (2, ReceiptKind.HANDOVER),
        ]
        assert market.receipts[2].at >= market.receipts[1].at

    def test_that_ended_does_not_start_again_while_it_is_still_listed(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=30)]
        rig.live(seconds=60)
        stopped = replace(market.grants[0], desired_state=DesiredState.STOP)
        running, market.grants = market.grants, [stopped]
        rig.live(seconds=30)
        market.grants = running
        rig.live(seconds=60)
        rig.restart()
        rig.live(seconds=60)
        assert len(by_kind(market)) == 2

    def test_follows_the_one_before_on_the_same_gpus_at_the_same_instant(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        first = grant(market)
        second = replace(
            first,
            lease_id="lease-0",
            not_before=first.not_after,
            not_after=first.not_after + 2 * MINUTE,
        )
        market.grants = [first, second]
        rig.live(seconds=240)
        at = {(r.lease_id, r.kind): r.at for r in market.receipts}
        assert at["lease-1", ReceiptKind.RETURN] == first.not_after
        assert at["lease-0", ReceiptKind.HANDOVER] == first.not_after

    def test_on_a_gpu_that_is_not_here_fails(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.grants = [replace(grant(market), gpu_uuids=["GPU-elsewhere"])]
        rig.live(seconds=60)
        state, detail = last_states(market)["lease-1", 1]
        assert state is LeaseState.FAILED
        assert "GPU-elsewhere" in detail
        assert market.receipts == []

    def test_of_a_node_without_a_provisioner_fails(self, rig: Rig, market: FakeMarket) -> None:
        rig.provisioner = NoProvisioner()
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=60)
        assert last_states(market)["lease-1", 1] == (
            LeaseState.FAILED,
            "not handed over: provisioner: no provisioner configured",
        )

    def test_that_cannot_be_stopped_is_returned_unclean(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]

        def fail(*_: object, **__: object) -> None:
            raise ProvisionFailed("it does not go away")

        monkeypatch.setattr("agents.node.provision.simulated.SimulatedProvisioner.stop", fail)
        rig.live(seconds=300)
        returned = by_kind(market)[ReceiptKind.RETURN]
        assert not returned.clean
        assert returned.detail == "it does not go away"
        assert returned.at == market.grants[0].not_after

    def test_waits_for_gpus_until_the_one_before_is_gone_from_them(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first lease survives every order to end; the owner looks at it before the third begins."""
        stop = "agents.node.provision.simulated.SimulatedProvisioner.stop"
        enrolled(rig)
        first = grant(market, minutes=2)
        later = [
            replace(
                first,
                lease_id=f"lease-{number}",
                not_before=first.not_after + number * MINUTE,
                not_after=first.not_after + (number + 1) * MINUTE,
            )
            for number in (2, 4)
        ]
        market.grants = [first, *later]

        def fail(*_: object, **__: object) -> None:
            raise ProvisionFailed("it does not go away")

        with monkeypatch.context() as broken:
            broken.setattr(stop, fail)
            rig.live(seconds=320)
        assert last_states(market)["lease-2", 1] == (LeaseState.FAILED, "it does not go away")

        rig.restart()
        rig.live(seconds=200)
        receipts = {(r.lease_id, r.kind) for r in market.receipts}
        assert ("lease-2", ReceiptKind.HANDOVER) not in receipts
        assert ("lease-4", ReceiptKind.HANDOVER) in receipts
