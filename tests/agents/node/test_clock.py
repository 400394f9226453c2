"""Whose time the agent believes, and how far."""

from __future__ import annotations

import datetime as dt

import pytest

from agents.node.clock import MarketClock
from tests.agents.node.rig import START, FakeClock

SECOND = dt.timedelta(seconds=1)


@pytest.fixture
def host_clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def clock(host_clock: FakeClock) -> MarketClock:
    return MarketClock(clock=host_clock)


class TestMarketClock:
    def test_moves_when_the_market_is_further_off_than_a_round_trip_explains(
        self, clock: MarketClock
    ) -> None:
        assert clock.learn(market_now=START + SECOND, round_trip_seconds=0.1) is None
        assert clock.learn(market_now=START + 60 * SECOND) == 60 * SECOND
        assert clock.now() == START + 60 * SECOND

    def test_believes_the_quickest_of_several_answers(self, clock: MarketClock) -> None:
        # The market is 10 s ahead; the slow answers were on their way for most of their round trip.
        true = START + 10 * SECOND
        assert clock.learn(market_now=true - 9 * SECOND, round_trip_seconds=9.0) is not None
        moved = clock.learn(market_now=true, round_trip_seconds=0.1)
        assert moved is not None
        assert abs(clock.now() - true) < SECOND / 2
        for _ in range(5):
            assert clock.learn(market_now=true - 8 * SECOND, round_trip_seconds=9.0) is None
        assert abs(clock.now() - true) < SECOND / 2

    def test_forgets_what_a_later_answer_contradicts(self, clock: MarketClock) -> None:
        clock.learn(market_now=START + 10 * SECOND, round_trip_seconds=0.001)
        assert clock.learn(market_now=START + 3600 * SECOND, round_trip_seconds=0.5) is not None
        assert abs(clock.now() - (START + 3600 * SECOND)) < SECOND

    def test_does_not_follow_the_clock_of_the_host(self, host_clock: FakeClock) -> None:
        clock = MarketClock(clock=host_clock)
        host_clock.at += dt.timedelta(hours=5)
        host_clock.boottime += 1
        assert clock.now() == START + SECOND
