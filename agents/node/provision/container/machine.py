"""What this machine has to share among the containers of tenants."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

OPEN_FILES_MAX = 1_048_576  # more than any data loader opens
NO_LIMIT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Processors, memory, and the limits that this process may hand on (-1: no limit)."""

    cpu_count: int
    memory_bytes: int
    open_files_max: int
    locked_bytes_max: int


def measure() -> Machine:
    """Return what there is here."""
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return Machine(
        cpu_count=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        open_files_max=OPEN_FILES_MAX
        if open_files == NO_LIMIT
        else min(OPEN_FILES_MAX, open_files),
        # RLIM_INFINITY is -1 too, which is how the runtimes spell it.
        locked_bytes_max=resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],
    )
