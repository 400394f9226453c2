"""Hand GPUs over through a program of the owner: Slurm, virtual machines, bare metal, anything.

The program is called as `PROGRAM VERB` with the grant as JSON on its standard input, for the verbs
prepare, start, inspect, stop and destroy; for list the input is an empty object. Exit status 0 means done,
1 failed for good, 2 the request is wrong, 75 (EX_TEMPFAIL) try again. On standard output it may write one
JSON object: `start` must answer {"host", "port", "username"} and may add "host_key_fingerprint"; `inspect`
must answer {"state": ...}; any verb may answer {"state": "pending", "poll_after_s": N} with status 0 and is
then called again. `list` is optional: it answers {"leases": [{"lease_id", "lease_epoch", "gpu_uuids"}, ...]}
of all that is here, or {"state": "unimplemented"}; what it lists and the agent does not know is stopped and
destroyed. What it writes to standard error is kept as evidence in the detail of a failure. Every verb must
be idempotent. A program that runs the tenant in a control group with the lease's id in its name lets the
agent tell the tenant's faults from the machine's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.node import programs
from agents.node.programs import EXIT_AGAIN, EXIT_BAD_REQUEST, ProgramFailed
from agents.node.provision import (
    Capabilities,
    Found,
    Presence,
    ProvisionAgain,
    ProvisionFailed,
)
from agents.protocol import TEXT_LENGTH_MAX, Access, Grant, MalformedMessage, encode, from_json

VERB_SECONDS_MAX = {
    "prepare": 1800.0,
    "start": 600.0,
    "stop": 300.0,
    "destroy": 300.0,
    "inspect": 10.0,
    "list": 10.0,
}
POLL_SECONDS_DEFAULT, POLL_SECONDS_MAX = 5.0, 300.0
LISTED_MAX = 256  # leases of one machine, finished ones included


class _BadRequest(ProvisionFailed):
    """The program does not take the request as it is."""


class HookProvisioner:
    """Calls the owner's program."""

    blocking = True

    def __init__(self, *, program: Path, verb_seconds_max: dict[str, float] | None = None) -> None:
        self._program = program
        self._verb_seconds_max = verb_seconds_max or VERB_SECONDS_MAX

    def probe(self) -> Capabilities:
        """Say that the owner's program is asked; what it can hand over, only it knows."""
        usable = os.access(self._program, os.X_OK)
        problem = "" if usable else f"the owner's hook {self._program} may not be executed"
        return Capabilities(kind="hook", problem=problem)

    def list_leases(self) -> Sequence[Found] | None:
        """Call `list`; `None` when the owner's program has no such verb."""
        try:
            answer = self._call("list", None)
        except _BadRequest:
            return None  # a program from before this verb refuses what it does not know
        except ProvisionAgain as error:
            raise ProvisionFailed(f"the owner's hook cannot tell now: {error}") from None
        if not answer or answer.get("state") == "unimplemented":
            return None
        leases = answer.get("leases")
        if not isinstance(leases, list) or len(leases) > LISTED_MAX:
            raise ProvisionFailed("the owner's hook answered list without a list of leases")
        try:
            return [from_json(Found, lease) for lease in leases]
        except MalformedMessage as error:
            raise ProvisionFailed(f"the owner's hook listed what is no lease: {error}") from None

    def cgroup_marks(self) -> Mapping[str, str]:
        """Return nothing more: the program names its control groups after the lease, or nobody is blamed."""
        return {}

    def config_sha256(self, *, grant: Grant) -> str | None:
        """Return nothing: how the owner's program starts a lease is its own business."""
        del grant
        return None

    def prepare(self, *, grant: Grant) -> None:
        """Call `prepare`."""
        self._call("prepare", grant)

    def start(self, *, grant: Grant) -> Access:
        """Call `start` and return its answer."""
        answer = self._call("start", grant)
        answer.pop("state", None)
        try:
            return from_json(Access, answer)
        except MalformedMessage as error:
            raise ProvisionFailed(
                f"the owner's hook answered no access to start: {error}"
            ) from None

    def inspect(self, *, grant: Grant) -> Presence:
        """Call `inspect` and return the state it names."""
        try:
            answer = self._call("inspect", grant)
            return Presence(str(answer.get("state")))
        except ProvisionAgain as error:
            raise ProvisionFailed(f"the owner's hook cannot tell now: {error}") from None
        except ValueError:
            allowed = ", ".join(Presence)
            raise ProvisionFailed(f"the owner's hook must answer a state of {allowed}") from None

    def stop(self, *, grant: Grant) -> None:
        """Call `stop`."""
        self._call("stop", grant)

    def destroy(self, *, grant: Grant) -> None:
        """Call `destroy`."""
        self._call("destroy", grant)

    def _call(self, verb: str, grant: Grant | None) -> dict[str, Any]:
        try:
            finished = programs.run(
                program=self._program,
                verb=verb,
                request=b"{}" if grant is None else encode(grant),
                seconds_max=self._verb_seconds_max[verb],
            )
        except ProgramFailed as error:
            raise ProvisionFailed(f"the owner's hook {error}") from None
        status, evidence = finished.status, finished.evidence
        if status == EXIT_AGAIN:
            raise ProvisionAgain(
                _detail(f"the owner's hook asks to try {verb} again", evidence),
                after_seconds=POLL_SECONDS_DEFAULT,
            )
        if status == EXIT_BAD_REQUEST:
            raise _BadRequest(_detail(f"the owner's hook refuses the request {verb}", evidence))
        if status:
            raise ProvisionFailed(
                _detail(f"the owner's hook failed at {verb} with status {status}", evidence)
            )
        try:
            answer = finished.answer()
        except ProgramFailed as error:
            raise ProvisionFailed(f"the owner's hook {error} to {verb}") from None
        if answer.get("state") == "pending":
            seconds = answer.get("poll_after_s")
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
                seconds = POLL_SECONDS_DEFAULT
            raise ProvisionAgain(
                f"the owner's hook works on {verb}", after_seconds=min(seconds, POLL_SECONDS_MAX)
            )
        return answer


def _detail(what: str, evidence: str) -> str:
    return (f"{what}: {evidence}" if evidence else what)[:TEXT_LENGTH_MAX]
