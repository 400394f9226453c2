"""The child that owns the driver stays small: what it imports, every node holds in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# Each costs from a half to ten megabytes that the child has no use for.
DEAR = {
    "agents.protocol",
    "asyncio",
    "dataclasses",
    "httpx",
    "inspect",
    "logging",
    "sqlite3",
    "ssl",
}


def test_the_child_imports_nothing_dear() -> None:
    listed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, agents.node.driver.__main__; print('\\n'.join(sys.modules))",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split()
    assert "agents.node.nvml" in listed
    assert DEAR & set(listed) == set()
