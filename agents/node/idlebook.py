"""What the agent knows of each GPU's idleness: tracks, the owner's scheduler, cures of latched GPUs.

The loop gives it samples and takes from it what to report. Nothing here waits: the scheduler is asked and
cures run beside the loop.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from agents.node import idle, offering
from agents.node.jobs import Jobs
from agents.node.offering import Allocations, OwnersScheduler
from agents.node.reader import Sample
from agents.protocol import TEXT_LENGTH_MAX, GpuIdentity, Health, IdlePolicy, IdleState

logger = logging.getLogger(__name__)

Cure = Callable[[str], None]  # takes a GPU's UUID; raises when the GPU was not cured


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a GPU is to the market after a look: `since` is since when it is idle or parked.

    `suspect` says in words why the GPU is suspect for its idleness alone, empty when it is not.
    """

    state: IdleState
    since: dt.datetime | None
    reason: str
    suspect: str = ""


class IdleBook:
    """All GPUs of one node. `policy` may be exchanged between two looks."""

    def __init__(
        self,
        *,
        policy: IdlePolicy,
        jobs: Jobs,
        scheduler: OwnersScheduler | None = None,
        cure: Cure | None = None,
    ) -> None:
        self.policy = policy
        self._jobs = jobs
        self._allocations = Allocations(scheduler=scheduler, jobs=jobs)
        self._cure = cure
        self._curing: dict[str, Future[None]] = {}
        self._identities: dict[str, GpuIdentity] = {}
        self._tracks: dict[str, idle.IdleTrack] = {}
        self._standings: dict[str, Standing] = {}
        self._withdrawn = False

    def know(self, *, identities: Iterable[GpuIdentity]) -> None:
        """Take in the GPUs of this machine; what was learned of one that is gone is forgotten."""
        self._identities = {identity.uuid: identity for identity in identities}
        self._tracks = {
            uuid: self._tracks.get(uuid) or idle.begin(product_name=identity.product_name)
            for uuid, identity in self._identities.items()
        }

    def wants_processes(self, *, at: dt.datetime, leased: Collection[str]) -> set[str]:
        """Return the GPUs of which the look at `at` must read the processes; never a leased one."""
        return {
            uuid
            for uuid, track in self._tracks.items()
            if uuid not in leased and track.wants_processes(at=at)
        }

    def wants_second_look(self, *, samples: Iterable[Sample], leased: Collection[str]) -> set[str]:
        """Return the GPUs of which these samples say too little without a list of processes."""
        return {
            sample.gpu_uuid
            for sample in samples
            if sample.gpu_uuid in self._tracks
            and sample.gpu_uuid not in leased
            and self._tracks[sample.gpu_uuid].wants_processes_with(sample=sample)
        }

    def note(
        self,
        *,
        samples: Iterable[Sample],
        healths: Mapping[str, Health],
        leased: Collection[str],
        at: dt.datetime,
    ) -> dict[str, Standing]:
        """Take in a look and return what each GPU is now; ask and cure what has to be.

        A leased GPU is busy, whatever its tenant does with it, and is never touched.
        """
        self._allocations.take_answer()
        self._end_cures(at)
        standings = {}
        for sample in samples:
            uuid = sample.gpu_uuid
            if uuid not in leased:
                self._tracks[uuid] = idle.step(
                    track=self._tracks[uuid], sample=sample, policy=self.policy
                )
        unleased = {uuid: t for uuid, t in self._tracks.items() if uuid not in leased}
        self._ask(unleased, at)
        for sample in samples:
            standings[sample.gpu_uuid] = self._standing(
                sample.gpu_uuid,
                health=healths[sample.gpu_uuid],
                leased=sample.gpu_uuid in leased,
                at=at,
            )
        for uuid, standing in standings.items():
            before = self._standings.get(uuid)
            if before is not None and before.state is IdleState.OFFERABLE != standing.state:
                self._withdrawn = self._withdrawn or uuid not in leased
                logger.info("GPU %s is withdrawn: %s", uuid, standing.reason)
        self._standings |= standings
        self._begin_cures(unleased, at)
        return standings

    def blind(self, *, at: dt.datetime, leased: Collection[str]) -> None:
        """Take in a look that saw nothing at all: what nobody watched was not quiet."""
        for uuid, track in self._tracks.items():
            if uuid not in leased:
                nothing = Sample(
                    gpu_uuid=uuid,
                    measured_at=at,
                    unread={"utilization_percent": "the reader does not answer"},
                )
                self._tracks[uuid] = idle.step(track=track, sample=nothing, policy=self.policy)

    def restart(self, *, gpu_uuids: Iterable[str]) -> None:
        """Count from anew after a lease."""
        for uuid in gpu_uuids:
            if uuid in self._tracks:
                self._tracks[uuid] = idle.restart(track=self._tracks[uuid])

    def wants_look(self) -> bool:
        """Return whether the owner's scheduler has answered, or a cure has ended, since the last look."""
        return self._allocations.has_answer() or any(f.done() for f in self._curing.values())

    def has_news(self) -> bool:
        """Return whether a GPU was withdrawn that the market still takes for offerable."""
        return self._withdrawn

    def told(self) -> None:
        """Remember that a report with the last look was sent."""
        self._withdrawn = False

    def _standing(self, uuid: str, *, health: Health, leased: bool, at: dt.datetime) -> Standing:
        if health is Health.LOST:
            return Standing(state=IdleState.UNKNOWN, since=None, reason="it is lost")
        if leased:
            return Standing(state=IdleState.BUSY, since=None, reason="a lease has it")
        track = self._tracks[uuid]
        state, reason = offering.judge(
            track=track,
            identity=self._identities[uuid],
            health=health,
            allocations=self._allocations,
            at=at,
        )
        suspect = track.reason[:TEXT_LENGTH_MAX] if track.latched else ""
        return Standing(state=state, since=track.idle_since, reason=reason, suspect=suspect)

    def _ask(self, unleased: Mapping[str, idle.IdleTrack], at: dt.datetime) -> None:
        free = [
            self._identities[uuid]
            for uuid, track in unleased.items()
            if track.state is IdleState.FREE
        ]
        self._allocations.ask(gpus=free, at=at)
        self._allocations.take_answer()  # jobs that run inline have answered by now

    def _begin_cures(self, unleased: Mapping[str, idle.IdleTrack], at: dt.datetime) -> None:
        cure = self._cure
        if cure is None:
            return
        for uuid, track in unleased.items():
            if uuid not in self._curing and track.wants_cure(at=at):
                logger.warning("GPU %s is latched: a CUDA context is opened on it to cure it", uuid)
                self._curing[uuid] = self._jobs.submit(work=lambda uuid=uuid: cure(uuid))  # type: ignore[misc]

    def _end_cures(self, at: dt.datetime) -> None:
        for uuid in [uuid for uuid, future in self._curing.items() if future.done()]:
            error = self._curing.pop(uuid).exception()
            if error is not None:
                logger.warning("GPU %s was not cured: %s", uuid, error)
            if uuid in self._tracks:
                self._tracks[uuid] = idle.cured(
                    track=self._tracks[uuid], at=at, succeeded=error is None
                )
