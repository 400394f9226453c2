"""How a GPU's health moves from one look to the next: pure functions, the clock is an argument.

healthy <-> suspect       a suspect GPU is healthy again when no new reason came for `suspect_seconds`
any -> quarantined        ends when the driver or the machine was started anew and the counters are clean
                          after that, or by the owner's word; by the owner's word alone when it came
                          back from a reset only to be quarantined by an Xid again
any -> lost               ends when the GPU answers: what took it down then decides
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from agents.node.health import findings
from agents.node.health.findings import Finding
from agents.node.health.track import (
    Fault,
    HealthTrack,
    Look,
    Loss,
    SeenXid,
    TenantError,
    heavier_cause,
)
from agents.node.reader import NOT_SUPPORTED, Sample, Xid
from agents.protocol import Cause, GpuCounters, Health, HealthPolicy, XidRule

# An error and what it leads to are seen by different ways, the kernel's log and a poll once a minute.
BLAME_SECONDS = 120
SLOWDOWN_WINDOW_SECONDS = 600
SLOWDOWN_LOOKS_MIN = 10  # two and a half minutes at the usual rate: one hot moment is no defect
# What is remembered of each kind; the oldest goes first. Far more than a policy asks for.
REMEMBERED_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class BlamedXid:
    """An Xid and whom it was put down to; `lease_id` had the GPU, if anybody."""

    xid: Xid
    cause: Cause
    lease_id: str | None = None


def judge(*, sample: Sample) -> tuple[Health, str]:
    """Return what one look alone says of a GPU, by the default policy: its health and the reason in words."""
    track = step(
        track=HealthTrack(boot_id=""),
        sample=sample,
        counters=None,
        xids=[],
        policy=HealthPolicy(),
        at=sample.measured_at,
    )
    return track.health, track.reason


def begin(*, track: HealthTrack | None, boot_id: str, at: dt.datetime) -> HealthTrack:
    """Return the track of a GPU at the start of the agent; another boot id tells of a restart."""
    if track is None:
        return HealthTrack(boot_id=boot_id)
    if track.boot_id == boot_id:
        return track
    return _restarted(replace(track, boot_id=boot_id), at=at)


def vouch(*, track: HealthTrack, vouched_at: dt.datetime) -> HealthTrack:
    """Forget faults from before `vouched_at`, because the owner answers for them; repeats change nothing.

    Counts are forgiven as they stand. What the driver says of the present, such as a reset that it asks for
    or a link that is down, comes back with the next look.
    """
    if track.vouched_at is not None and vouched_at <= track.vouched_at:
        return track
    kept = [f for f in track.faults if not f.standing and f.last_at > vouched_at]
    return replace(
        track,
        vouched_at=vouched_at,
        faults=kept,
        incidents=[at for at in track.incidents if at > vouched_at],
        tenant_errors=[error for error in track.tenant_errors if error.at > vouched_at],
        accepted=track.last_counters,
        accepts_next=track.last_counters is None,
        nvlinks_seen=0,
        looks=[],
    )


def quarantine(*, track: HealthTrack, reason: str, at: dt.datetime) -> HealthTrack:
    """Return the track of a GPU that did not pass a check around a lease."""
    finding = Finding(name="lease_check", health=Health.QUARANTINED, reason=reason, cause=None)
    return _raise(track, found=[finding], at=at)


def step(
    *,
    track: HealthTrack,
    sample: Sample | None,
    counters: GpuCounters | None,
    xids: Sequence[BlamedXid],
    policy: HealthPolicy,
    at: dt.datetime,
) -> HealthTrack:
    """Return the track after one more look at a GPU; looks come in the order of their time.

    `sample` is `None` when the driver no longer lists the GPU, `counters` when they were not read this time.
    """
    energy = None if sample is None else sample.energy_millijoules
    if energy is not None:
        if track.last_energy_millijoules is not None and energy < track.last_energy_millijoules:
            track = _restarted(track, at=at)  # the counter starts at 0 with the driver
        track = replace(track, last_energy_millijoules=energy)
    track = with_xids(track=track, xids=xids, policy=policy)
    if findings.is_lost(sample=sample):
        return _lost(track, listed=sample is not None, at=at)
    assert sample is not None, "a GPU that is not listed is lost"
    found = list(findings.of_sample(sample=sample, policy=policy))
    track = _looked(track, sample=sample, at=at)
    found += _of_slowdown(track, policy=policy)
    answered_at = None if track.loss is None else at
    track = _answered(track, at=at)
    if counters is not None:
        if track.accepts_next:
            track = replace(track, accepted=counters, accepts_next=False)
        standing = list(
            findings.of_counters(
                counters=counters,
                accepted=track.accepted,
                utilization_percent=sample.utilization_percent,
                nvlinks_seen=track.nvlinks_seen,
                fabric_was_complete=track.fabric_was_complete,
                policy=policy,
            )
        )
        track = _raise(track, found=standing, at=at, standing=True)
        track = _counted(track, counters=counters)
        grave = any(finding.health is Health.QUARANTINED for finding in standing)
        if not grave and _is_whole(counters) and answered_at is None:
            track = _clear_after_restart(track)
    track = _raise(track, found=found, at=at)
    return _expire(track, policy=policy, at=at)


def with_xids(
    *, track: HealthTrack, xids: Sequence[BlamedXid], policy: HealthPolicy
) -> HealthTrack:
    """Return the track after Xids that came while nothing could be read; `step` takes them by itself."""
    for blamed in sorted(xids, key=lambda b: (b.xid.at, b.xid.xid)):
        if track.vouched_at is None or blamed.xid.at > track.vouched_at:
            track = _with_xid(track, blamed=blamed, policy=policy)
    return track


# --- what happened -------------------------------------------------------------------------------------


def _restarted(track: HealthTrack, *, at: dt.datetime) -> HealthTrack:
    """Note that the driver was loaded anew: its volatile counts start at 0."""
    accepted = track.accepted
    if accepted is not None:
        accepted = replace(accepted, ecc_uncorrected=None)
    return replace(
        track,
        restarted_at=at,
        accepted=accepted,
        recent_xids=[],
        looks=[],
        last_energy_millijoules=None,
        last_counters=None,
    )


def _with_xid(track: HealthTrack, *, blamed: BlamedXid, policy: HealthPolicy) -> HealthTrack:
    xid = blamed.xid
    fresh = xid.at - dt.timedelta(seconds=BLAME_SECONDS)
    recent = [seen for seen in track.recent_xids if seen.at >= fresh]
    recent.append(SeenXid(xid=xid.xid, at=xid.at, cause=blamed.cause))
    track = replace(track, recent_xids=recent[-REMEMBERED_MAX:])
    if track.loss is not None and track.loss.cause is Cause.UNKNOWN:
        track = replace(track, loss=replace(track.loss, cause=_blame(track, at=xid.at)))
    name, words = f"xid_{xid.xid}", findings.xid_in_words(xid=xid.xid)
    match findings.rule_of(xid=xid.xid, policy=policy):
        case XidRule.TENANT:
            return _with_tenant_error(track, blamed=blamed, policy=policy)
        case XidRule.SUSPECT:
            finding = Finding(name=name, health=Health.SUSPECT, reason=words)
            return _raise(track, found=[finding], at=xid.at)
        case XidRule.QUARANTINE:
            finding = Finding(name=name, health=Health.QUARANTINED, reason=words)
            return _with_incident(track, finding=finding, policy=policy, at=xid.at)
        case _:
            return track


def _with_incident(
    track: HealthTrack, *, finding: Finding, policy: HealthPolicy, at: dt.datetime
) -> HealthTrack:
    """Quarantine by an Xid. Those that come while it is quarantined belong to the same incident."""
    goes_on = any(f.health is Health.QUARANTINED and not f.standing for f in track.faults)
    since = at - dt.timedelta(days=policy.quarantine_repeat_days)
    incidents = [earlier for earlier in track.incidents if earlier > since]
    if not goes_on:
        incidents = [*incidents, at][-REMEMBERED_MAX:]
    track = replace(track, incidents=incidents)
    if goes_on or len(incidents) < policy.quarantine_repeats:
        return _raise(track, found=[finding], at=at)
    reason = (
        f"{finding.reason}, the {_ordinal(len(incidents))} quarantine within"
        f" {policy.quarantine_repeat_days} days: it needs its owner"
    )
    return _raise(track, found=[replace(finding, reason=reason)], at=at, owner_only=True)


def _with_tenant_error(
    track: HealthTrack, *, blamed: BlamedXid, policy: HealthPolicy
) -> HealthTrack:
    """Remember an application error by its lease; the same GPU under several leases is itself at fault."""
    if blamed.cause is not Cause.TENANT or blamed.lease_id is None:
        return track
    at = blamed.xid.at
    since = at - dt.timedelta(days=policy.tenant_xid_days)
    errors = [
        error
        for error in track.tenant_errors
        if error.at > since and error.lease_id != blamed.lease_id
    ]
    errors.append(TenantError(lease_id=blamed.lease_id, at=at))
    track = replace(track, tenant_errors=errors[-REMEMBERED_MAX:])
    if len(errors) < policy.tenant_xid_leases:
        return track
    reason = f"application errors under {len(errors)} different leases"
    finding = Finding(name="tenant_xids", health=Health.SUSPECT, reason=reason)
    return _raise(track, found=[finding], at=at)


def _lost(track: HealthTrack, *, listed: bool, at: dt.datetime) -> HealthTrack:
    if track.loss is not None:
        return track
    what = "says that this GPU is lost" if listed else "no longer lists this GPU"
    loss = Loss(since=at, cause=_blame(track, at=at), reason=f"the driver {what}")
    return replace(track, loss=loss, looks=[])


def _answered(track: HealthTrack, *, at: dt.datetime) -> HealthTrack:
    """Let a lost GPU be back: what took it down decides, and without such a fault it is under suspicion."""
    if track.loss is None:
        return track
    loss = track.loss
    track = replace(track, loss=None)
    finding = Finding(
        name="was_lost", health=Health.SUSPECT, reason="it was lost and answers again"
    )
    return _raise(track, found=[replace(finding, cause=loss.cause)], at=at)


def _looked(track: HealthTrack, *, sample: Sample, at: dt.datetime) -> HealthTrack:
    slowed = findings.is_slowed(sample=sample)
    since = at - dt.timedelta(seconds=SLOWDOWN_WINDOW_SECONDS)
    looks = [look for look in track.looks if look.at > since]
    if slowed is not None:
        looks.append(Look(at=at, slowed=slowed))
    return replace(track, looks=looks)


def _of_slowdown(track: HealthTrack, *, policy: HealthPolicy) -> list[Finding]:
    slowed = sum(look.slowed for look in track.looks)
    many = slowed * 100 > policy.hardware_slowdown_percent_max * len(track.looks)
    if len(track.looks) < SLOWDOWN_LOOKS_MIN or not many:
        return []
    reason = f"the hardware slowed it down at {slowed} of {len(track.looks)} looks"
    return findings.judged(policy.hardware_slowdown, "hardware_slowdown", reason)


def _counted(track: HealthTrack, *, counters: GpuCounters) -> HealthTrack:
    complete = counters.fabric_state == findings.FABRIC_COMPLETED
    return replace(
        track,
        last_counters=counters,
        nvlinks_seen=max(track.nvlinks_seen, counters.nvlinks_active or 0),
        fabric_was_complete=track.fabric_was_complete or complete,
    )


# --- faults --------------------------------------------------------------------------------------------


def _raise(
    track: HealthTrack,
    *,
    found: Iterable[Finding],
    at: dt.datetime,
    standing: bool = False,
    owner_only: bool = False,
) -> HealthTrack:
    """Note reasons: one that is known keeps its beginning, and the word that only the owner clears it."""
    faults = {fault.name: fault for fault in track.faults}
    for finding in found:
        before = faults.get(finding.name)
        cause = _blame(track, at=at) if finding.cause is None else finding.cause
        if before is not None:
            told = finding.cause is not None
            known = before.cause is not Cause.UNKNOWN
            cause = heavier_cause(before.cause, cause) if told else before.cause if known else cause
        faults[finding.name] = Fault(
            name=finding.name,
            health=finding.health,
            cause=cause,
            reason=finding.reason,
            since=at if before is None else before.since,
            last_at=at if before is None else max(before.last_at, at),
            standing=standing,
            owner_only=owner_only or (before is not None and before.owner_only),
        )
    return replace(track, faults=list(faults.values()))


def _clear_after_restart(track: HealthTrack) -> HealthTrack:
    """End the quarantines from before the last restart, now that the counters are clean."""
    restarted_at = track.restarted_at
    if restarted_at is None:
        return track
    kept = [
        fault
        for fault in track.faults
        if fault.health is not Health.QUARANTINED
        or fault.owner_only
        or fault.last_at > restarted_at
    ]
    return replace(track, faults=kept)


def _expire(track: HealthTrack, *, policy: HealthPolicy, at: dt.datetime) -> HealthTrack:
    """Drop suspicions that nothing has renewed for long enough."""
    since = at - dt.timedelta(seconds=policy.suspect_seconds)
    kept = [f for f in track.faults if f.health is Health.QUARANTINED or f.last_at > since]
    return track if len(kept) == len(track.faults) else replace(track, faults=kept)


def _blame(track: HealthTrack, *, at: dt.datetime) -> Cause:
    """Return whom the Xids of the last minutes put a fault down to; nobody where there was none."""
    since = at - dt.timedelta(seconds=BLAME_SECONDS)
    causes = {seen.cause for seen in track.recent_xids if seen.at >= since}
    # An Xid of which nobody knows whose it was takes nothing from one that is known.
    known = causes - {Cause.UNKNOWN}
    return heavier_cause(*known) if known else Cause.UNKNOWN


def _is_whole(counters: GpuCounters) -> bool:
    """Return whether all counters that the product has could be read."""
    return all(why == NOT_SUPPORTED for why in counters.unread.values())


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")
