"""Follow the kernel's log for the driver's errors: it outlives a lost GPU and knows the process.

A line reads `NVRM: Xid (PCI:0000:18:00): 79, pid=1234, name=python, …`, with or without the process.
Lines of the NVSwitches (`SXid`) are another matter and stay out: they name no GPU.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

KERNEL_LOG = Path("/dev/kmsg")
READ_BYTES = 8192  # the kernel refuses to give a record to a smaller buffer than it needs
RECORDS_PER_CALL_MAX = 4096  # a flood of lines may not hold the agent
REST_BYTES_MAX = 65536  # of a line that does not end
_XID = re.compile(
    r"NVRM: (?:GPU\d+ )?Xid \((?:PCI:)?([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2})(?:\.[0-9a-f])?\): (\d{1,9})"
    r"(?:, pid='?(\d{1,10}|[^',]*)'?)?(?:, name=([^,]*))?",
    flags=re.IGNORECASE | re.ASCII,
)
# `priority,sequence,microseconds since boot,flags;text`; the facility is the priority over eight.
_RECORD = re.compile(r"(\d+),\d+,(\d+),[^;]*;(.*)", flags=re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelXid:
    """An error as the kernel tells it, so many seconds ago."""

    pci: tuple[int, int, int]
    xid: int
    age_seconds: float
    pid: int | None
    process_name: str


def pci_place(*, bus_id: str) -> tuple[int, int, int] | None:
    """Return domain, bus and device of any spelling, such as `00000000:1A:00.0` and `0000:1a:00`."""
    match = re.fullmatch(
        r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})(?:\.[0-9a-f])?",
        bus_id.lower(),
        flags=re.ASCII,
    )
    return None if match is None else (int(match[1], 16), int(match[2], 16), int(match[3], 16))


class KernelLog:
    """Reads what was written since it was opened, and never waits."""

    def __init__(
        self, *, path: Path = KERNEL_LOG, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.problem = ""  # why nothing can be seen here, in words
        self._path = path
        self._monotonic = monotonic
        self._descriptor: int | None = None
        self._rest = b""

    def open(self) -> None:
        """Start to follow the log from its end; where that is not allowed, say so once."""
        if self._descriptor is not None or self.problem:
            return
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.problem = f"the kernel's log cannot be read: {error.strerror}"
            logger.warning(
                "%s; run as root, or errors of GPUs are told without their process", self.problem
            )
            return
        try:
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError:
            return  # a pipe has no end to go to: all of it is new

    def read(self) -> list[KernelXid]:
        """Return the errors since the last call."""
        found: list[KernelXid] = []
        if self._descriptor is None:
            return found
        for _ in range(RECORDS_PER_CALL_MAX):
            try:
                chunk = os.read(self._descriptor, READ_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # the kernel overwrote records before they were read; the next read goes on behind
            except OSError as error:
                self.problem = f"the kernel's log cannot be read: {error.strerror}"
                logger.warning("%s", self.problem)
                self.close()
                break
            if not chunk:
                break
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._rest = self._rest[-REST_BYTES_MAX:]
            for line in lines:
                xid = self._parse(line.decode(errors="replace"))
                if xid is not None:
                    found.append(xid)
        return found

    def close(self) -> None:
        """Let go of the log."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _parse(self, line: str) -> KernelXid | None:
        record = _RECORD.fullmatch(line)
        if record is None or int(record[1]) >> 3:
            return (
                None  # a continuation, or written by a program: only the kernel itself is believed
            )
        match = _XID.match(record[3])
        if match is None:
            return None
        pci = pci_place(bus_id=match[1])
        assert pci is not None, "the expression gives one of the spellings"
        pid = match[3]
        return KernelXid(
            pci=pci,
            xid=int(match[2]),
            age_seconds=max(0.0, self._monotonic() - int(record[2]) / 1_000_000),
            pid=int(pid) if pid and pid.isdigit() else None,
            process_name=_name(match[4]),
        )


def _name(text: str | None) -> str:
    name = "".join(c for c in (text or "").strip() if c.isprintable())[:64]
    return "" if name == "<unknown>" else name
