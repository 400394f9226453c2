"""Run other programs: those of the owner, and parts of our own in a process of theirs.

A program of the owner takes a verb in argv and JSON on its standard input, and writes JSON to its output.
Exit status 0 means done, 1 failed for good, 2 the request is wrong, 75 (EX_TEMPFAIL) try again. What it
writes to standard error is kept as evidence.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXIT_FAILED, EXIT_BAD_REQUEST, EXIT_AGAIN = 1, 2, 75
OUTPUT_BYTES_MAX = 64 * 1024  # an answer is one small object
EVIDENCE_LENGTH_MAX = 300  # of standard error, so that the detail stays below what the wire carries


def that_finds_us(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which `python -m agents.node…` works from whatever directory we run in."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


class ProgramFailed(Exception):
    """The program did not run, did not end in time, or answered no JSON; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended. `evidence` is the end of what it wrote to standard error."""

    status: int
    output: bytes
    evidence: str

    def answer(self) -> dict[str, Any]:
        """Return the JSON object on its standard output; nothing there is an empty object.

        :raises ProgramFailed: when it is something else.
        """
        if not self.output.strip():
            return {}
        try:
            answer = json.loads(self.output)
        except ValueError:
            answer = None
        if len(self.output) > OUTPUT_BYTES_MAX or not isinstance(answer, dict):
            raise ProgramFailed("answered something that is no JSON object")
        return answer


def run(*, program: Path, verb: str, request: bytes, seconds_max: float) -> Finished:
    """Call the program once and wait for its end; after `seconds_max` it is killed with its children.

    :raises ProgramFailed: when it cannot be run, or takes too long.
    """
    # The agent's own settings, the enrolment token among them, are none of the program's business.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADROOM_")}
    try:
        process = subprocess.Popen(  # noqa: S603 - the owner's own program, no shell
            [str(program), verb],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise ProgramFailed(f"cannot be run: {error.strerror}") from None
    try:
        output, errors = process.communicate(request, timeout=seconds_max)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        raise ProgramFailed(f"took longer than {seconds_max:g} s for {verb}") from None
    evidence = errors.decode(errors="replace").strip().replace("\x00", "")[-EVIDENCE_LENGTH_MAX:]
    return Finished(status=process.returncode, output=output, evidence=evidence)
