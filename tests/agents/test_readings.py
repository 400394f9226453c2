"""Samples are forgotten after a day."""

import pytest
import time_machine

from agents import readings, tasks
from agents.models import Gpu, Reading
from tests.agents import factories as make
from tests.agents.factories import NOW

pytestmark = pytest.mark.django_db
DAY_SECONDS = 86_400


def store(*ages_seconds: float) -> None:
    gpu = Gpu.objects.first() or Gpu.objects.get(node=make.make_node(gpus=1))
    Reading.objects.bulk_create(
        Reading(gpu=gpu, measured_at=NOW - make.seconds(age)) for age in ages_seconds
    )


class TestPrune:
    def test_keeps_a_day(self) -> None:
        store(0, DAY_SECONDS, DAY_SECONDS + 0.001, 9 * DAY_SECONDS)
        assert readings.prune(at=NOW) == 2
        assert Reading.objects.count() == 2
        assert readings.prune(at=NOW) == 0

    def test_goes_on_in_batches_up_to_its_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(readings, "PRUNE_BATCH_ROWS", 2)
        monkeypatch.setattr(readings, "PRUNE_BATCHES_MAX", 2)
        store(*(2 * DAY_SECONDS + number for number in range(5)))
        assert readings.prune(at=NOW) == 4
        assert readings.prune(at=NOW) == 1

    def test_runs_as_a_periodic_task(self) -> None:
        store(2 * DAY_SECONDS)
        with time_machine.travel(NOW, tick=False):
            tasks.prune_readings()
        assert not Reading.objects.exists()
