"""Every promise is kept, or its tenant released, in any order of events."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.extra.django import TestCase
from hypothesis.stateful import run_state_machine_as_test

from tests.properties.life.machine import Life


@pytest.mark.timeout(600)  # a machine that does other things takes minutes
class TestLife(TestCase):
    def test_keeps_every_promise_or_releases_the_tenant(self) -> None:
        run_state_machine_as_test(
            Life,
            settings=settings(
                max_examples=5,
                stateful_step_count=20,
                phases=[Phase.explicit, Phase.generate],  # shrinking would outlast the limit
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
