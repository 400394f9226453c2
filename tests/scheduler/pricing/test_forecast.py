"""What a pool's demand is learnt from, and what it is taken to be."""

import numpy as np
import pytest

from scheduler.pricing import Rule
from scheduler.pricing.forecast import (
    FIT_HOURS,
    Levels,
    Requests,
    Shape,
    fit,
    learn,
    levels,
    remaining,
)

RULE = Rule(slow_hours=168, fast_hours=72, fade_hours=72)
NOW = 500_000


def simple_shape(*, starts: float = 1.0) -> Shape:
    """Windows of one GPU and three hours, all asked for five hours ahead."""
    return Shape(
        starts_by_hour_of_week=np.full(168, starts),
        mean_gpus=1.0,
        size_ratio=1.0,
        survival=np.array([1.0, 1.0, 1.0]),
        lead_share=np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]),
    )


def steady_requests(*, per_hour: int, hours: int) -> Requests:
    asked = np.repeat(np.arange(NOW - hours, NOW), per_hour)
    return Requests(
        asked_hours=asked,
        start_hours=asked + 5,
        duration_hours=np.full(len(asked), 3),
        gpus=np.full(len(asked), 1),
    )


class TestRemaining:
    def test_counts_what_is_not_yet_asked_for_and_still_runs(self) -> None:
        demand = remaining(
            shape=simple_shape(), learnt=Levels(), first_hour=NOW, hours=12, rule=RULE
        )

        # What starts within five hours has been asked for before the running hour, what starts in five is
        # asked for in it, and all of it runs for three hours.
        assert demand == pytest.approx([0, 0, 0, 0, 0, 1, 2, 3, 3, 3, 3, 3], abs=1e-9)

    def test_believes_the_fast_level_less_the_further_ahead(self) -> None:
        plain, fast = (
            remaining(shape=simple_shape(), learnt=learnt, first_hour=NOW, hours=800, rule=RULE)
            for learnt in (Levels(), Levels(slow=1.0, fast=2.0))
        )
        ratio = fast[5:] / plain[5:]

        assert ratio[0] == pytest.approx(1 + np.exp(-5 / 72))
        assert (np.diff(ratio) < 0).all()
        assert ratio[-1] == pytest.approx(1, abs=1e-4)

    def test_believes_the_slow_level_at_every_lead(self) -> None:
        plain, slow = (
            remaining(shape=simple_shape(), learnt=learnt, first_hour=NOW, hours=400, rule=RULE)
            for learnt in (Levels(), Levels(slow=2.0))
        )

        assert slow == pytest.approx(2 * plain)


class TestLevels:
    def test_are_one_where_as_many_come_as_expected(self) -> None:
        assert levels(
            seen_slow=500, expected_slow=500.0, seen_fast=200, expected_fast=200.0, rule=RULE
        ) == Levels(slow=1.0, fast=1.0)

    def test_follow_the_documented_formula(self) -> None:
        # slow = (960 + 40) ÷ (460 + 40) = 2; fast = (740 + 60) ÷ (2 × 170 + 60) = 2
        assert levels(
            seen_slow=960, expected_slow=460.0, seen_fast=740, expected_fast=170.0, rule=RULE
        ) == Levels(slow=2.0, fast=2.0)

    def test_are_bounded(self) -> None:
        flooded = levels(
            seen_slow=10**6, expected_slow=1.0, seen_fast=10**7, expected_fast=1.0, rule=RULE
        )
        dry = levels(seen_slow=0, expected_slow=1e6, seen_fast=0, expected_fast=1e6, rule=RULE)

        assert flooded == Levels(slow=3.0, fast=3.0)
        assert dry == Levels(slow=0.3, fast=0.5)


class TestFit:
    def test_finds_the_shape_of_steady_demand(self) -> None:
        shape = fit(requests=steady_requests(per_hour=2, hours=FIT_HOURS), now_hour=NOW, rule=RULE)

        assert shape is not None
        assert shape.starts_by_hour_of_week == pytest.approx(np.full(168, 2.0))
        assert (shape.mean_gpus, shape.size_ratio) == (1.0, 1.0)
        assert shape.survival == pytest.approx([1.0, 1.0, 1.0])
        assert shape.lead_share == pytest.approx([0, 0, 0, 0, 0, 0, 1])

    def test_is_silent_on_too_few_requests(self) -> None:
        assert fit(requests=steady_requests(per_hour=1, hours=199), now_hour=NOW, rule=RULE) is None

    def test_forgets_what_is_older_than_four_weeks(self) -> None:
        old = steady_requests(per_hour=9, hours=2 * FIT_HOURS)
        still = old.asked_hours < NOW - FIT_HOURS
        gone = Requests(
            asked_hours=old.asked_hours[still],
            start_hours=old.start_hours[still],
            duration_hours=old.duration_hours[still],
            gpus=old.gpus[still],
        )

        assert fit(requests=gone, now_hour=NOW, rule=RULE) is None

    def test_takes_a_weekly_rhythm_over_and_not_the_noise_of_one_request(self) -> None:
        asked = np.repeat(np.arange(NOW - FIT_HOURS, NOW), 20)
        busy = asked % 24 < 12
        requests = Requests(
            asked_hours=asked[busy],
            start_hours=asked[busy],
            duration_hours=np.full(int(busy.sum()), 1),
            gpus=np.full(int(busy.sum()), 4),
        )
        shape = fit(requests=requests, now_hour=NOW, rule=RULE)

        assert shape is not None
        profile = shape.starts_by_hour_of_week.reshape(7, 24)
        assert (profile[:, 12:] < 5).all()
        assert (profile[:, :12] > 15).all()

    def test_weighs_survival_by_gpus(self) -> None:
        asked = np.repeat(np.arange(NOW - 200, NOW), 2)
        requests = Requests(
            asked_hours=asked,
            start_hours=asked,
            duration_hours=np.tile([1, 10], 200),
            gpus=np.tile([1, 9], 200),
        )
        shape = fit(requests=requests, now_hour=NOW, rule=RULE)

        assert shape is not None
        assert shape.survival == pytest.approx([1.0] + [0.9] * 9)
        assert shape.mean_gpus == 5.0
        assert shape.size_ratio == pytest.approx(41 / 5)


class TestLearn:
    def test_sees_demand_double(self) -> None:
        shape = simple_shape(starts=10.0)
        learnt = learn(
            shape=shape, requests=steady_requests(per_hour=20, hours=168), now_hour=NOW, rule=RULE
        )

        assert learnt.slow == pytest.approx((3_360 + 40) / (1_680 + 40))
        assert learnt.fast == pytest.approx(1.0, abs=0.02)

    def test_expects_as_many_as_the_shape_was_fitted_on(self) -> None:
        shape = simple_shape(starts=7.0)

        assert shape.asked(first_hour=NOW - 72, hours=72) == pytest.approx(7 * 72)
