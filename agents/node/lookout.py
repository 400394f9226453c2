"""Look at the GPUs as the plan says, and know what cannot be seen."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from agents.node import plan
from agents.node.reader import Reader, ReaderHung, ReaderUnavailable, Sample
from agents.protocol import GpuCounters, GpuIdentity, HostFacts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one look brought. `samples` is `None` when nothing could be read.

    `leased` says that the leased GPUs were due, seen or not; `inventory` that the market should be told of
    the GPUs again although they are the same.
    """

    samples: list[Sample] | None
    counters: list[GpuCounters] = field(default_factory=list)
    leased: bool = False
    inventory: bool = False


class Lookout:
    """The reader and all that is remembered of its answers."""

    def __init__(self, *, reader: Reader) -> None:
        self.identities: list[GpuIdentity] = []
        self.host: HostFacts | None = None
        self.samples: dict[str, Sample] | None = None  # the latest of each GPU; None while blind
        self.hung_since: dt.datetime | None = None
        self._reader = reader
        self._complaint = ""
        self._looked = plan.Looked()

    def due_at(self, *, leased: Collection[str], interval_seconds: int) -> float:
        """Return when the next look is due, on the boot clock."""
        return plan.due_at(
            looked=self._looked,
            any_unleased=any(identity.uuid not in leased for identity in self.identities),
            any_leased=bool(leased),
            interval_seconds=interval_seconds,
        )

    def look(
        self,
        *,
        at: dt.datetime,
        now: float,
        leased: Collection[str],
        interval_seconds: int,
        everything: bool = False,
        wants_processes: Collection[str] = (),
        wants_second_look: Callable[[Sequence[Sample]], Collection[str]] | None = None,
        wants_counters: bool = False,
    ) -> Seen:
        """Read what is due, or a sample of `everything`; `now` is the boot clock at the instant `at`.

        `wants_second_look` names the GPUs whose samples say too little without a list of processes.
        """
        memories = {uuid: s.memory_used_bytes for uuid, s in (self.samples or {}).items()}
        look = plan.choose(
            looked=self._looked,
            now=now,
            gpu_uuids=[identity.uuid for identity in self.identities],
            leased=leased,
            interval_seconds=interval_seconds,
            everything=everything or self.samples is None,
            wants_processes=wants_processes,
            memories=memories,
        )
        samples: list[Sample] | None = None
        counters: list[GpuCounters] = []
        try:
            if look.inventory or self.samples is None:
                self.host = self._reader.host()
            if look.counters or self.samples is None:
                look = self._identify(look)
            samples = self._read(look, at)
            again = _never_listed(samples)
            if wants_second_look is not None:
                again |= frozenset(wants_second_look(samples))
            if again:
                samples = self._list_processes(samples, again, at)
                look = replace(look, with_processes=look.with_processes | again)
            if look.counters or wants_counters:
                counters = self._reader.counters(
                    gpu_uuids=[identity.uuid for identity in self.identities]
                )
        except ReaderUnavailable as error:
            self._fail(error, at)
            look = plan.Look(unleased=look.unleased, leased=look.leased)
        else:
            self._succeed()
        memories = {s.gpu_uuid: s.memory_used_bytes for s in samples or []}
        self._looked = plan.after(
            looked=self._looked,
            look=look,
            now=now,
            interval_seconds=interval_seconds,
            memories=memories,
        )
        return Seen(
            samples=samples, counters=counters, leased=look.leased, inventory=look.inventory
        )

    def _identify(self, look: plan.Look) -> plan.Look:
        """Ask again who is here; a GPU that was not here before is read at once, processes and all."""
        self.identities = self._reader.identify()
        known = set(self._looked.listed)
        new = frozenset(identity.uuid for identity in self.identities if identity.uuid not in known)
        return plan.Look(
            gpu_uuids=look.gpu_uuids | new,
            with_processes=look.with_processes | new,
            unleased=look.unleased,
            leased=look.leased,
            counters=look.counters,
            inventory=look.inventory,
        )

    def _read(self, look: plan.Look, at: dt.datetime) -> list[Sample]:
        here = {identity.uuid for identity in self.identities}
        found = self._reader.read(
            at=at, gpu_uuids=look.gpu_uuids & here, with_processes=look.with_processes & here
        )
        samples = [sample for sample in found if sample.gpu_uuid in here]
        before = self.samples or {}
        self.samples = {uuid: sample for uuid, sample in before.items() if uuid in here}
        self.samples.update((sample.gpu_uuid, sample) for sample in samples)
        return samples

    def _list_processes(
        self, samples: list[Sample], gpu_uuids: frozenset[str], at: dt.datetime
    ) -> list[Sample]:
        """Return the samples with the processes of these GPUs as they are now; the rest stays as it was read.

        The highest load since the last read is known to the first of two reads alone.
        """
        look = plan.Look(gpu_uuids=gpu_uuids, with_processes=gpu_uuids)
        second = {sample.gpu_uuid: sample for sample in self._read(look, at)}
        listed = [_with_list(s, second[s.gpu_uuid]) if s.gpu_uuid in second else s for s in samples]
        assert self.samples is not None, "the read has just succeeded"
        self.samples.update((sample.gpu_uuid, sample) for sample in listed)
        return listed

    def _fail(self, error: ReaderUnavailable, at: dt.datetime) -> None:
        if isinstance(error, ReaderHung):
            self.hung_since = self.hung_since or at
        if str(error) != self._complaint:
            logger.warning("the GPUs cannot be read: %s", error)
        self._complaint = str(error)
        self.samples = None

    def _succeed(self) -> None:
        if self._complaint:
            logger.info("the GPUs can be read again")
        self._complaint = ""
        self.hung_since = None


def _never_listed(samples: Sequence[Sample]) -> frozenset[str]:
    """Return the GPUs of whose processes the reader knows nothing, as after its child was started again.

    An idle GPU must not stop being idle because the driver was reopened.
    """
    return frozenset(
        s.gpu_uuid for s in samples if s.processes_at is None and "process_count" not in s.unread
    )


def _with_list(first: Sample, second: Sample) -> Sample:
    unread = {name: why for name, why in first.unread.items() if name != "process_count"}
    if (why := second.unread.get("process_count")) is not None:
        unread["process_count"] = why
    return replace(
        first,
        process_count=second.process_count,
        processes_at=second.processes_at,
        unread=unread,
    )
