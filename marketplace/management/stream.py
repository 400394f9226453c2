"""One readable stream of lines out of many processes."""

import os
import re
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TextIO

NAME_WIDTH = 12

# A line longer than this comes from a program gone wrong; it is cut into pieces of this size.
LINE_LIMIT_BYTES = 16 * 1024

# Bright, then plain shades that both dark and light terminals show.
COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)

# What a stranger sends may reach a log line; a terminal must not obey it.
CONTROL_CHARACTERS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# The times, levels and process ids that gunicorn, celery, valkey and the agents put before their lines: the
# stream has a time of its own.
PREAMBLES = re.compile(
    r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\]:?(?: |$)(?:\[\d+\] (?:\[[A-Z]+\] )?)?"
    r"|^\d+:[A-Z] \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d\.\d+ [*#.-] "
    r"|^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)? (?:UTC \[\d+\] )?"
)


class LineSplitter:
    """Turns chunks of bytes into whole lines of clean text."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[str]:
        """Return the lines that this chunk completes."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        while len(self._rest) > LINE_LIMIT_BYTES:
            whole.append(self._rest[:LINE_LIMIT_BYTES])
            self._rest = self._rest[LINE_LIMIT_BYTES:]
        return [clean(line) for line in whole]

    def flush(self) -> list[str]:
        """Return what was left without a line end."""
        rest, self._rest = self._rest, b""
        return [clean(rest)] if rest else []


def clean(line: bytes) -> str:
    """Decode one line, drop what would command a terminal, and its own time of day."""
    text = line.decode("utf-8", errors="replace").replace("\t", "    ").rstrip()
    return PREAMBLES.sub("", CONTROL_CHARACTERS.sub("", text))


def now_in_utc() -> datetime:
    """Return the time that stands before a line."""
    return datetime.now(tz=UTC)


class LogStream:
    """Writes `time name | text`, in colour only where a person looks on."""

    def __init__(
        self,
        *,
        output: TextIO | None = None,
        clock: Callable[[], datetime] = now_in_utc,
    ) -> None:
        """Write to `output`, by default to this process's standard output.

        Colour needs a terminal, and NO_COLOR (no-color.org) turns it off.
        """
        self._output = sys.stdout if output is None else output
        self._clock = clock
        self._colours: dict[str, int] = {}
        self._coloured = self._output.isatty() and not os.environ.get("NO_COLOR")
        self._closed = False

    def line(self, *, name: str, text: str) -> None:
        """Write one line of one process."""
        if not text:
            return
        label = f"{name:<{NAME_WIDTH}} |"
        if self._coloured:
            colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
            label = f"\x1b[{colour}m{label}\x1b[0m"
        self._write(f"{self._clock():%H:%M:%S} {label} {text}\n")

    def say(self, text: str) -> None:
        """Write one line of the command itself."""
        self.line(name="headroom", text=text)

    def block(self, lines: Iterable[str]) -> None:
        """Write lines as they are, to be read by themselves."""
        self._write("".join(f"{line}\n" for line in lines))

    def _write(self, text: str) -> None:
        if self._closed:
            return
        try:
            self._output.write(text)
            self._output.flush()
        except (BrokenPipeError, ValueError):
            # The reader went away (`up | head`). The market goes on; there is nobody to tell.
            self._closed = True
