"""How the whole agent enrols itself with a market on loopback."""

from __future__ import annotations

import pytest

from agents.node.loop import EnrolmentRefused
from tests.agents.node.rig import Rig
from tests.agents.node.scenes import enrolled
from tests.fakes.market import FakeMarket


class TestEnrolment:
    def test_brings_key_machine_and_gpus_once(self, rig: Rig, market: FakeMarket) -> None:
        rig.live(seconds=30)
        (request,) = market.enrolments
        assert request.simulated
        assert (request.hostname, request.machine_id, len(request.gpus)) == ("n1", "m1", 2)
        assert market.reports[0].inventory == request.gpus
        assert all(report.inventory is None for report in market.reports[1:])

    def test_is_not_repeated_after_a_restart(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        rig.token = ""
        rig.restart()
        rig.live(seconds=10)
        assert len(market.enrolments) == 1
        assert [r.epoch for r in market.reports] == sorted(r.epoch for r in market.reports)
        assert market.reports[-1].epoch == 2

    def test_waits_for_a_market_that_is_down(self, rig: Rig, market: FakeMarket) -> None:
        market.down()
        rig.live(seconds=120)
        market.up()
        rig.live(seconds=60)
        assert len(market.enrolments) == 1
        assert market.reports

    def test_ends_when_the_token_is_refused(self, rig: Rig) -> None:
        rig.token = "wrong"
        with pytest.raises(EnrolmentRefused, match="token_invalid No such token"):
            rig.live(seconds=5)

    def test_ends_when_there_is_no_token(self, rig: Rig, market: FakeMarket) -> None:
        rig.token = ""
        with pytest.raises(EnrolmentRefused, match="HEADROOM_TOKEN"):
            rig.live(seconds=5)
        assert market.request_count == 0

    def test_asks_again_when_the_answer_was_lost(self, rig: Rig, market: FakeMarket) -> None:
        market.lose_answers = 1
        rig.live(seconds=60)
        assert len(market.enrolments) == 2
        assert market.enrolments[0] == market.enrolments[1]
