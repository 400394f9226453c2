"""A fleet that finds the market again does not overrun it."""

import random

import pytest

from agents import pacing
from tests.agents.factories import NOW
from tests.bench.bench_return import PEAK_RATIO_MAX, rates_of_return

NODES = 10_000


@pytest.mark.parametrize("outage_seconds", [60, 300, 3_600])
def test_the_return_peaks_below_twice_the_steady_rate(outage_seconds: int) -> None:
    pacing.remember_count(nodes=NODES)
    intervals = [
        pacing.granted_interval_seconds(node_id=f"nde_{number}", at=NOW) for number in range(NODES)
    ]
    rates = rates_of_return(
        intervals=intervals, outage_seconds=outage_seconds, dice=random.Random(outage_seconds)
    )
    assert rates.steady == pytest.approx(300, rel=0.05)
    assert rates.ratio <= PEAK_RATIO_MAX
    assert rates.heard_after_seconds <= 60
