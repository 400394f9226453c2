"""Wait for other processes by what they write and by their end, never by the clock."""

import os
import select
import subprocess
from collections.abc import Sequence

# Far above what any step takes; reaching it is a failure, not a measurement.
LIMIT_SECONDS = 60


def read_until(process: subprocess.Popen[str], word: str) -> list[str]:
    """Read a process's lines up to one that holds `word`."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError(f"{word!r} never came: {''.join(lines)}")


def wait_for_end(pids: Sequence[int]) -> None:
    """Wait until none of these processes lives; they need not be our children."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            ready, _, _ = select.select([descriptor], [], [], LIMIT_SECONDS)
            assert ready, f"process {pid} still lives"
        finally:
            os.close(descriptor)
