"""Which GPUs to read when: pure functions over what was read last, on the boot clock.

Every call takes a lock of the driver that the tenant needs too, so leased GPUs are read half as often as
others, counters once a minute, and lists of processes (the dearest of all) seldom. Where the market grants
short intervals, as in a demonstration, samples follow them. All GPUs of a lease are read together: the
windows of its meters end together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from agents.node.metering import SHORT_INTERVAL_SECONDS

UNLEASED_SECONDS = 15.0
LEASED_SECONDS = 30.0
COUNTERS_SECONDS = 60.0  # and what of an identity may change: MIG, the fabric
INVENTORY_SECONDS = 24 * 3600.0
PROCESSES_SECONDS = 60.0
PROCESSES_LEASED_SECONDS = 300.0
MEMORY_MOVED_BYTES = 16 * 1024 * 1024  # a context takes more; figures that only tremble move less
EARLY_SECONDS = 1.0  # what is due so soon is read with this look


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """When the processes of a GPU were listed, and what memory was in use then."""

    at: float
    memory_used_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """When each kind was read last; `None` where it never was."""

    unleased_at: float | None = None
    leased_at: float | None = None
    counters_at: float | None = None
    inventory_at: float | None = None
    listed: Mapping[str, Listed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What to read now. `inventory` is to be told again although nothing changed."""

    gpu_uuids: frozenset[str] = frozenset()
    with_processes: frozenset[str] = frozenset()
    unleased: bool = False
    leased: bool = False
    counters: bool = False
    inventory: bool = False


def sample_seconds(*, leased: bool, interval_seconds: int) -> float:
    """Return how long a sample is good for at this interval of reports."""
    if leased and interval_seconds > SHORT_INTERVAL_SECONDS:
        return LEASED_SECONDS
    return min(UNLEASED_SECONDS, float(interval_seconds))


def due_at(*, looked: Looked, any_unleased: bool, any_leased: bool, interval_seconds: int) -> float:
    """Return when the next look is due; a machine without any GPU is looked at like an unleased one."""
    due = []
    for last, there, leased in (
        (looked.unleased_at, any_unleased or not any_leased, False),
        (looked.leased_at, any_leased, True),
    ):
        if there:
            period = sample_seconds(leased=leased, interval_seconds=interval_seconds)
            due.append(0.0 if last is None else last + period)
    return min(due)


def choose(
    *,
    looked: Looked,
    now: float,
    gpu_uuids: Collection[str],
    leased: Collection[str],
    interval_seconds: int,
    everything: bool = False,
    wants_processes: Collection[str] = (),
    memories: Mapping[str, int | None],
) -> Look:
    """Return what is due now; `everything` asks for a sample of each GPU, due or not.

    `memories` are of the samples before; `wants_processes` are GPUs whose list somebody waits for.
    """
    of_unleased = everything or _is_due(
        looked.unleased_at, sample_seconds(leased=False, interval_seconds=interval_seconds), now
    )
    of_leased = everything or _is_due(
        looked.leased_at, sample_seconds(leased=True, interval_seconds=interval_seconds), now
    )
    chosen = frozenset(uuid for uuid in gpu_uuids if (of_leased if uuid in leased else of_unleased))
    return Look(
        gpu_uuids=chosen,
        with_processes=frozenset(
            uuid
            for uuid in chosen
            if uuid in wants_processes
            or _wants_list(
                looked.listed.get(uuid),
                now,
                PROCESSES_LEASED_SECONDS if uuid in leased else PROCESSES_SECONDS,
                memories.get(uuid),
            )
        ),
        unleased=of_unleased,
        leased=of_leased,
        counters=_is_due(looked.counters_at, COUNTERS_SECONDS, now),
        inventory=_is_due(looked.inventory_at, INVENTORY_SECONDS, now),
    )


def after(
    *,
    looked: Looked,
    look: Look,
    now: float,
    interval_seconds: int,
    memories: Mapping[str, int | None],
) -> Looked:
    """Return what is remembered of a look; `memories` are of its samples.

    A look that was due counts from when it was due: a loop that is a little late each time does not drift.
    """
    changed = looked
    if look.unleased:
        period = sample_seconds(leased=False, interval_seconds=interval_seconds)
        changed = replace(changed, unleased_at=_on_grid(looked.unleased_at, period, now))
    if look.leased:
        period = sample_seconds(leased=True, interval_seconds=interval_seconds)
        changed = replace(changed, leased_at=_on_grid(looked.leased_at, period, now))
    if look.counters:
        changed = replace(changed, counters_at=_on_grid(looked.counters_at, COUNTERS_SECONDS, now))
    if look.inventory:
        changed = replace(changed, inventory_at=now)
    if look.with_processes:
        new = {
            uuid: Listed(at=now, memory_used_bytes=memories.get(uuid))
            for uuid in look.with_processes
        }
        changed = replace(changed, listed={**looked.listed, **new})
    return changed


def _is_due(last: float | None, period: float, now: float) -> bool:
    early = min(EARLY_SECONDS, period / 10)
    return last is None or now >= last + period - early


def _on_grid(last: float | None, period: float, now: float) -> float:
    if last is not None and -EARLY_SECONDS <= now - (last + period) < period:
        return last + period
    return now


def _wants_list(listed: Listed | None, now: float, period: float, memory: int | None) -> bool:
    if listed is None:
        return True
    if _is_due(listed.at, period, now):
        return True
    before = listed.memory_used_bytes
    return memory is not None and before is not None and abs(memory - before) > MEMORY_MOVED_BYTES
