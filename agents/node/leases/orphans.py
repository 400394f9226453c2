"""What an earlier run left on the machine and no book tells of: it is ended before anybody gets its GPUs."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass

from agents.node.jobs import Jobs
from agents.node.leases.view import STOP_ATTEMPTS_MAX, STOP_RETRY_SECONDS, words
from agents.node.provision import Found, Provisioner
from agents.protocol import DesiredState, Grant

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Orphan:
    grant: Grant
    ending: Future[None] | None = None
    attempts: int = 0
    again_at: dt.datetime | None = None


class Orphans:
    """Leases that run and should not."""

    def __init__(self, *, provisioner: Provisioner, jobs: Jobs) -> None:
        self._provisioner = provisioner
        self._jobs = jobs
        self._orphans: list[_Orphan] = []

    def add(self, *, found: Found, at: dt.datetime) -> None:
        """Take note of one; `step` ends it."""
        logger.warning(
            "lease %s (epoch %d) is here, but should not be", found.lease_id, found.lease_epoch
        )
        grant = Grant(
            lease_id=found.lease_id,
            lease_epoch=found.lease_epoch,
            gpu_uuids=found.gpu_uuids,
            not_before=at,
            not_after=at,
            desired_state=DesiredState.STOP,
        )
        self._orphans.append(_Orphan(grant=grant))

    def again_at(self) -> list[dt.datetime]:
        """Return when orders to end are to be given again."""
        return [o.again_at for o in self._orphans if o.again_at is not None]

    def holds(self, *, gpu_uuids: Collection[str]) -> bool:
        """Return whether one of these GPUs may still be held; of an unknown lease any may."""
        return any(
            not o.grant.gpu_uuids or set(gpu_uuids) & set(o.grant.gpu_uuids) for o in self._orphans
        )

    def step(self, *, at: dt.datetime) -> None:
        """Order the end of each; one that survives all orders is left to the checks and to the owner."""
        for orphan in list(self._orphans):
            if orphan.again_at is not None and at < orphan.again_at:
                continue
            orphan.again_at = None
            if orphan.ending is None:
                orphan.ending = self._jobs.submit(work=self._end(orphan.grant))
            if not orphan.ending.done():
                continue
            error, orphan.ending = orphan.ending.exception(), None
            orphan.attempts += 1
            if error is None or orphan.attempts == STOP_ATTEMPTS_MAX:
                self._orphans.remove(orphan)
            else:
                orphan.again_at = at + dt.timedelta(seconds=STOP_RETRY_SECONDS)
            if error is not None:
                key = (orphan.grant.lease_id, orphan.grant.lease_epoch)
                logger.warning("lease %s (epoch %d) does not end: %s", *key, words(error=error))

    def _end(self, grant: Grant) -> Callable[[], None]:
        def end() -> None:
            self._provisioner.stop(grant=grant)
            self._provisioner.destroy(grant=grant)

        return end
