"""A market, and a machine in it."""

from collections.abc import Iterator

import pytest
import time_machine

from tests.journeys.wire import MORNING, Host, Market


@pytest.fixture
def market() -> Iterator[Market]:
    with time_machine.travel(MORNING, tick=False) as clock:
        yield Market(clock=clock)


@pytest.fixture
def host(market: Market) -> Host:
    """Return the only machine, with eight GPUs, all listed."""
    host = market.add_host(gpus=8)
    market.list_everything()
    return host
