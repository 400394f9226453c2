"""What may be sold just now, per node: the answer of `inventory.sellable_gpus`, as bits and in bulk.

A market of 100,000 GPUs is looked at with every search. So nodes come grouped by all that tells them apart
to a listing, and the GPUs of each node as one number.
"""

import datetime as dt
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from django.conf import settings
from django.db import connection

from agents import health, protocol
from agents.inventory import VGPU_HOST_MODES
from agents.models import SLOTS_PER_NODE
from agents.states import NodeStatus
from marketplace.core import ids

Blocks: TypeAlias = npt.NDArray[np.int32]
Masks: TypeAlias = npt.NDArray[np.uint16]
Records: TypeAlias = npt.NDArray[np.void]

_NODE = np.dtype([("block", ">i4"), ("id", f"S{ids.ID_LENGTH_MAX}")])
_GPUS = np.dtype([("block", ">i4"), ("mask", ">i4")])
_IDLE = np.dtype([("slot", ">i4"), ("seconds", ">i8")])
_SLOT = np.dtype(">i4")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Machines:
    """Nodes of one owner and place that a listing cannot tell apart: their blocks of slots, and their ids."""

    organization_id: str
    region: str
    fabric: str
    labels: dict[str, str]
    simulated: bool
    blocks: Blocks
    ids: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Supply:
    """Machines that may be sold, and per model the bits of their GPUs that may; blocks rise."""

    machines: Sequence[Machines]
    blocks: dict[str, Blocks]
    masks: dict[str, Masks]

    def masks_of(self, *, gpu_model_id: str, blocks: Blocks) -> Masks:
        """Return the bits of the sellable GPUs of a model in each block, 0 where there is none."""
        return lookup(
            keys=self.blocks[gpu_model_id], values=self.masks[gpu_model_id], wanted=blocks
        )


def read(
    *,
    gpu_model_id: str | None,
    region: str | None,
    organization_ids: Collection[str],
    at: dt.datetime,
) -> Supply:
    """Return what some owners may sell at `at`; `None` stands for every model or region. Two queries."""
    machines = _machines(region=region, organization_ids=organization_ids, at=at)
    blocks: dict[str, Blocks] = {}
    masks: dict[str, Masks] = {}
    if machines:
        known = np.sort(np.concatenate([each.blocks for each in machines]))
        whole, withdrawn = _gpus(gpu_model_id=gpu_model_id, blocks=known)
        for model, packed in whole:
            blocks[model] = packed["block"].astype(np.int32)
            its_masks = packed["mask"].astype(np.uint16)
            masks[model] = its_masks & ~masks_of_slots(slots=withdrawn, blocks=blocks[model])
    return Supply(machines=machines, blocks=blocks, masks=masks)


def idle(*, organization_ids: Collection[str], at: dt.datetime) -> Records:
    """Return the `slot`s that may be offered as idle, rising, and for how many `seconds` each has been.

    The rule is that of `idleness.offered_idle_seconds`.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT string_agg(
                       int4send(g.slot)
                       || int8send(floor(extract(epoch FROM %(at)s - g.idle_since))::bigint),
                       ''::bytea ORDER BY g.slot)
              FROM agents_gpu g JOIN agents_node n ON n.id = g.node_id
             WHERE n.organization_id = ANY(%(owners)s) AND g.idle_state = %(offerable)s
               AND g.idle_since IS NOT NULL
               AND (g.offered_again_at IS NULL OR g.offered_again_at <= %(at)s)
            """,
            {
                "at": at,
                "owners": sorted(organization_ids),
                "offerable": protocol.IdleState.OFFERABLE.value,
            },
        )
        (packed,) = cursor.fetchone()
    return np.frombuffer(bytes(packed or b""), dtype=_IDLE)


def masks_of_slots(*, slots: npt.NDArray[np.integer], blocks: Blocks) -> Masks:
    """Return per block (rising) the bits of those of the slots that are in it."""
    masks: Masks = np.zeros(len(blocks), dtype=np.uint16)
    if len(slots) and len(blocks):
        wanted = slots // SLOTS_PER_NODE
        rows = np.minimum(np.searchsorted(blocks, wanted), len(blocks) - 1)
        mine = blocks[rows] == wanted
        bits = np.left_shift(1, slots[mine].astype(np.int64) % SLOTS_PER_NODE).astype(np.uint16)
        np.bitwise_or.at(masks, rows[mine], bits)
    return masks


def lookup(*, keys: Blocks, values: Masks, wanted: Blocks) -> Masks:
    """Return the value of each wanted key, 0 for a key that there is not; `keys` rise."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.uint16)
    rows = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found: Masks = np.where(keys[rows] == wanted, values[rows], 0).astype(np.uint16)
    return found


def runs(blocks: Blocks) -> list[tuple[int, int]]:
    """Return the runs of neighbours among rising numbers, half-open."""
    if not len(blocks):
        return []
    breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
    lowers = blocks[np.concatenate(([0], breaks))]
    uppers = blocks[np.concatenate((breaks - 1, [len(blocks) - 1]))] + 1
    return list(zip(lowers.tolist(), uppers.tolist(), strict=True))


def _machines(
    *, region: str | None, organization_ids: Collection[str], at: dt.datetime
) -> list[Machines]:
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT n.organization_id, n.region, n.fabric, n.labels::text, n.simulated,
                   string_agg(int4send(n.slot_base / {SLOTS_PER_NODE})
                              || rpad(n.id, {ids.ID_LENGTH_MAX})::bytea, ''::bytea)
              FROM agents_node n
             WHERE n.organization_id = ANY(%(owners)s)
               AND (%(region)s::text IS NULL OR n.region = %(region)s)
               AND n.status = %(active)s AND n.reader_hung_since IS NULL
               AND n.last_report_at >= %(fresh)s AND (%(simulated)s OR NOT n.simulated)
             GROUP BY 1, 2, 3, 4, 5
            """,  # noqa: S608 - two numbers of ours
            {
                "owners": sorted(organization_ids),
                "region": region,
                "active": NodeStatus.ACTIVE.value,
                "fresh": health.fresh_since(at=at),
                "simulated": settings.ALLOW_SIMULATED_HARDWARE,
            },
        )
        rows = cursor.fetchall()
    found = []
    for owner, place, fabric, labels, simulated, packed in rows:
        nodes = np.frombuffer(bytes(packed), dtype=_NODE)
        found.append(
            Machines(
                organization_id=owner,
                region=place,
                fabric=fabric,
                labels=json.loads(labels),
                simulated=simulated,
                blocks=nodes["block"].astype(np.int32),
                ids=[node_id.decode().rstrip() for node_id in nodes["id"].tolist()],
            )
        )
    return found


def _gpus(
    *, gpu_model_id: str | None, blocks: Blocks
) -> tuple[list[tuple[str, Records]], npt.NDArray[np.integer]]:
    """Return per model the blocks of its whole, healthy GPUs, with their bits; and which are withdrawn.

    Withdrawn are the slots, of any block, that an alarm withdraws or that an outage keeps from working.
    """
    parts = runs(blocks)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT model, string_agg(int4send(block) || int4send(mask), ''::bytea ORDER BY block)
              FROM (SELECT g.gpu_model_id AS model, g.slot / {SLOTS_PER_NODE} AS block,
                           bit_or(1 << (g.slot %% {SLOTS_PER_NODE})) AS mask
                      FROM unnest(%(lower)s::int[], %(upper)s::int[]) AS part (lower, upper)
                      JOIN agents_gpu g ON g.slot >= part.lower * {SLOTS_PER_NODE}
                                       AND g.slot < part.upper * {SLOTS_PER_NODE}
                     WHERE g.present AND g.health = %(healthy)s AND g.quarantined_by_market = ''
                       AND g.gpu_model_id IS NOT NULL
                       AND (%(model)s::text IS NULL OR g.gpu_model_id = %(model)s)
                       AND g.mig_enabled IS NOT TRUE
                       AND g.virtualization_mode <> ALL(%(hosts)s)
                     GROUP BY 1, 2) AS node
             GROUP BY model
             UNION ALL
            SELECT NULL, string_agg(int4send(slot), ''::bytea) FROM (
                SELECT g.slot FROM agents_alarm a
                  JOIN agents_gpu g ON g.node_id = a.node_id AND a.gpu_uuid IN ('', g.uuid)
                 WHERE a.settled_at IS NULL
                 UNION
                SELECT g.slot FROM agents_outage o JOIN agents_gpu g ON g.id = o.gpu_id
                 WHERE o.ends_at IS NULL
            ) AS withdrawn
            """,  # noqa: S608 - a number of ours
            {
                "lower": [lower for lower, _ in parts],
                "upper": [upper for _, upper in parts],
                "healthy": protocol.Health.HEALTHY.value,
                "model": gpu_model_id,
                "hosts": list(VGPU_HOST_MODES),
            },
        )
        packed = {model: bytes(its or b"") for model, its in cursor.fetchall()}
    withdrawn = np.frombuffer(packed.pop(None), dtype=_SLOT)
    return [(model, np.frombuffer(its, dtype=_GPUS)) for model, its in packed.items()], withdrawn
