"""Parts of the agent that run in a process of their own."""

import os
from pathlib import Path

import pytest

from agents.node import cure, residue
from agents.node.programs import that_finds_us
from tests.fakes import nvml

FIRST = "GPU-00000000-0000-4000-8000-000000000000"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class TestOurOwn:
    def test_keep_the_paths_that_were_set(self) -> None:
        paths = that_finds_us({"PYTHONPATH": "/one"})["PYTHONPATH"].split(os.pathsep)
        assert (Path(paths[0]) / "agents" / "node").is_dir()
        assert paths[1:] == ["/one"]

    def test_look_through_memory_from_any_directory(self, journal: nvml.Journal) -> None:
        finding = residue.check(
            gpu_uuids=[FIRST], environment={**os.environ, **journal.environment}
        )
        assert finding.passed is True, finding.detail

    def test_cure_from_any_directory(
        self, journal: nvml.Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NVML_STANDIN_STATE", str(journal.path))
        cure.cure(gpu_uuid=FIRST, library=str(journal.cuda_library))
