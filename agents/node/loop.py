"""The agent itself: look at the GPUs, bring leases forward, report, wait; one step after another.

`step` does whatever is due now and returns how long nothing will be; it never sleeps and takes its time from
the clock it was given, so that a test can live through a day in a moment.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
from dataclasses import dataclass

from agents.node import AGENT_VERSION
from agents.node.clock import MarketClock
from agents.node.health import HealthTrack
from agents.node.host import NodeKey
from agents.node.idlebook import Cure, IdleBook, Standing
from agents.node.jobs import Jobs
from agents.node.leasebook import LeaseBook
from agents.node.leases import LeaseKeeper, MachineView
from agents.node.metering import window_seconds
from agents.node.offering import OwnersScheduler
from agents.node.provision import Provisioner
from agents.node.reader import Reader, ReaderHung, ReaderUnavailable, Sample
from agents.node.reporting import Reporter, backoff_seconds
from agents.node.sender import Refused, Sender, Unreachable
from agents.node.spool import LEASES_KEPT, Spool
from agents.node.watch import HealthWatch
from agents.protocol import (
    PROTOCOL_VERSION,
    EnrolRequest,
    GpuCounters,
    GpuIdentity,
    Health,
    IdlePolicy,
    LeaseState,
    Reading,
    from_json,
    to_json,
)

logger = logging.getLogger(__name__)

SAMPLE_SECONDS_MAX = 15.0  # every call takes a lock of the driver that the tenant needs too
COUNTERS_SECONDS = 60.0  # what speaks of health changes seldom, and each read takes that lock too
WAIT_SECONDS_MAX = 60.0
# Bounds the back-off at 20 s: a person waits for the first sign of a node.
ENROL_INTERVAL_SECONDS = 5


class EnrolmentRefused(Exception):
    """The market does not take this node; the message says why in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Who this node is."""

    hostname: str
    machine_id: str
    boot_id: str


class Agent:
    """One run of the agent, from its start to its end."""

    def __init__(
        self,
        *,
        reader: Reader,
        spool: Spool,
        sender: Sender,
        provisioner: Provisioner,
        jobs: Jobs,
        clock: MarketClock,
        key: NodeKey,
        machine: Machine,
        token: str,
        idle_policy: IdlePolicy,
        dice: random.Random,
        scheduler: OwnersScheduler | None = None,
        cure: Cure | None = None,
    ) -> None:
        self._reader = reader
        self._spool = spool
        self._sender = sender
        self._clock = clock
        self._key = key
        self._machine = machine
        self._token = token
        self._dice = dice
        self._identities: list[GpuIdentity] = []
        self._samples: dict[str, Sample] | None = None
        self._idle = IdleBook(policy=idle_policy, jobs=jobs, scheduler=scheduler, cure=cure)
        self._hung_since: dt.datetime | None = None
        self._reader_complaint = ""
        self._sampled_at_boottime: float | None = None
        self._counted_at_boottime: float | None = None
        self._enrol_failures = 0
        self._enrol_at_boottime = clock.boottime_seconds()
        self._node_id = spool.value(name="node_id")
        spool.forget_leases(before=clock.now() - LEASES_KEPT)
        self._book = LeaseBook(
            spool=spool, key=key, epoch=spool.raise_epoch(), simulated=reader.simulated
        )
        self._book.node_id = self._node_id or ""
        self._keeper = LeaseKeeper(book=self._book, provisioner=provisioner, jobs=jobs)
        self._watch = HealthWatch(
            spool=spool,
            book=self._book,
            boot_id=machine.boot_id,
            simulated=reader.simulated,
            at=clock.now(),
        )
        self._reporter = Reporter(
            spool=spool,
            sender=sender,
            keeper=self._keeper,
            watch=self._watch,
            clock=clock,
            book=self._book,
            boot_id=machine.boot_id,
            simulated=reader.simulated,
            dice=dice,
        )
        self._adopt()

    def step(self) -> float:
        """Do what is due and return for how many seconds nothing will be.

        :raises EnrolmentRefused: when the market does not take this node.
        """
        if self._sample_due():
            self._sample()
        if self._node_id is None:
            self._enrol()
            return self._wait_seconds()
        self._step_leases()
        news = (self._keeper.has_news(), self._idle.has_news(), self._watch.take_grave_news())
        if any(news):
            self._reporter.hurry()
        if self._reporter.due_at_boottime <= self._clock.boottime_seconds():
            self._reporter.reader_hung_since = self._hung_since
            self._reporter.send(node_id=self._node_id)
            self._idle.told()
            self._keeper.window_seconds = window_seconds(
                report_interval_seconds=self._reporter.interval_seconds
            )
            self._step_leases()
            if self._keeper.has_news():
                self._reporter.hurry()
        return self._wait_seconds()

    # --- looking ------------------------------------------------------------------------------------

    def _sample_due(self) -> bool:
        if self._sampled_at_boottime is None or self._keeper.wants_sample(at=self._clock.now()):
            return True
        if self._idle.wants_look():
            return True
        return self._clock.boottime_seconds() >= self._sampled_at_boottime + self._sample_seconds()

    def _sample_seconds(self) -> float:
        return min(SAMPLE_SECONDS_MAX, float(self._reporter.interval_seconds))

    def _sample(self) -> None:
        self._sampled_at_boottime = self._clock.boottime_seconds()
        at = self._clock.now()
        samples = self._look(at)
        self._samples = None if samples is None else {s.gpu_uuid: s for s in samples}
        self._watch_over(at)
        if samples is None:
            self._idle.blind(at=at, leased=self._leased(at))
        judged = {s.gpu_uuid: self._watch.track(gpu_uuid=s.gpu_uuid) for s in samples or []}
        standings = self._idle.note(
            samples=samples or [],
            healths={uuid: track.health for uuid, track in judged.items()},
            leased=self._leased(at),
            at=at,
        )
        readings = [
            _reading(sample, judged[sample.gpu_uuid], standings[sample.gpu_uuid])
            for sample in samples or []
        ]
        if readings:
            self._reporter.note(readings=readings)
        self._keeper.meter(view=self._view())
        if self._keeper.running():
            self._spool.commit(values={"last_alive_at": to_json(at)})

    def _look(self, at: dt.datetime) -> list[Sample] | None:
        """Read all GPUs; `None` when that is not possible now."""
        try:
            identities = self._reader.identify()
            self._idle.know(identities=identities)
            samples = self._read(at)
        except ReaderUnavailable as error:
            if isinstance(error, ReaderHung):
                self._hung_since = self._hung_since or at
            if str(error) != self._reader_complaint:
                logger.warning("the GPUs cannot be read: %s", error)
            self._reader_complaint = str(error)
            return None
        if self._reader_complaint:
            logger.info("the GPUs can be read again")
        self._reader_complaint = ""
        self._hung_since = None
        self._identities = identities
        self._reporter.renew_inventory(inventory=identities)
        known = {identity.uuid for identity in identities}
        return [sample for sample in samples if sample.gpu_uuid in known]

    def _read(self, at: dt.datetime) -> list[Sample]:
        """Read all GPUs; where memory moved since the last list of processes, look again with one.

        :raises ReaderUnavailable: when nothing could be read.
        """
        leased = self._leased(at)
        wanted = self._idle.wants_processes(at=at, leased=leased)
        samples = self._reader.read(at=at, with_processes=wanted)
        again = self._idle.wants_second_look(samples=samples, leased=leased)
        if not again:
            return samples
        second = self._reader.read(at=at, gpu_uuids=again, with_processes=again)
        by_uuid = {sample.gpu_uuid: sample for sample in second}
        return [by_uuid.get(sample.gpu_uuid, sample) for sample in samples]

    def _leased(self, at: dt.datetime) -> frozenset[str]:
        """Return the GPUs that a lease has, is about to have or has not given back yet."""
        return frozenset(
            uuid
            for record in self._book.records.values()
            if record.state in (LeaseState.ACTIVE, LeaseState.STOPPING)
            or (record.state is LeaseState.PREPARING and record.grant.not_before <= at)
            for uuid in record.grant.gpu_uuids
        )

    def _watch_over(self, at: dt.datetime) -> None:
        """Judge the health of the GPUs by what was just read, by Xids, and by counters when those are due."""
        counters: list[GpuCounters] = []
        if self._samples is not None and self._counters_due():
            self._counted_at_boottime = self._clock.boottime_seconds()
            try:
                counters = self._reader.counters(gpu_uuids=list(self._samples))
            except ReaderUnavailable as error:
                logger.warning("the counters cannot be read: %s", error)
        self._watch.look(
            at=at,
            listed=None if self._samples is None else {i.uuid for i in self._identities},
            samples=self._samples or {},
            counters=counters,
            xids=self._reader.xids(),
        )

    def _counters_due(self) -> bool:
        if self._counted_at_boottime is None or self._watch.wants_counters():
            return True
        return self._clock.boottime_seconds() >= self._counted_at_boottime + COUNTERS_SECONDS

    def _view(self) -> MachineView:
        return MachineView(
            at=self._clock.now(),
            gpu_uuids=frozenset(identity.uuid for identity in self._identities),
            samples=self._samples,
            may_start=self._hung_since is None and not self._reporter.revoked,
        )

    # --- leases -------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        last_alive = self._spool.value(name="last_alive_at")
        last_boot = self._spool.value(name="boot_id")
        self._keeper.adopt(
            at=self._clock.now(),
            last_alive_at=None if last_alive is None else from_json(dt.datetime, last_alive),
            same_boot=last_boot == self._machine.boot_id,
        )
        self._spool.commit(values={"boot_id": self._machine.boot_id})

    def _step_leases(self) -> None:
        if self._keeper.wants_sample(at=self._clock.now()):
            self._sample()
        self._idle.restart(gpu_uuids=self._keeper.step(view=self._view()))

    # --- enrolling ------------------------------------------------------------------------------------

    def _enrol(self) -> None:
        """Introduce this machine once its GPUs are known; try again while the market is down.

        :raises EnrolmentRefused: when the market refuses the token, or there is none.
        """
        now = self._clock.boottime_seconds()
        if now < self._enrol_at_boottime or not self._identities:
            return
        if not self._token:
            raise EnrolmentRefused(
                "this machine is not enrolled yet: give --token or HEADROOM_TOKEN of the owner"
            )
        request = EnrolRequest(
            protocol=PROTOCOL_VERSION,
            token=self._token,
            public_key=self._key.public_key,
            hostname=self._machine.hostname,
            machine_id=self._machine.machine_id,
            agent_version=AGENT_VERSION,
            simulated=self._reader.simulated,
            gpus=self._identities,
        )
        answer = self._sender.enrol(request=request)
        if isinstance(answer, Refused):
            raise EnrolmentRefused(
                f"the market refused this node: {answer.status} {answer.code} {answer.detail}".rstrip()
            )
        if isinstance(answer, Unreachable):
            if not self._enrol_failures:
                logger.warning("the market cannot be reached, trying on: %s", answer.detail)
            delay = backoff_seconds(
                failures=self._enrol_failures,
                interval_seconds=ENROL_INTERVAL_SECONDS,
                dice=self._dice,
            )
            self._enrol_failures += 1
            self._enrol_at_boottime = now + max(delay, answer.retry_after_seconds or 0.0)
            return
        self._clock.learn(market_now=answer.now)
        self._spool.commit(values={"node_id": answer.node_id})
        self._node_id = answer.node_id
        self._book.node_id = answer.node_id
        self._reporter.grant_interval(seconds=answer.report_interval_seconds)
        self._reporter.due_at_boottime = self._clock.boottime_seconds()
        logger.info("enrolled as node %s with %d GPUs", answer.node_id, len(self._identities))

    def _wait_seconds(self) -> float:
        now = self._clock.boottime_seconds()
        assert self._sampled_at_boottime is not None, "the first step looks at the GPUs"
        due = [now + WAIT_SECONDS_MAX, self._sampled_at_boottime + self._sample_seconds()]
        if self._node_id is None:
            due.append(max(self._enrol_at_boottime, now + 0.1) if self._identities else now + 1.0)
        else:
            due.append(self._reporter.due_at_boottime)
        at = self._clock.now()
        change_at = self._keeper.next_change_at(at=at)
        if change_at is not None:
            due.append(now + (change_at - at).total_seconds())
        return max(0.0, min(due) - now)


def _reading(sample: Sample, judged: HealthTrack, standing: Standing) -> Reading:
    state, reason = judged.health, judged.reason
    if state is Health.HEALTHY and standing.suspect:
        state, reason = Health.SUSPECT, standing.suspect
    return Reading(
        gpu_uuid=sample.gpu_uuid,
        measured_at=sample.measured_at,
        health=state,
        health_reason=reason,
        idle_state=standing.state,
        idle_since=standing.since,
        idle_reason=standing.reason,
        utilization_percent=sample.utilization_percent,
        memory_used_bytes=sample.memory_used_bytes,
        power_draw_milliwatts=sample.power_draw_milliwatts,
        energy_millijoules=sample.energy_millijoules,
        temperature_celsius=sample.temperature_celsius,
        process_count=sample.process_count,
        unread=sample.unread,
    )
