"""What a node says of its GPUs between two inventories: samples, counters, and the state they are in.

A GPU's row is written when its state changes, and otherwise once in twenty reports; a sample is kept with
each of these writes. A row per GPU and report would be 2,400 rows a second at 100,000 GPUs, for charts that
nobody looks at.
"""

import datetime as dt
import json
from collections.abc import Collection, Iterator, Mapping, Sequence

import structlog
from django.db import connection

from agents import evidence, idleness, inventory, pacing, protocol
from agents.ingest.standing import GpuNow
from agents.models import Gpu, Node
from agents.refusals import Refusals

log = structlog.get_logger(__name__)

# Readings are kept for a day: an older one would be pruned at once.
READING_AGE_SECONDS_MAX = 86_400
_VALUES_MAX = {
    "utilization_percent": 100,
    "memory_used_bytes": 2**50,  # one pebibyte
    "power_draw_milliwatts": evidence.POWER_MILLIWATTS_MAX,
    "energy_millijoules": 2**63 - 1,  # of the wire and of the column
    "temperature_celsius": evidence.TEMPERATURE_CELSIUS_MAX,
    "process_count": 4_194_304,  # the largest number of processes of a Linux kernel
}
_SAMPLE_COLUMNS = ", ".join(("gpu_id", "measured_at", *_VALUES_MAX))
_INSERT_SAMPLES = f"""
INSERT INTO agents_reading ({_SAMPLE_COLUMNS})
SELECT {_SAMPLE_COLUMNS} FROM json_populate_recordset(NULL::agents_reading, %s)
ON CONFLICT DO NOTHING
"""  # noqa: S608 - names of columns, written here
_STATE_COLUMNS = ("health", "health_reason", "idle_state", "idle_since")
# Why a GPU is busy or idle is told in changing words: they are renewed with the row, and are no news alone.
_COLUMNS = (*_STATE_COLUMNS, "idle_reason", "measured_at", *idleness.COLUMNS)


def says_nothing_new(
    *,
    readings: Sequence[protocol.Reading],
    counters: Sequence[protocol.GpuCounters],
    gpus: Mapping[str, GpuNow],
    at: dt.datetime,
) -> bool:
    """Say whether no reading changes a GPU's state or is due to be kept; what is refused is news, too."""
    for reading in readings:
        gpu = gpus.get(reading.gpu_uuid)
        if gpu is None or not gpu.present or _why_not(reading=reading, at=at):
            return False
        if is_newer(gpu=gpu, reading=reading) and (
            _is_due(since=gpu.measured_at, at=reading.measured_at) or _differs(gpu, _state(reading))
        ):
            return False
    return not any(
        (gpu := gpus.get(part.gpu_uuid)) is None or _is_due(since=gpu.counters_at, at=at)
        for part in counters
    )


def store(
    *,
    node: Node,
    readings: Sequence[protocol.Reading],
    counters: Sequence[protocol.GpuCounters],
    leased: Collection[str],
    refusals: Refusals,
    at: dt.datetime,
) -> None:
    """Let the newest reading of each GPU say how it is; keep it as a sample when the row is written.

    `leased` are the GPUs that a lease has now: what stops being idle there was not taken back by its owner.
    """
    gpus = {gpu.uuid: gpu for gpu in Gpu.objects.filter(node=node)}
    newest = dict[str, protocol.Reading]()
    for reading in _taken(readings=readings, gpus=gpus, refusals=refusals, at=at):
        last = newest.get(reading.gpu_uuid)
        if last is None or last.measured_at <= reading.measured_at:
            newest[reading.gpu_uuid] = reading
    written = {
        uuid: reading
        for uuid, reading in newest.items()
        if _takes(gpu=gpus[uuid], reading=reading, leased=uuid in leased, at=at)
    }
    _insert_samples(gpus=gpus, samples=list(written.values()))
    inventory.write(gpus=[gpus[uuid] for uuid in written], columns=_COLUMNS)
    counted = []
    for part in counters:
        gpu = gpus.get(part.gpu_uuid)
        if gpu is None:
            refusals.add(kind="counters", reason="gpu_not_of_node", example=part.gpu_uuid)
        elif _is_due(since=gpu.counters_at, at=at) or part.gpu_uuid in written:
            gpu.counters = protocol.to_json(part)
            gpu.counters_at = at
            counted.append(gpu)
    inventory.write(gpus=counted, columns=["counters", "counters_at"])


def is_newer(*, gpu: Gpu | GpuNow, reading: protocol.Reading) -> bool:
    """Say whether a reading was measured after what the GPU's row says."""
    return gpu.measured_at is None or reading.measured_at >= gpu.measured_at


def _taken(
    *,
    readings: Sequence[protocol.Reading],
    gpus: Mapping[str, Gpu],
    refusals: Refusals,
    at: dt.datetime,
) -> Iterator[protocol.Reading]:
    """Yield the readings that can be true, of GPUs of the node."""
    for reading in readings:
        reason = _why_not(reading=reading, at=at)
        if reading.gpu_uuid not in gpus:
            reason = "gpu_not_of_node"
        if reason:
            refusals.add(kind="reading", reason=reason, example=reading.gpu_uuid)
        else:
            yield reading


def _why_not(*, reading: protocol.Reading, at: dt.datetime) -> str:
    """Return why a reading cannot be taken, or nothing when it can."""
    if evidence.is_ahead(instant=reading.measured_at, at=at):
        return "in_the_future"
    age_seconds = (at - reading.measured_at).total_seconds()
    return "too_old" if age_seconds > READING_AGE_SECONDS_MAX else ""


def _state(reading: protocol.Reading) -> dict[str, object]:
    """Return what a reading says of its GPU, as columns."""
    idle_since = reading.idle_since
    return {
        "health": reading.health.value,
        "health_reason": reading.health_reason,
        "idle_state": reading.idle_state.value,
        "idle_since": min(idle_since, reading.measured_at) if idle_since else None,
    }


def _differs(gpu: Gpu | GpuNow, state: Mapping[str, object]) -> bool:
    return any(getattr(gpu, name) != value for name, value in state.items())


def _is_due(*, since: dt.datetime | None, at: dt.datetime) -> bool:
    """Say whether what was kept at `since` is to be renewed at `at`."""
    return since is None or (at - since).total_seconds() >= pacing.sample_step_seconds()


def _takes(*, gpu: Gpu, reading: protocol.Reading, leased: bool, at: dt.datetime) -> bool:
    """Let a GPU take the state of a reading in memory; say whether its row must be written."""
    if not is_newer(gpu=gpu, reading=reading):
        return False
    state = _state(reading)
    changed = _differs(gpu, state)
    due = _is_due(since=gpu.measured_at, at=reading.measured_at)
    if gpu.health != reading.health:
        log.info(
            "gpu_health_changed",
            node_id=gpu.node_id,
            gpu_uuid=gpu.uuid,
            health=reading.health.value,
            reason=reading.health_reason,
        )
    idleness.note(gpu=gpu, now=reading.idle_state, leased=leased, at=at)
    for name, value in state.items():
        setattr(gpu, name, value)
    gpu.idle_reason = reading.idle_reason
    gpu.measured_at = reading.measured_at
    return changed or due


def _insert_samples(*, gpus: Mapping[str, Gpu], samples: Sequence[protocol.Reading]) -> None:
    """Keep samples, each once."""
    if samples:
        rows = [_sample(gpu=gpus[sample.gpu_uuid], reading=sample) for sample in samples]
        with connection.cursor() as cursor:
            cursor.execute(_INSERT_SAMPLES, [json.dumps(rows)])


def _sample(*, gpu: Gpu, reading: protocol.Reading) -> dict[str, object]:
    """Return a reading as a row; a value that cannot be true is unknown."""
    sample: dict[str, object] = {
        name: evidence.at_most(value=getattr(reading, name), maximum=maximum)
        for name, maximum in _VALUES_MAX.items()
    }
    return {"gpu_id": gpu.pk, "measured_at": reading.measured_at.isoformat(), **sample}
