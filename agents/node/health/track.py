"""What is remembered of a GPU's health between two looks; it goes to the disk as it is."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field, replace

from agents.protocol import TEXT_LENGTH_MAX, Cause, GpuCounters, Health

# The tenant's doing counts for less than the machine's where both are at fault at once.
_HEAVIEST_CAUSE_FIRST = (Cause.HARDWARE, Cause.UNKNOWN, Cause.TENANT)


def heavier_cause(*causes: Cause) -> Cause:
    """Return the cause that decides where several are at work."""
    return min(causes, key=_HEAVIEST_CAUSE_FIRST.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A reason not to sell a GPU. `health` is suspect or quarantined.

    `standing` says that it was read from a counter, which tells it again at the next look while it lasts.
    `owner_only` says that no restart clears it.
    """

    name: str
    health: Health
    cause: Cause
    reason: str
    since: dt.datetime
    last_at: dt.datetime
    standing: bool = False
    owner_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The GPU does not answer: it fell off the bus, or the driver lists it no more."""

    since: dt.datetime
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenXid:
    """An Xid of the last minutes, by which a loss or the driver's verdict is put down to somebody."""

    xid: int
    at: dt.datetime
    cause: Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantError:
    """The last application error of a lease on this GPU."""

    lease_id: str
    at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Whether the hardware slowed the GPU down at one look."""

    at: dt.datetime
    slowed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthTrack:
    """One GPU's health and what it rests on.

    `restarted_at` is when the driver or the machine was last started anew. `accepted` are the counts that
    the owner has vouched for; `accepts_next` says that those of the next look will be. `incidents` are the
    quarantines by an Xid, `looks` those of the last minutes, `told_*` what the last event said.
    """

    boot_id: str
    faults: list[Fault] = field(default_factory=list)
    loss: Loss | None = None
    restarted_at: dt.datetime | None = None
    vouched_at: dt.datetime | None = None
    incidents: list[dt.datetime] = field(default_factory=list)
    tenant_errors: list[TenantError] = field(default_factory=list)
    recent_xids: list[SeenXid] = field(default_factory=list)
    accepted: GpuCounters | None = None
    accepts_next: bool = False
    last_counters: GpuCounters | None = None
    nvlinks_seen: int = 0
    fabric_was_complete: bool = False
    last_energy_millijoules: int | None = None
    looks: list[Look] = field(default_factory=list)
    told_health: Health = Health.HEALTHY
    told_cause: Cause = Cause.UNKNOWN

    @property
    def health(self) -> Health:
        """Return the outcome: a lost GPU is lost, otherwise the gravest fault decides."""
        if self.loss is not None:
            return Health.LOST
        found = {fault.health for fault in self.faults}
        if Health.QUARANTINED in found:
            return Health.QUARANTINED
        return Health.SUSPECT if found else Health.HEALTHY

    @property
    def reason(self) -> str:
        """Return why, in words, the gravest first; empty when the GPU is healthy."""
        graver = sorted(self.faults, key=lambda f: f.health is not Health.QUARANTINED)
        reasons = [fault.reason for fault in graver]
        if self.loss is not None:
            reasons.insert(0, self.loss.reason)
        return "; ".join(dict.fromkeys(reasons))[:TEXT_LENGTH_MAX]

    @property
    def cause(self) -> Cause:
        """Return whom the outcome is put down to; nobody where the GPU is healthy."""
        deciding = [fault.cause for fault in self.faults if fault.health is self.health]
        if self.loss is not None:
            # A fault that took the GPU down explains the loss, which by itself names nobody.
            grave = [f.cause for f in self.faults if f.health is Health.QUARANTINED]
            deciding = [self.loss.cause, *grave]
            if self.loss.cause is Cause.UNKNOWN and grave:
                deciding = grave
        return heavier_cause(*deciding) if deciding else Cause.UNKNOWN

    def durable(self) -> HealthTrack:
        """Return the part of which every change goes to the disk at once.

        The rest changes with every look and is written along: without it a suspicion may end a little early.
        """
        faults = [replace(fault, last_at=fault.since, reason="") for fault in self.faults]
        return replace(
            self, faults=faults, last_counters=None, last_energy_millijoules=None, looks=[]
        )
