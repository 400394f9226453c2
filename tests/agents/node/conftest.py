"""What the agent's tests share: a clock that is moved by hand, a market on loopback, an agent to step."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.node.rig import FakeClock, Rig
from tests.fakes import nvml
from tests.fakes.market import FakeMarket

# A broken assertion in a shared scene says as much as one in a test.
pytest.register_assert_rewrite("tests.agents.node.scenes")


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


@pytest.fixture(scope="session")
def standin_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in NVML; without a compiler the test is skipped, a build that fails is an error."""
    try:
        return nvml.build(directory=tmp_path_factory.mktemp("nvml"))
    except nvml.NoCompiler as missing:
        pytest.skip(str(missing))
    except subprocess.CalledProcessError as failure:
        if os.environ.get("CI"):
            pytest.fail(f"the stand-in NVML does not build: {failure.stderr}")
        pytest.skip(f"the stand-in NVML does not build here: {failure.stderr[-300:]}")


@pytest.fixture
def journal(tmp_path: Path, standin_library: Path, monkeypatch: pytest.MonkeyPatch) -> nvml.Journal:
    """A machine with two GPUs, seen by this process and by those that it starts."""
    journal = nvml.Journal(path=tmp_path / "journal", library=standin_library)
    journal.write("gpus 2")
    for name, value in journal.environment.items():
        monkeypatch.setenv(name, value)
    return journal
