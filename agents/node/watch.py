"""Watch over the health of a node's GPUs: put each look, counter and Xid where it belongs, and tell of it.

Also keeps the owner's policy, by which all of this is judged, across restarts of the agent.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from agents.node import attribution, health
from agents.node.eventlog import EventLog
from agents.node.health import BlamedXid, HealthTrack
from agents.node.leasebook import LeaseBook
from agents.node.reader import Sample, Xid
from agents.node.spool import LeaseKey, Spool
from agents.protocol import (
    GpuCounters,
    GpuEvent,
    Health,
    MalformedMessage,
    NodePolicy,
    XidRule,
    decode,
    encode,
    policy_problems,
)

logger = logging.getLogger(__name__)

_GRAVE = frozenset({Health.QUARANTINED, Health.LOST})


class HealthWatch:
    """The tracks of one node's GPUs, the events that come of them, and the policy that is followed."""

    def __init__(
        self,
        *,
        spool: Spool,
        book: LeaseBook,
        boot_id: str,
        simulated: bool,
        at: dt.datetime,
        cgroup_marks: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.policy = _remembered_policy(spool)
        self._spool = spool
        self._book = book
        self._boot_id = boot_id
        self._cgroup_marks = cgroup_marks
        self._log = EventLog(spool=spool, book=book, simulated=simulated)
        self._tracks = {
            uuid: health.begin(track=track, boot_id=boot_id, at=at)
            for uuid, track in self._log.remembered().items()
        }
        self._written: dict[str, HealthTrack] = {}
        self._counters: dict[str, GpuCounters] = {}
        self._has_grave_news = False
        self._counters_are_wanted = False

    def track(self, *, gpu_uuid: str) -> HealthTrack:
        """Return what is known of a GPU's health."""
        return self._tracks.get(gpu_uuid) or HealthTrack(boot_id=self._boot_id)

    def look(
        self,
        *,
        at: dt.datetime,
        listed: Collection[str] | None,
        samples: Mapping[str, Sample],
        counters: Sequence[GpuCounters],
        xids: Sequence[Xid],
    ) -> None:
        """Take in what was read of the GPUs at `at`; what comes of it is on the disk afterwards.

        `listed` are the GPUs that the driver lists, `None` when it did not answer. One that was known and is
        listed no more is lost; one that is listed and not among the samples was not looked at this time.
        """
        by_gpu = {counted.gpu_uuid: counted for counted in counters}
        self._counters.update(by_gpu)
        if counters:
            self._counters_are_wanted = False
        blamed = [self._blame(xid) for xid in xids]
        events = [
            self._log.of_xid(blamed=each, lease=self._lease_at(each.xid.gpu_uuid, each.xid.at))
            for each in blamed
        ]
        gone = set() if listed is None else set(self._tracks) - set(listed)
        struck = {each.xid.gpu_uuid for each in blamed}
        for gpu_uuid in sorted({*samples, *gone, *struck}):
            events += self._step(
                gpu_uuid=gpu_uuid,
                looked_at=gpu_uuid in samples or gpu_uuid in gone,
                sample=samples.get(gpu_uuid),
                counters=by_gpu.get(gpu_uuid),
                xids=[each for each in blamed if each.xid.gpu_uuid == gpu_uuid],
                at=at,
            )
        self._write(events=events)

    def standings(self, gpu_uuids: Sequence[str]) -> dict[str, tuple[Health, str]]:
        """Return the outcome and the reason for each of some GPUs."""
        tracks = {uuid: self.track(gpu_uuid=uuid) for uuid in gpu_uuids}
        return {uuid: (track.health, track.reason) for uuid, track in tracks.items()}

    def quarantine(self, *, gpu_uuid: str, reason: str, at: dt.datetime, lease: LeaseKey) -> None:
        """Take a GPU off the market that did not pass a check around a lease; it is on the disk."""
        before = self.track(gpu_uuid=gpu_uuid)
        after = health.quarantine(track=before, reason=reason, at=at)
        self._write(events=self._tell(gpu_uuid, track=after, lease=lease, at=at))

    def follow(self, *, policy: NodePolicy | None, vouched_at: dt.datetime | None) -> None:
        """Follow the owner's policy from now on, and forget the faults that the owner answers for.

        A policy that makes no sense is not followed: the market's error must not blind the node.
        """
        if policy is not None and policy != self.policy:
            if problems := policy_problems(policy):
                logger.error("policy %d is not followed: %s", policy.version, "; ".join(problems))
            else:
                self._spool.commit(values={"policy": encode(policy).decode()})
                self.policy = policy
                logger.info("follows version %d of its owner's policy", policy.version)
        if vouched_at is not None:
            for gpu_uuid, track in self._tracks.items():
                self._tracks[gpu_uuid] = health.vouch(track=track, vouched_at=vouched_at)
            # What changes by that is told with the next look, which may find the same again.
            self._write(events=[])

    def counters_to_tell(self) -> list[GpuCounters]:
        """Return the last counters of each GPU that the market does not know yet."""
        return [self._counters[uuid] for uuid in sorted(self._counters)]

    def told(self, *, counters: Iterable[GpuCounters]) -> None:
        """Remember that the market knows these."""
        for counted in counters:
            if self._counters.get(counted.gpu_uuid) == counted:
                del self._counters[counted.gpu_uuid]

    def take_grave_news(self) -> bool:
        """Return whether a GPU was quarantined or lost since the last call: the market must hear at once."""
        news, self._has_grave_news = self._has_grave_news, False
        return news

    def wants_counters(self) -> bool:
        """Return whether something happened of which the counters may tell more before their time."""
        return self._counters_are_wanted

    def _step(
        self,
        *,
        gpu_uuid: str,
        looked_at: bool,
        sample: Sample | None,
        counters: GpuCounters | None,
        xids: Sequence[BlamedXid],
        at: dt.datetime,
    ) -> list[GpuEvent]:
        before = self.track(gpu_uuid=gpu_uuid)
        policy = self.policy.health
        if looked_at:
            after = health.step(
                track=before, sample=sample, counters=counters, xids=xids, policy=policy, at=at
            )
        else:
            after = health.with_xids(track=before, xids=xids, policy=policy)
        rules = {health.rule_of(xid=each.xid.xid, policy=policy) for each in xids}
        self._counters_are_wanted |= bool(rules - {XidRule.TENANT})
        return self._tell(gpu_uuid, track=after, lease=self._lease_at(gpu_uuid, at), at=at)

    def _tell(
        self, gpu_uuid: str, *, track: HealthTrack, lease: LeaseKey | None, at: dt.datetime
    ) -> list[GpuEvent]:
        """Keep a track, and return the event that tells of it if its outcome is news."""
        self._tracks[gpu_uuid] = track
        if (track.health, track.cause) == (track.told_health, track.told_cause):
            return []
        self._tracks[gpu_uuid] = replace(track, told_health=track.health, told_cause=track.cause)
        self._has_grave_news |= track.health in _GRAVE
        why = track.reason and f": {track.reason}"
        logger.warning("GPU %s is %s%s", gpu_uuid, track.health, why)
        return [self._log.of_health(gpu_uuid=gpu_uuid, track=track, lease=lease, at=at)]

    def _write(self, *, events: Sequence[GpuEvent]) -> None:
        """Write events, and the tracks of which something changed that must survive."""
        changed = {
            uuid: track
            for uuid, track in self._tracks.items()
            if self._written.get(uuid) != track.durable()
        }
        if events or changed:
            self._log.write(events=events, tracks=changed)
            self._written.update({uuid: track.durable() for uuid, track in changed.items()})

    def _blame(self, xid: Xid) -> BlamedXid:
        known = {record.grant.lease_id for record in self._book.records.values()}
        marks = {i: i for i in known} | dict(self._cgroup_marks())
        return attribution.attribute(
            xid=xid,
            lease=self._lease_at(xid.gpu_uuid, xid.at),
            owner_of=attribution.owner_by_cgroup(lease_ids_by_mark=marks),
            policy=self.policy.health,
        )

    def _lease_at(self, gpu_uuid: str, at: dt.datetime) -> LeaseKey | None:
        return attribution.lease_at(records=self._book.records.values(), gpu_uuid=gpu_uuid, at=at)


def _remembered_policy(spool: Spool) -> NodePolicy:
    """Return the policy that was followed last; the defaults where there was none that can be read."""
    stored = spool.value(name="policy")
    if stored is None:
        return NodePolicy()
    try:
        return decode(NodePolicy, stored.encode())
    except MalformedMessage as error:
        logger.warning("the policy on the disk is of another version: %s", error)
        return NodePolicy()
