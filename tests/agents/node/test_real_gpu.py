"""The reader on real silicon: figures that a stand-in cannot get wrong by agreeing with us."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agents.node import health
from agents.node.child import ChildReader
from agents.node.reader import MEASURED_FIELDS, ReaderUnavailable, Sample
from agents.protocol import GpuIdentity, Health

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def seen() -> tuple[list[GpuIdentity], list[Sample]]:
    # In a process of its own: this one may have loaded the stand-in for other tests.
    reader = ChildReader(boottime_seconds=time.monotonic)
    try:
        return reader.identify(), reader.read(at=dt.datetime.now(tz=dt.UTC))
    except ReaderUnavailable as reason:
        pytest.skip(f"no GPU to read here: {reason}")
    finally:
        reader.close()


class TestRealGpu:
    def test_has_an_identity(self, seen: tuple[list[GpuIdentity], list[Sample]]) -> None:
        identities, _ = seen
        assert identities
        assert len({gpu.uuid for gpu in identities}) == len(identities)
        for gpu in identities:
            assert gpu.uuid.startswith("GPU-")
            assert gpu.memory_total_bytes > 1 << 30

    def test_gives_figures_that_can_be(self, seen: tuple[list[GpuIdentity], list[Sample]]) -> None:
        identities, samples = seen
        for identity, sample in zip(identities, samples, strict=True):
            assert set(sample.unread) <= set(MEASURED_FIELDS)
            assert health.judge(sample=sample)[0] is Health.HEALTHY
            assert sample.memory_used_bytes is not None
            assert sample.memory_used_bytes <= identity.memory_total_bytes
            assert sample.utilization_percent is None or 0 <= sample.utilization_percent <= 100
            assert (
                sample.power_draw_milliwatts is None
                or 1_000 < sample.power_draw_milliwatts < 2_000_000
            )
            assert sample.temperature_celsius is None or 0 < sample.temperature_celsius < 110

    def test_is_shown_by_the_program_with_the_time_of_each_call(
        self, seen: tuple[list[GpuIdentity], list[Sample]]
    ) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "agents.node", "--once", "--json"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            cwd=ROOT,
        )
        shown = json.loads(done.stdout)
        assert [gpu["identity"]["uuid"] for gpu in shown["gpus"]] == [gpu.uuid for gpu in seen[0]]
        assert shown["call_milliseconds"]["nvmlDeviceGetUtilizationRates"] > 0
        sys.stdout.write(json.dumps(shown["call_milliseconds"], indent=2))
