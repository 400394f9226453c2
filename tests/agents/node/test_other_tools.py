"""gpustat and nvitop, unmodified and in processes of their own, see what the agent sees.

They read the same library by other code, so that an error in our reading does not agree with itself.
nvitop's screens are under the GPL and no part of what is tested: only its API (Apache-2.0) is called.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agents.node.child import ChildReader
from tests.agents.node.conftest import skip_or_fail
from tests.fakes.nvml import Journal

ROOT = Path(__file__).resolve().parents[3]
GIBIBYTE = 1 << 30
MEBIBYTE = 1 << 20
UUIDS = [f"GPU-00000000-0000-4000-8000-{index:012d}" for index in range(3)]

NVITOP_PROGRAM = """
import json
from nvitop import Device
seen = [
    {
        "uuid": device.uuid(),
        "name": device.name(),
        "utilization_percent": device.gpu_utilization(),
        "memory_used_bytes": device.memory_used(),
        "memory_total_bytes": device.memory_total(),
        "power_draw_milliwatts": device.power_usage(),
        "temperature_celsius": device.temperature(),
        "processes": {
            str(process.pid): process.gpu_memory() for process in device.processes().values()
        },
    }
    for device in Device.all()
]
print(json.dumps(seen))
"""


@dataclass(frozen=True)
class Scene:
    """A machine with a training job, a graphics session and a GPU at rest; the processes are real."""

    journal: Journal
    training_pid: int
    graphics_pid: int


@pytest.fixture
def scene(journal: Journal) -> Iterator[Scene]:
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    training, graphics = (sleeper.pid for sleeper in sleepers)
    journal.write("gpus 3")
    journal.set(0, util=93, mem_used=40 * GIBIBYTE, power=512_000, temp=64)
    journal.set(1, util=4, mem_used=300 * MEBIBYTE, power=81_000, temp=38)
    journal.start_process(0, pid=training, memory_bytes=40 * GIBIBYTE, sm_percent=90)
    journal.start_process(1, pid=graphics, kind="G", memory_bytes=300 * MEBIBYTE)
    yield Scene(journal=journal, training_pid=training, graphics_pid=graphics)
    for sleeper in sleepers:
        sleeper.kill()
        sleeper.wait()


def figures(scene: Scene) -> dict[str, dict[str, Any]]:
    """Return what `--once --json` says, by UUID."""
    shown = json.loads(_run(scene, sys.executable, "-m", "agents.node", "--once", "--json"))
    return {gpu["identity"]["uuid"]: {**gpu["identity"], **gpu["sample"]} for gpu in shown["gpus"]}


class TestGpustat:
    def test_agrees_with_the_agent(self, scene: Scene) -> None:
        _need("gpustat")
        ours = figures(scene)
        told = json.loads(_run(scene, sys.executable, "-m", "gpustat", "--json"))
        theirs = {gpu["uuid"]: gpu for gpu in told["gpus"]}
        assert list(theirs) == list(ours) == UUIDS
        for uuid, gpu in theirs.items():
            agent = ours[uuid]
            assert gpu["index"] == agent["index"]
            assert gpu["name"] == agent["product_name"]
            assert gpu["utilization.gpu"] == agent["utilization_percent"]
            assert gpu["temperature.gpu"] == agent["temperature_celsius"]
            assert gpu["power.draw"] == agent["power_draw_milliwatts"] // 1000
            assert gpu["memory.used"] == agent["memory_used_bytes"] // MEBIBYTE
            assert gpu["memory.total"] == agent["memory_total_bytes"] // MEBIBYTE
            assert len(gpu["processes"]) == agent["process_count"]
        assert [
            (process["pid"], process["gpu_memory_usage"])
            for gpu in theirs.values()
            for process in gpu["processes"]
        ] == [(scene.training_pid, 40 * 1024), (scene.graphics_pid, 300)]


class TestNvitop:
    def test_agrees_with_the_agent(self, scene: Scene) -> None:
        _need("nvitop")
        ours = figures(scene)
        theirs = json.loads(_run(scene, sys.executable, "-c", NVITOP_PROGRAM))
        assert [gpu["uuid"] for gpu in theirs] == list(ours) == UUIDS
        for gpu in theirs:
            agent = ours[gpu["uuid"]]
            assert gpu["name"] == agent["product_name"]
            for field in (
                "utilization_percent",
                "memory_used_bytes",
                "memory_total_bytes",
                "power_draw_milliwatts",
                "temperature_celsius",
            ):
                assert gpu[field] == agent[field], field
            assert len(gpu["processes"]) == agent["process_count"]

    def test_names_the_same_processes_as_the_reader(self, scene: Scene) -> None:
        _need("nvitop")
        theirs = json.loads(_run(scene, sys.executable, "-c", NVITOP_PROGRAM))
        reader = ChildReader(boottime_seconds=lambda: 0.0)
        try:
            ours = reader.processes(gpu_uuids=UUIDS)
        finally:
            reader.close()
        assert {
            gpu["uuid"]: {int(pid): used for pid, used in gpu["processes"].items()}
            for gpu in theirs
        } == {
            uuid: {process.pid: process.used_memory_bytes for process in processes}
            for uuid, processes in ours.items()
        }


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        skip_or_fail(f"{package} is not installed; it is in the requirements of the tests")


def _run(scene: Scene, *command: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env={**os.environ, **scene.journal.environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
