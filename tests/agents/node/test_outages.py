"""A lease while the market, the agent or the machine is away: nothing is lost, nothing counts twice."""

from __future__ import annotations

import datetime as dt

import pytest

from agents.node.provision import Presence, ProvisionFailed
from agents.protocol import MeterReading, ReceiptKind, Report
from tests.agents.node.rig import Rig
from tests.agents.node.scenes import assert_meters_fill_the_lease, by_kind, enrolled, grant
from tests.fakes.market import Answer, FakeMarket, problem


class TestOutages:
    def test_a_lease_ends_at_its_time_while_the_market_is_down(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=60)
        market.down()
        rig.live(seconds=600)
        market.up()
        rig.live(seconds=60)
        assert by_kind(market)[ReceiptKind.RETURN].at == market.grants[0].not_after
        assert_meters_fill_the_lease(market)

    def test_nothing_is_counted_twice_when_every_other_answer_is_lost(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        for _ in range(30):
            market.lose_answers = 1
            rig.live(seconds=10)
        rig.live(seconds=30)
        assert_meters_fill_the_lease(market)

    @pytest.mark.parametrize("seconds", [5, 40, 100, 170, 185])
    def test_a_killed_agent_goes_on_where_it_was(
        self, rig: Rig, market: FakeMarket, seconds: int
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=seconds)
        rig.kill()
        rig.clock.pass_time(7)
        rig.live(seconds=300)
        receipts = by_kind(market)
        assert receipts[ReceiptKind.RETURN].at == market.grants[0].not_after
        assert_meters_fill_the_lease(market)

    def test_a_reboot_ends_a_lease_when_the_agent_last_saw_it(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=30)]
        rig.live(seconds=120)
        killed_at = rig.clock.at
        rig.kill()
        rig.boot_id = "boot-2"
        monkeypatch.setattr(
            "agents.node.provision.simulated.SimulatedProvisioner.inspect",
            lambda *_, **__: Presence.ABSENT,
        )
        rig.clock.pass_time(3600)
        rig.live(seconds=60)
        returned = by_kind(market)[ReceiptKind.RETURN]
        assert dt.timedelta(0) <= killed_at - returned.at <= dt.timedelta(seconds=6)
        assert returned.detail == "it ended while the agent was not running"
        assert_meters_fill_the_lease(market)

    def test_an_end_that_nobody_can_attest_counts_from_the_last_sign_of_life(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=120)
        killed_at = rig.clock.at
        rig.kill()

        def fail(*_: object, **__: object) -> Presence:
            raise ProvisionFailed("cannot tell")

        monkeypatch.setattr("agents.node.provision.simulated.SimulatedProvisioner.inspect", fail)
        rig.clock.pass_time(3600)
        rig.live(seconds=60)
        assert by_kind(market)[ReceiptKind.RETURN].at <= killed_at
        assert_meters_fill_the_lease(market)

    def test_time_that_nobody_watched_is_delivered_with_unknown_load(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=20)]
        rig.live(seconds=120)
        rig.kill()
        rig.clock.pass_time(300)
        rig.live(seconds=1200)
        assert_meters_fill_the_lease(market)
        blind = [m for m in market.meters.values() if m.busy_seconds is None]
        assert 290 * 2 <= sum(m.up_seconds for m in blind) <= 320 * 2

    def test_a_revoked_node_ends_its_lease_in_time_and_keeps_quiet(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=60)
        before = market.request_count
        market.instead = lambda _: problem(403, "node_revoked", detail="by its owner")
        rig.live(seconds=600)
        assert market.request_count - before <= 4
        market.instead = lambda _: None
        rig.live(seconds=400)
        assert by_kind(market)[ReceiptKind.RETURN].at == market.grants[0].not_after

    def test_a_reading_that_the_market_refuses_for_good_does_not_stop_the_others(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]

        def is_bad(meter: MeterReading) -> bool:
            return meter.sequence == 5

        def refuse(report: Report | None) -> Answer | None:
            bad = report is not None and any(is_bad(m) for m in report.meters)
            return problem(422, "malformed", detail="/meters") if bad else None

        market.instead = refuse
        rig.live(seconds=900)
        sequences = {sequence for _, sequence in market.meters}
        assert sequences == set(range(1, max(sequences) + 1)) - {5}
        assert len(by_kind(market)) == 2


class TestFullDisk:
    @staticmethod
    def fill(rig: Rig) -> None:
        """SQLite may add no page to the file, and what is free in it is used up."""
        assert rig.spool is not None
        pages = rig.spool.connection.execute("PRAGMA page_count").fetchone()[0]
        rig.spool.connection.execute(f"PRAGMA max_page_count = {pages}")
        rig.spool.commit(values={f"filling-{n}": "x" * 4000 for n in range(4)})
        assert not rig.spool.is_writable

    @staticmethod
    def empty(rig: Rig) -> None:
        assert rig.spool is not None
        rig.spool.connection.execute("PRAGMA max_page_count = 1000000")

    def test_does_not_keep_a_running_lease_from_its_end_and_its_bill(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=60)
        self.fill(rig)
        rig.live(seconds=400)
        assert "cannot be written" in market.reports[-1].warnings[0]
        assert by_kind(market)[ReceiptKind.RETURN].at == market.grants[0].not_after
        assert_meters_fill_the_lease(market)
        self.empty(rig)
        rig.live(seconds=90)
        assert market.reports[-1].warnings == []
        rig.restart()
        rig.live(seconds=60)
        assert_meters_fill_the_lease(market)

    def test_keeps_a_new_lease_waiting(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        rig.live(seconds=20)
        self.fill(rig)
        market.grants = [grant(market, minutes=30)]
        rig.live(seconds=120)
        assert not market.receipts
        self.empty(rig)
        rig.live(seconds=120)
        assert ReceiptKind.HANDOVER in by_kind(market)
