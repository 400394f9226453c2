"""The reader on real silicon, and the same tests on the stand-in so that they are known to be sound."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
from pathlib import Path

from agents.node import health
from agents.node.child import ANSWER_SECONDS_MAX
from agents.node.reader import MEASURED_FIELDS
from agents.protocol import Health
from tests.agents.node.silicon import Machine

ROOT = Path(__file__).resolve().parents[3]
# What a driver that answers at all answers for every product that is sold here.
CALLS = {
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetPowerManagementLimit",
    "nvmlSystemGetDriverVersion",
}


def now() -> dt.datetime:
    return dt.datetime.now(tz=dt.UTC)


class TestReader:
    def test_names_each_gpu_once(self, machine: Machine) -> None:
        identities = machine.reader().identify()
        assert identities
        assert len({gpu.uuid for gpu in identities}) == len(identities)
        for gpu in identities:
            assert gpu.uuid.startswith("GPU-")
            assert gpu.memory_total_bytes > 1 << 30

    def test_gives_figures_that_can_be(self, machine: Machine) -> None:
        reader = machine.reader()
        identities = reader.identify()
        samples = reader.read(at=now(), with_processes=[gpu.uuid for gpu in identities])
        for identity, sample in zip(identities, samples, strict=True):
            assert set(sample.unread) <= set(MEASURED_FIELDS)
            assert health.judge(sample=sample)[0] is Health.HEALTHY
            assert sample.memory_used_bytes is not None
            assert sample.memory_used_bytes <= identity.memory_total_bytes
            assert sample.process_count is not None
            mean, highest = sample.utilization_percent, sample.utilization_max_percent
            if mean is not None and highest is not None:
                assert 0 <= mean <= highest <= 100
            power = sample.power_draw_milliwatts
            assert power is None or 1_000 < power < 2_000_000
            assert sample.temperature_celsius is None or 0 < sample.temperature_celsius < 110

    def test_reads_the_counters_that_health_is_judged_by(self, machine: Machine) -> None:
        reader = machine.reader()
        uuids = [gpu.uuid for gpu in reader.identify()]
        for counters in reader.counters(gpu_uuids=uuids):
            assert counters.pcie_width is not None
            assert counters.pcie_width_max is not None
            assert 1 <= counters.pcie_width <= counters.pcie_width_max <= 32
            told = {counters.ecc_uncorrected, counters.row_remap_failed, counters.recovery_action}
            assert told & {0}, "a sound GPU says that it is"

    def test_reads_what_root_has_set(self, machine: Machine) -> None:
        reader = machine.reader()
        uuids = [gpu.uuid for gpu in reader.identify()]
        for settings in reader.settings(gpu_uuids=uuids):
            limit = settings.power_limit_milliwatts
            assert limit is None or 10_000 < limit < 3_000_000
            assert settings.compute_mode in (None, 0, 2, 3)

    def test_answers_every_call_in_time(self, machine: Machine) -> None:
        reader = machine.reader()
        uuids = [gpu.uuid for gpu in reader.identify()]
        reader.host()
        reader.read(at=now(), with_processes=uuids)
        reader.counters(gpu_uuids=uuids)
        reader.settings(gpu_uuids=uuids)
        taken = reader.call_milliseconds()
        sys.stdout.write(f"{machine.source}, {len(uuids)} GPUs, milliseconds of the last call:\n")
        for function, milliseconds in sorted(taken.items(), key=lambda item: -item[1]):
            sys.stdout.write(f"{milliseconds:10.4f} {function}\n")
        called = {re.sub(r"_v\d+$", "", function) for function in taken}
        assert called >= CALLS
        assert called & {"nvmlDeviceGetUtilizationRates", "nvmlDeviceGetSamples"}
        slow = {name for name, value in taken.items() if value > ANSWER_SECONDS_MAX * 1000}
        first = {name for name in slow if name.startswith("nvmlInit")}
        assert slow == first, "without persistence mode the first open alone is slow"

    def test_lets_go_of_the_driver_and_takes_it_up_again(self, machine: Machine) -> None:
        reader = machine.reader()
        before = [gpu.uuid for gpu in reader.identify()]
        reader.close()
        assert [gpu.uuid for gpu in reader.identify()] == before


class TestProgram:
    def test_shows_the_same_gpus_with_the_time_of_each_call(self, machine: Machine) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "agents.node", "--once", "--json"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            cwd=ROOT,
        )
        shown = json.loads(done.stdout)
        assert [gpu["identity"]["uuid"] for gpu in shown["gpus"]] == [
            gpu.uuid for gpu in machine.reader().identify()
        ]
        assert shown["call_milliseconds"]["nvmlDeviceGetPowerUsage"] > 0
