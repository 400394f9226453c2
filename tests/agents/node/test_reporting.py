"""What the whole agent reports to a market on loopback, and how it bears bad answers."""

from __future__ import annotations

import datetime as dt
import random

import pytest

from agents.node.reporting import first_report_seconds
from agents.protocol import Health, IdleState
from tests.agents.node.rig import START, FakeClock, Rig
from tests.agents.node.scenes import MINUTE, enrolled, grant
from tests.fakes.market import Answer, FakeMarket, problem


class TestReporting:
    def test_keeps_the_interval_that_the_market_grants(self, rig: Rig, market: FakeMarket) -> None:
        market.interval_seconds = 20
        rig.live(seconds=201)
        assert 10 <= len(market.reports) <= 12

    def test_says_free_after_a_quiet_while(self, rig: Rig, market: FakeMarket) -> None:
        rig.live(seconds=40)
        assert market.reports[0].readings[0].idle_state is IdleState.UNKNOWN
        reading = market.reports[-1].readings[-1]
        assert reading.idle_state is IdleState.OFFERABLE
        assert reading.idle_reason == "quiet for 20 s and more; no scheduler of the owner is asked"
        assert reading.idle_since == START
        assert reading.health is Health.HEALTHY

    def test_gives_the_inventory_again_when_asked(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.want_inventory = True
        rig.live(seconds=10)
        assert market.reports[-1].inventory == market.enrolments[0].gpus

    def test_keeps_at_most_four_looks_while_the_market_is_down(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.down()
        rig.live(seconds=600)
        market.up()
        rig.live(seconds=60)
        assert max(len(report.readings) for report in market.reports) == 4 * 2

    def test_backs_off_while_the_market_fails(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        before = market.request_count
        market.instead = lambda _: (503, b"", {})
        rig.live(seconds=600)
        assert 30 <= market.request_count - before <= 150

    def test_waits_as_long_as_the_market_says(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.instead = lambda _: (503, b"", {"Retry-After": "300"})
        rig.live(seconds=20)
        before = market.request_count
        rig.live(seconds=250)
        assert market.request_count == before

    def test_takes_a_lost_answer_for_what_it_is(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.lose_answers = 1
        rig.live(seconds=30)
        pairs = [(r.epoch, r.sequence) for r in market.reports]
        assert pairs == [(1, number) for number in range(1, len(pairs) + 1)]

    def test_goes_above_a_pair_that_it_has_never_sent(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.last = (7, 3)
        rig.live(seconds=30)
        assert (market.reports[-1].epoch, market.reports[-1].sequence) >= (8, 1)
        rig.restart()
        rig.live(seconds=10)
        assert market.reports[-1].epoch == 9

    @pytest.mark.parametrize(
        "answer",
        [
            (200, b"<html>", {}),
            (200, b"[]", {}),
            (200, b'{"accepted": "yes"}', {}),
            (200, b"[" * 100_000, {}),
            (204, b"", {}),
            (302, b"", {"Location": "https://elsewhere.invalid/"}),
            (400, b"\xff\xfe", {}),
            (409, b'{"code": "report_replayed"}', {}),
            (418, b"{}", {}),
            (500, b"x" * (2 * 1024 * 1024), {}),
        ],
    )
    def test_outlives_a_bad_answer(self, rig: Rig, market: FakeMarket, answer: Answer) -> None:
        enrolled(rig)
        market.instead = lambda _: answer
        rig.live(seconds=60)
        market.instead = lambda _: None
        count = len(market.reports)
        rig.live(seconds=60)
        assert len(market.reports) > count

    def test_signs_with_the_markets_time_when_its_own_clock_is_wrong(
        self, rig: Rig, market: FakeMarket, clock: FakeClock
    ) -> None:
        enrolled(rig)
        clock.at += dt.timedelta(
            hours=5
        )  # somebody set the market's clock, or this machine's was wrong
        market.instead = lambda report: (
            problem(401, "signature_expired")
            if report is not None and abs(report.sent_at - market.now()) > 2 * MINUTE
            else None
        )
        rig.live(seconds=60)
        assert abs(market.reports[-1].sent_at - market.now()) < MINUTE


class TestFirstReport:
    @pytest.mark.parametrize("interval", [15, 60])
    def test_of_an_enrolled_node_waits_a_part_of_its_interval(self, interval: int) -> None:
        waits = [
            first_report_seconds(interval_seconds=interval, dice=random.Random(seed))
            for seed in range(500)
        ]
        most = min(30, interval)
        assert all(0 <= wait <= most for wait in waits)
        assert abs(sum(waits) / len(waits) - most / 2) < most / 10

    def test_comes_at_once_where_reports_come_every_few_seconds(self) -> None:
        assert first_report_seconds(interval_seconds=5, dice=random.Random(1)) == 0

    def test_is_not_hurried_by_leases_that_are_news_to_a_new_process(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        market.interval_seconds = 60
        enrolled(rig)
        market.grants = [grant(market, minutes=60)]
        rig.live(seconds=200)
        rig.kill()
        before = market.request_count
        agent = rig.start()
        due = agent._reporter.due_at_boottime - rig.clock.boottime
        assert due > 5, "these dice fell so"
        rig.live(seconds=due - 1)
        assert market.request_count == before
        rig.live(seconds=3)
        assert market.request_count > before

    def test_follows_the_enrolment_at_once(self, rig: Rig, market: FakeMarket) -> None:
        market.interval_seconds = 60
        rig.live(seconds=2)
        assert len(market.reports) == 1


class TestRetryAfter:
    def test_is_spread_over_an_interval(self, rig: Rig, market: FakeMarket) -> None:
        market.interval_seconds = 40
        enrolled(rig)
        agent = rig.agent
        assert agent is not None
        market.instead = lambda _: (503, b"", {"Retry-After": "100"})
        waits = []
        for _ in range(40):
            rig.clock.pass_time(max(0.0, agent._reporter.due_at_boottime - rig.clock.boottime))
            agent.step()
            waits.append(agent._reporter.due_at_boottime - rig.clock.boottime)
        assert all(100 <= wait <= 140 for wait in waits)
        assert max(waits) - min(waits) > 20
