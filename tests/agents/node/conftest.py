"""What the agent's tests share: a clock that is moved by hand, a market on loopback, an agent to step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.node.rig import FakeClock, Rig
from tests.fakes.market import FakeMarket


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def market(clock: FakeClock) -> Iterator[FakeMarket]:
    with FakeMarket(now=clock.wall) as market:
        yield market


@pytest.fixture
def rig(tmp_path: Path, clock: FakeClock, market: FakeMarket) -> Iterator[Rig]:
    rig = Rig(directory=tmp_path, clock=clock, market=market)
    yield rig
    rig.kill()
