"""The agent itself: look at the GPUs, bring leases forward, report, wait; one step after another.

`step` does whatever is due now and returns how long nothing will be; it never sleeps and takes its time from
the clock it was given, so that a test can live through a day in a moment.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
from dataclasses import dataclass, replace

from agents.node import AGENT_VERSION
from agents.node.clock import MarketClock
from agents.node.health import HealthTrack
from agents.node.idlebook import Cure, IdleBook, Standing
from agents.node.jobs import Jobs
from agents.node.keys import KeyRing
from agents.node.leasebook import LeaseBook
from agents.node.leases import Gate, LeaseKeeper, MachineView
from agents.node.lookout import Lookout
from agents.node.metering import window_seconds
from agents.node.offering import OwnersScheduler
from agents.node.provision import Capabilities, Provisioner
from agents.node.reader import Reader, Sample
from agents.node.reporting import Reporter, backoff_seconds
from agents.node.sender import Refused, Sender, Unreachable
from agents.node.spool import LEASES_KEPT, Spool
from agents.node.watch import HealthWatch
from agents.protocol import (
    PROTOCOL_VERSION,
    EnrolRequest,
    Health,
    IdlePolicy,
    LeaseState,
    Reading,
    from_json,
    to_json,
)

logger = logging.getLogger(__name__)

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
        key: KeyRing,
        machine: Machine,
        token: str,
        dice: random.Random,
        free_after_seconds: int | None = None,
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
        self._free_after_seconds = free_after_seconds
        self._lookout = Lookout(reader=reader)
        self._has_looked = False
        self._provisioner = provisioner
        self._capabilities = Capabilities(kind="none")  # until the first look
        self._enrol_failures = 0
        self._enrol_at_boottime = clock.boottime_seconds()
        self._node_id = spool.value(name="node_id")
        spool.forget_leases(before=clock.now() - LEASES_KEPT)
        self._book = LeaseBook(
            spool=spool, key=key, epoch=spool.start_epoch(), simulated=reader.simulated
        )
        self._book.node_id = self._node_id or ""
        self._watch = HealthWatch(
            spool=spool,
            book=self._book,
            boot_id=machine.boot_id,
            simulated=reader.simulated,
            at=clock.now(),
            cgroup_marks=provisioner.cgroup_marks,
        )
        self._idle = IdleBook(policy=self._idle_policy(), jobs=jobs, scheduler=scheduler, cure=cure)
        gate = Gate(
            reader=reader,
            provisioner=provisioner,
            boot_id=machine.boot_id,
            boottime_seconds=clock.boottime_seconds,
            directory=spool.path.parent,
            policy=lambda: self._watch.policy.health,
            health=self._watch.standings,
            report_unfit=self._watch.quarantine,
        )
        self._keeper = LeaseKeeper(book=self._book, provisioner=provisioner, jobs=jobs, gate=gate)
        self._reporter = Reporter(
            spool=spool,
            sender=sender,
            keeper=self._keeper,
            watch=self._watch,
            clock=clock,
            book=self._book,
            key=key,
            boot_id=machine.boot_id,
            simulated=reader.simulated,
            dice=dice,
        )
        self._adopt()

    def step(self) -> float:
        """Do what is due and return for how many seconds nothing will be.

        :raises EnrolmentRefused: when the market does not take this node.
        """
        if self._look_due_at() <= self._clock.boottime_seconds():
            self._sample()
        if self._node_id is None:
            self._enrol()
            return self._wait_seconds()
        self._step_leases()
        news = (self._keeper.has_news(), self._idle.has_news(), self._watch.take_grave_news())
        if any(news):
            self._reporter.hurry()
        if self._reporter.due_at_boottime <= self._clock.boottime_seconds():
            self._reporter.reader_hung_since = self._lookout.hung_since
            self._reporter.warnings = self._warnings()
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

    def _look_due_at(self) -> float:
        if not self._has_looked or self._idle.wants_look():
            return self._clock.boottime_seconds()
        return self._lookout.due_at(
            leased=self._leased(), interval_seconds=self._reporter.interval_seconds
        )

    def _idle_policy(self) -> IdlePolicy:
        """Return the owner's policy; the flag of this machine goes before it."""
        policy = self._watch.policy.idle
        if self._free_after_seconds is None:
            return policy
        return replace(policy, free_after_seconds=self._free_after_seconds)

    def _held(self, at: dt.datetime) -> frozenset[str]:
        """Return the GPUs that a lease has, is about to have or has not given back yet."""
        return frozenset(
            uuid
            for record in self._book.records.values()
            if record.state in (LeaseState.ACTIVE, LeaseState.STOPPING)
            or (record.state is LeaseState.PREPARING and record.grant.not_before <= at)
            for uuid in record.grant.gpu_uuids
        )

    def _leased(self) -> set[str]:
        return {uuid for record in self._keeper.running() for uuid in record.grant.gpu_uuids}

    def _sample(self, *, everything: bool = False) -> None:
        self._has_looked = True
        at = self._clock.now()
        held = self._held(at)
        seen = self._lookout.look(
            at=at,
            now=self._clock.boottime_seconds(),
            leased=self._leased(),
            interval_seconds=self._reporter.interval_seconds,
            everything=everything or self._idle.wants_look(),
            wants_processes=self._idle.wants_processes(at=at, leased=held),
            wants_second_look=lambda samples: self._idle.wants_second_look(
                samples=samples, leased=held
            ),
            wants_counters=self._watch.wants_counters(),
        )
        self._idle.policy = self._idle_policy()
        if seen.samples is None:
            self._idle.blind(at=at, leased=held)
        else:
            self._take_inventory(again=seen.inventory)
        samples = seen.samples or []
        self._watch.look(
            at=at,
            listed=None if seen.samples is None else {i.uuid for i in self._lookout.identities},
            samples={sample.gpu_uuid: sample for sample in samples},
            counters=seen.counters,
            xids=self._reader.xids(),
        )
        judged = {s.gpu_uuid: self._watch.track(gpu_uuid=s.gpu_uuid) for s in samples}
        standings = self._idle.note(
            samples=samples,
            healths={uuid: track.health for uuid, track in judged.items()},
            leased=held,
            at=at,
        )
        readings = [_reading(s, judged[s.gpu_uuid], standings[s.gpu_uuid]) for s in samples]
        if readings:
            self._reporter.note(readings=readings)
        if seen.leased:
            fresh = None if seen.samples is None else {s.gpu_uuid: s for s in seen.samples}
            self._keeper.meter(view=replace(self._view(), samples=fresh))
        if self._keeper.running():
            self._spool.commit(values={"last_alive_at": to_json(at)})

    def _take_inventory(self, *, again: bool) -> None:
        self._idle.know(identities=self._lookout.identities)
        if again:
            self._reporter.inventory = None
            self._capabilities = self._provisioner.probe()
        if self._lookout.host is not None:
            self._reporter.host = replace(
                self._lookout.host,
                provisioner=self._capabilities.kind,
                provisioner_version=self._capabilities.version,
            )
        self._reporter.renew_inventory(inventory=self._lookout.identities)

    def _warnings(self) -> list[str]:
        warnings = self._reader.warnings()
        return [*warnings, self._capabilities.problem] if self._capabilities.problem else warnings

    def _view(self) -> MachineView:
        return MachineView(
            at=self._clock.now(),
            gpu_uuids=frozenset(identity.uuid for identity in self._lookout.identities),
            samples=self._lookout.samples,
            may_start=(
                self._lookout.hung_since is None
                and not self._reporter.revoked
                and self._spool.is_writable
            ),
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
            self._sample(everything=True)
        self._idle.restart(gpu_uuids=self._keeper.step(view=self._view()))

    # --- enrolling ------------------------------------------------------------------------------------

    def _enrol(self) -> None:
        """Introduce this machine once its GPUs are known; try again while the market is down.

        :raises EnrolmentRefused: when the market refuses the token, or there is none.
        """
        now = self._clock.boottime_seconds()
        if now < self._enrol_at_boottime or not self._lookout.identities:
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
            gpus=self._lookout.identities,
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
            told = answer.retry_after_seconds
            if told is not None:
                delay = max(delay, told + self._dice.uniform(0, ENROL_INTERVAL_SECONDS))
            self._enrol_at_boottime = now + delay
            return
        self._spool.commit(values={"node_id": answer.node_id})
        self._node_id = answer.node_id
        self._book.node_id = answer.node_id
        self._reporter.grant_interval(seconds=answer.report_interval_seconds)
        self._reporter.due_at_boottime = self._clock.boottime_seconds()
        logger.info(
            "enrolled as node %s with %d GPUs", answer.node_id, len(self._lookout.identities)
        )

    def _wait_seconds(self) -> float:
        now = self._clock.boottime_seconds()
        due = [now + WAIT_SECONDS_MAX, self._look_due_at()]
        if self._node_id is None:
            due.append(
                max(self._enrol_at_boottime, now + 0.1) if self._lookout.identities else now + 1.0
            )
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
