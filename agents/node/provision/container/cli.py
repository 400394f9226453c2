"""Call podman or docker: argument lists, no shell, a time limit for each call."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from agents.node.provision import ProvisionFailed
from agents.protocol import TEXT_LENGTH_MAX

EVIDENCE_LENGTH_MAX = 300  # of standard error, so that the detail stays below what the wire carries
# The first versions whose `--device` takes the name of a CDI device without further settings.
VERSION_MIN = {"podman": (4, 1), "docker": (25, 0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a call ended."""

    status: int
    output: str
    errors: str

    @property
    def evidence(self) -> str:
        """Return the end of what it complained of, in one line."""
        return " ".join(self.errors.replace("\x00", "").split())[-EVIDENCE_LENGTH_MAX:]

    def says(self, words: Sequence[str]) -> bool:
        """Return whether it complained in one of these words."""
        text = self.errors.lower()
        return any(word in text for word in words)


class Cli:
    """The runtime's program with the flags that stand before every verb."""

    def __init__(self, *, program: str, kind: str, flags: Sequence[str]) -> None:
        self.program = program
        self.kind = kind
        self._flags = tuple(flags)

    def start(self, *, arguments: Sequence[str]) -> subprocess.Popen[str]:
        """Start a call in a process group of its own.

        :raises ProvisionFailed: when there is no such program.
        """
        # The agent's own settings, the enrolment token among them, are none of the runtime's business.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADROOM_")}
        try:
            return subprocess.Popen(  # noqa: S603 - no shell; the program is the owner's setting
                [self.program, *self._flags, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise ProvisionFailed(
                f"the container runtime {self.program} cannot be run: {error.strerror}"
            ) from None

    def run(self, *, arguments: Sequence[str], seconds_max: float) -> Done:
        """Make a call and wait for its end.

        :raises ProvisionFailed: when there is no such program, or it takes longer than the limit.
        """
        process = self.start(arguments=arguments)
        try:
            output, errors = process.communicate(timeout=seconds_max)
        except subprocess.TimeoutExpired:
            end(process=process)
            raise ProvisionFailed(
                f"{self.kind} {arguments[0]} took longer than {seconds_max:g} s"
            ) from None
        return Done(status=process.returncode, output=output, errors=errors)

    def version(self, *, seconds_max: float) -> str:
        """Return the runtime's version.

        :raises ProvisionFailed: when there is no runtime, or it is too old to know CDI devices.
        """
        done = self.run(
            arguments=["version", "--format", "{{.Client.Version}}"], seconds_max=seconds_max
        )
        if done.status:
            raise failed(what=f"{self.kind} does not work", done=done)
        text = done.output.strip()
        numbers = re.match(r"(\d+)\.(\d+)", text)
        if numbers is None:
            raise ProvisionFailed(f"{self.kind} does not say its version: {text[:50]!r}")
        least = VERSION_MIN[self.kind]
        if (int(numbers[1]), int(numbers[2])) < least:
            raise ProvisionFailed(
                f"{self.kind} {text} is too old for CDI devices: {least[0]}.{least[1]} is needed"
            )
        return text


def end(*, process: subprocess.Popen[str]) -> None:
    """Kill a call with all its children and forget its pipes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.poll()  # it ended by itself a moment ago
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def failed(*, what: str, done: Done) -> ProvisionFailed:
    """Return the failure of a call, with its evidence."""
    text = f"{what}: {done.evidence}" if done.evidence else f"{what} (status {done.status})"
    return ProvisionFailed(text[:TEXT_LENGTH_MAX])
