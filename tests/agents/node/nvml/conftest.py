"""A reader of the stand-in library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.node.direct import DirectReader
from tests.fakes.nvml import Journal


@pytest.fixture
def reader(journal: Journal, tmp_path: Path) -> Iterator[DirectReader]:
    reader = DirectReader(journal=journal, proc=str(tmp_path / "proc"))
    yield reader
    reader.close()
