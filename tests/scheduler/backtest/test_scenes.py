"""What prices do when demand stops, and when it is five times as high for two days."""

import numpy as np
import pytest

from scheduler.backtest.scenes import CALM_HOURS, SHOCK_HOURS, Scene, play


@pytest.fixture(scope="module")
def stopped() -> Scene:
    return play("no-demand")


@pytest.fixture(scope="module")
def shocked() -> Scene:
    return play("shock")


class TestWithoutDemand:
    def test_firm_prices_fall_to_the_base_and_stay(self, stopped: Scene) -> None:
        assert stopped.firm[:CALM_HOURS].max() > 1.5 * stopped.base
        quiet = stopped.firm[CALM_HOURS + 7 * 24 :]
        assert (quiet[: 20 * 24] == stopped.base).all()
        # Four weeks without a request leave nothing to forecast from: then what is sold counts a little.
        assert (quiet <= 1.05 * stopped.base).all()
        assert (quiet[-3 * 24 :] == stopped.base).all()

    def test_reclaimable_prices_fall_to_the_floor_and_stay(self, stopped: Scene) -> None:
        end = stopped.reclaimable[-14 * 24 :]

        assert end == pytest.approx(np.full(len(end), stopped.floor), rel=0.02)
        assert stopped.reclaimable.min() >= stopped.floor


class TestWithAShock:
    def test_prices_peak_at_the_cap(self, shocked: Scene) -> None:
        after = shocked.firm[CALM_HOURS:]

        assert after.max() == pytest.approx(shocked.cap, rel=1e-6)

    def test_prices_come_back_to_the_base(self, shocked: Scene) -> None:
        before = shocked.ahead[CALM_HOURS - 24 : CALM_HOURS].mean()
        peak = shocked.ahead[CALM_HOURS : CALM_HOURS + 4 * SHOCK_HOURS].max()
        late = shocked.ahead[-14 * 24 :].mean()

        assert peak > 1.5 * before
        assert late == pytest.approx(shocked.base, rel=0.05)

    def test_every_hour_moves_within_its_limits(self, shocked: Scene) -> None:
        assert shocked.violations == 0
        for hour, (before, after) in enumerate(
            zip(shocked.history, shocked.history[1:], strict=False), start=1
        ):
            ahead = slice(hour, None)
            assert (after[ahead] * 100 <= before[ahead] * 105).all()
            assert (after[ahead] * 100 >= before[ahead] * 99).all()
            assert (after[hour : hour + 12] >= before[hour : hour + 12]).all()
