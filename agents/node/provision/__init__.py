"""How GPUs are handed to a tenant: one interface, several ways.

Every verb is idempotent and keyed by (lease, epoch); none talks to NVML or to the market. Checks, receipts
and metering belong to the agent, so that every way of provisioning gets them.
"""

from __future__ import annotations

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


class Provisioner(Protocol):
    """Verbs are called by a worker thread, one at a time for each lease."""

    blocking: bool  # whether a verb may take long enough to need a thread of its own

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
