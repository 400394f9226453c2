"""When a GPU that is idle may be offered as idle: withdrawn at once, offered again only after a while.

An owner whose work comes and goes would otherwise sell hours that it needs itself some minutes later. So a
GPU leaves `when_idle` listings with the reading that says so, and each return costs it a quarter of an hour
more that day. A lease of our own is no withdrawal: the tenant's work is what the offer was for.
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, replace

from django.db.models import Q

from agents import protocol
from agents.models import Gpu, Grant
from agents.protocol import IdleState

# The first protocol knows no `offerable`: its agents call free what nothing stands against.
FIRST_PROTOCOL = 1

WAIT_SECONDS_PER_WITHDRAWAL = (
    900  # as long as a person needs to see that the job failed and start it again
)
WAIT_SECONDS_MAX = 4 * 3600  # beyond that a day's work is over
WITHDRAWALS_MAX = 32_767  # of the column

# A node hands over when its own clock says so, which may be a little ahead of ours.
HANDOVER_AHEAD = dt.timedelta(seconds=60)

COLUMNS = ("withdrawals", "withdrawn_on", "offered_again_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hysteresis:
    """How often a GPU was withdrawn on `withdrawn_on` (UTC), and from when on it may be offered as idle.

    `offered_again_at` is `None` before the first withdrawal, and from one until the GPU is offerable again.
    """

    withdrawals: int = 0
    withdrawn_on: dt.date | None = None
    offered_again_at: dt.datetime | None = None


def move(
    *,
    hysteresis: Hysteresis,
    before: IdleState,
    now: IdleState,
    leased: bool,
    at: dt.datetime,
) -> Hysteresis:
    """Return the hysteresis after a GPU went from one idle state to another at `at`.

    Unknown is no withdrawal: an agent that starts again has not seen the owner at work. Nor is a lease.
    """
    if before is IdleState.OFFERABLE and now not in (IdleState.OFFERABLE, IdleState.UNKNOWN):
        if leased:
            return hysteresis
        today = at.astimezone(dt.UTC).date()
        earlier = hysteresis.withdrawals if hysteresis.withdrawn_on == today else 0
        return Hysteresis(withdrawals=min(earlier + 1, WITHDRAWALS_MAX), withdrawn_on=today)
    waits = hysteresis.withdrawals > 0 and hysteresis.offered_again_at is None
    if now is IdleState.OFFERABLE and waits:
        seconds = min(WAIT_SECONDS_PER_WITHDRAWAL * hysteresis.withdrawals, WAIT_SECONDS_MAX)
        return replace(hysteresis, offered_again_at=at + dt.timedelta(seconds=seconds))
    return hysteresis


def note(*, gpu: Gpu, now: IdleState, leased: bool, at: dt.datetime) -> None:
    """Let a GPU in memory take what its next idle state means for its return, before it takes that state."""
    moved = move(
        hysteresis=Hysteresis(
            withdrawals=gpu.withdrawals,
            withdrawn_on=gpu.withdrawn_on,
            offered_again_at=gpu.offered_again_at,
        ),
        before=IdleState(gpu.idle_state),
        now=now,
        leased=leased,
        at=at,
    )
    for name in COLUMNS:
        setattr(gpu, name, getattr(moved, name))


def leased_uuids(*, grants: Iterable[Grant], at: dt.datetime) -> frozenset[str]:
    """Return the GPUs that an open grant has handed over at `at`, or is about to."""
    return frozenset(
        uuid
        for grant in grants
        if grant.closed_at is None and grant.not_before <= at + HANDOVER_AHEAD
        for uuid in grant.gpu_uuids
    )


def as_of_today(*, report: protocol.Report) -> protocol.Report:
    """Return the report in the words of the newest protocol: free of the first one is offerable."""
    if report.protocol != FIRST_PROTOCOL:
        return report
    readings = [
        replace(reading, idle_state=IdleState.OFFERABLE)
        if reading.idle_state is IdleState.FREE
        else reading
        for reading in report.readings
    ]
    return replace(report, readings=readings)


def is_idle() -> Q:
    """Return the condition on GPUs that nothing works on, whether or not they may be offered."""
    return Q(idle_state__in=[IdleState.FREE.value, IdleState.OFFERABLE.value])


def offered_idle_seconds(
    *,
    idle_state: str,
    idle_since: dt.datetime | None,
    offered_again_at: dt.datetime | None,
    at: dt.datetime,
) -> int:
    """Return how long a GPU has been idle that may be offered as such; -1 where it may not."""
    if idle_state != IdleState.OFFERABLE or idle_since is None:
        return -1
    if offered_again_at is not None and at < offered_again_at:
        return -1
    return (at - idle_since) // dt.timedelta(seconds=1)
