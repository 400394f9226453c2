"""What the stand-in library is asked for, and where the kernel tells of processes."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

AT = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
UUIDS = [f"GPU-00000000-0000-4000-8000-{index:012d}" for index in range(2)]
MIB = 1024 * 1024


def write_proc(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "proc" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
