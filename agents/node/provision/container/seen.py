"""How the runtime shows a container."""

from __future__ import annotations

import json
from dataclasses import dataclass

from agents.node.provision import ProvisionFailed
from agents.node.provision.container.argv import LABEL
from agents.node.provision.container.cli import Cli, failed

# How podman and docker say that something is not there.
ABSENT = (
    "no such", "not found", "no container with name", "does not exist", "unable to find network",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A container: its id, its state in the runtime's words, and its labels."""

    container_id: str
    status: str
    runs: bool
    labels: dict[str, str]

    @property
    def port(self) -> int:
        """Return the published port of ssh.

        :raises ProvisionFailed: when the container does not carry it: it is none of ours.
        """
        text = self.labels.get(f"{LABEL}.port", "")
        if not text.isdigit():
            raise ProvisionFailed("a container of this lease's name is not of this agent")
        return int(text)


def look(*, cli: Cli, name: str, seconds_max: float) -> Seen | None:
    """Return a container as the runtime shows it, or `None` when there is none.

    :raises ProvisionFailed: when that cannot be told.
    """
    done = cli.run(arguments=["container", "inspect", name], seconds_max=seconds_max)
    if done.status:
        if done.says(ABSENT):
            return None
        raise failed(what=f"{cli.kind} cannot inspect {name}", done=done)
    try:
        (document,) = json.loads(done.output)
        labels = document["Config"]["Labels"] or {}
        return Seen(
            container_id=str(document["Id"]),
            status=str(document["State"]["Status"]).lower(),
            runs=bool(document["State"]["Running"]),
            labels={str(key): str(value) for key, value in labels.items()},
        )
    except (ValueError, KeyError, TypeError):
        raise ProvisionFailed(
            f"{cli.kind} describes {name} in a way that is not understood"
        ) from None
