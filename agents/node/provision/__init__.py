"""How GPUs are handed to a tenant: one interface, several ways.

Every verb is idempotent and keyed by (lease, epoch); none talks to NVML or to the market. Checks, receipts
and metering belong to the agent, so that every way of provisioning gets them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from agents.protocol import Access, Grant


class ProvisionFailed(Exception):
    """The verb failed for good; the message is shown to owner and tenant."""


class ProvisionAgain(Exception):
    """The verb has not finished yet; call it again with the same grant."""

    def __init__(self, detail: str, *, after_seconds: float) -> None:
        super().__init__(detail)
        self.after_seconds = after_seconds


class Presence(StrEnum):
    """What there is of a lease on this machine."""

    ABSENT = "absent"
    PREPARING = "preparing"
    RUNNING = "running"
    EXITED = "exited"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A lease of which there is something on this machine, whoever remembers it."""

    lease_id: str
    lease_epoch: int
    gpu_uuids: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """How GPUs are handed over here. `devices` are those that can be, or `None` where that cannot be told.

    `problem` says in words why nothing can be handed over, and is empty where all is well.
    """

    kind: str
    version: str = ""
    devices: frozenset[str] | None = None
    problem: str = ""


class Provisioner(Protocol):
    """The verbs of a lease are called by a worker thread, one at a time; the others by the loop."""

    blocking: bool  # whether a verb may take long enough to need a thread of its own

    def probe(self) -> Capabilities:
        """Say what can be handed over, without changing anything."""
        ...

    def list_leases(self) -> Sequence[Found] | None:
        """Return the leases of which something is here; `None` where this provisioner cannot tell.

        :raises ProvisionFailed: when it should be able to tell, and is not.
        """
        ...

    def cgroup_marks(self) -> Mapping[str, str]:
        """Return lease ids by what the control groups of their processes have in their names.

        A lease's own id is such a mark without being named here. Must answer at once.
        """
        ...

    def config_sha256(self, *, grant: Grant) -> str | None:
        """Return the digest of how the lease was started, where there is such a thing."""
        ...

    def prepare(self, *, grant: Grant) -> None:
        """Fetch and make what the start needs; may take minutes.

        :raises ProvisionFailed: when it cannot be done.
        :raises ProvisionAgain: when it is not done yet.
        """
        ...

    def start(self, *, grant: Grant) -> Access:
        """Give the tenant access; return how.

        :raises ProvisionFailed: when it cannot be done.
        :raises ProvisionAgain: when it is not done yet.
        """
        ...

    def inspect(self, *, grant: Grant) -> Presence:
        """Say what there is of the lease.

        :raises ProvisionFailed: when that cannot be told.
        """
        ...

    def stop(self, *, grant: Grant) -> None:
        """Take the access away and end what runs.

        :raises ProvisionFailed: when it could not be ended.
        :raises ProvisionAgain: when it is not done yet.
        """
        ...

    def destroy(self, *, grant: Grant) -> None:
        """Leave nothing of the lease behind: no volume, key, network or rule.

        :raises ProvisionFailed: when something is left.
        :raises ProvisionAgain: when it is not done yet.
        """
        ...


class NoProvisioner:
    """Stands in on a real node whose owner has configured no way to hand GPUs over."""

    blocking = False

    def probe(self) -> Capabilities:
        """Say that nothing can be handed over."""
        return Capabilities(kind="none", problem="no provisioner configured")

    def list_leases(self) -> Sequence[Found]:
        """Say that there is nothing."""
        return ()

    def cgroup_marks(self) -> Mapping[str, str]:
        """Return nothing: nothing runs."""
        return {}

    def config_sha256(self, *, grant: Grant) -> str | None:
        """Return nothing: nothing was started."""
        del grant
        return None

    def prepare(self, *, grant: Grant) -> None:
        """Refuse.

        :raises ProvisionFailed: always.
        """
        del grant
        raise ProvisionFailed("no provisioner configured")

    def start(self, *, grant: Grant) -> Access:
        """Refuse.

        :raises ProvisionFailed: always.
        """
        del grant
        raise ProvisionFailed("no provisioner configured")

    def inspect(self, *, grant: Grant) -> Presence:
        """Say that there is nothing."""
        del grant
        return Presence.ABSENT

    def stop(self, *, grant: Grant) -> None:
        """Do nothing: nothing was started."""

    def destroy(self, *, grant: Grant) -> None:
        """Do nothing: nothing was made."""
