"""What the agent's tests share: a clock that is moved by hand, a market on loopback, an agent to step."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.agents.node import silicon
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


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test on a user's machine; where the project is judged nothing may be left out."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def standin_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in NVML; without a compiler the test is skipped with the reason, in CI it fails."""
    try:
        return nvml.build(directory=tmp_path_factory.mktemp("nvml"))
    except nvml.NoCompiler as missing:
        skip_or_fail(str(missing))
    except subprocess.CalledProcessError as failure:
        skip_or_fail(f"the stand-in NVML does not build here: {failure.stderr[-1000:]}")


@pytest.fixture
def journal(tmp_path: Path, standin_library: Path, monkeypatch: pytest.MonkeyPatch) -> nvml.Journal:
    """A machine with two GPUs, seen by this process and by those that it starts."""
    journal = nvml.Journal(path=tmp_path / "journal", library=standin_library)
    journal.write("gpus 2")
    for name, value in journal.environment.items():
        monkeypatch.setenv(name, value)
    return journal


@pytest.fixture(
    params=[pytest.param(silicon.REAL, marks=pytest.mark.gpu), pytest.param(silicon.STAND_IN)]
)
def machine(request: pytest.FixtureRequest) -> Iterator[silicon.Machine]:
    """Real GPUs, skipped where no driver answers, and then the stand-in."""
    if request.param == silicon.STAND_IN:
        machine = silicon.stand_in(request.getfixturevalue("journal"))
    else:
        machine = silicon.Machine(source=silicon.REAL)
    machine.need_gpus()
    yield machine
    machine.close()
