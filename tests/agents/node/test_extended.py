"""A lease whose end the market moves while it runs: the node hears of it, and keeps the new one."""

from __future__ import annotations

from dataclasses import replace

from agents.protocol import DesiredState, LeaseState, ReceiptKind
from tests.agents.node.rig import Rig
from tests.agents.node.scenes import (
    MINUTE,
    assert_meters_fill_the_lease,
    by_kind,
    enrolled,
    grant,
    last_states,
)
from tests.fakes.market import FakeMarket


def begin(rig: Rig, market: FakeMarket) -> None:
    """Let a lease of three minutes run for a minute and a half."""
    enrolled(rig)
    market.grants = [grant(market)]
    rig.live(seconds=120)
    assert last_states(market)["lease-1", 1] == (LeaseState.ACTIVE, "")


def prolong(market: FakeMarket) -> None:
    market.grants = [replace(market.grants[0], not_after=market.grants[0].not_after + 3 * MINUTE)]


class TestExtendedLease:
    def test_runs_to_its_new_end(self, rig: Rig, market: FakeMarket) -> None:
        begin(rig, market)
        first_end = market.grants[0].not_after
        prolong(market)
        rig.live(seconds=120)
        assert market.now() > first_end
        assert last_states(market)["lease-1", 1] == (LeaseState.ACTIVE, "")
        rig.live(seconds=180)
        returned = by_kind(market)[ReceiptKind.RETURN]
        assert returned.clean
        assert returned.at == market.grants[0].not_after == first_end + 3 * MINUTE
        assert_meters_fill_the_lease(market)

    def test_knows_its_new_end_after_a_restart(self, rig: Rig, market: FakeMarket) -> None:
        begin(rig, market)
        prolong(market)
        rig.live(seconds=10)
        rig.restart()
        rig.live(seconds=290)
        returned = by_kind(market)[ReceiptKind.RETURN]
        assert returned.at == market.grants[0].not_after

    def test_that_is_not_wanted_any_more_ends_before_its_end(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        begin(rig, market)
        prolong(market)
        rig.live(seconds=10)
        market.grants = [replace(market.grants[0], desired_state=DesiredState.STOP)]
        rig.live(seconds=60)
        returned = by_kind(market)[ReceiptKind.RETURN]
        assert returned.clean
        assert returned.at < market.grants[0].not_after
