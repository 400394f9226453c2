"""What the market knows of a node when its report arrives, in one read.

A report of a large fleet comes 300 times a second and mostly says what is known: the query is written out,
because putting it together took longer than answering it.
"""

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connection
from django.db.models import JSONField

from agents.evidence import GrantKey
from agents.grants import FINAL_STATES, GRANTS_PER_REPLY_MAX
from agents.models import Grant, Node

_FIELDS = Node._meta.concrete_fields  # noqa: SLF001 - how Django names a model's columns
_COLUMNS = [field.attname for field in _FIELDS]
_DOCUMENTS = [place for place, field in enumerate(_FIELDS) if isinstance(field, JSONField)]
_READ = f"""
SELECT {", ".join(f'n."{field.column}"' for field in _FIELDS)},
    (SELECT json_agg(json_build_object(
            'uuid', g.uuid, 'present', g.present, 'health', g.health,
            'health_reason', g.health_reason, 'idle_state', g.idle_state, 'idle_since', g.idle_since,
            'measured_at', g.measured_at, 'counters_at', g.counters_at))
        FROM agents_gpu g WHERE g.node_id = n.id)::text AS gpus_json,
    (SELECT json_agg(row_to_json(o)) FROM (
            SELECT * FROM agents_grant WHERE node_id = n.id AND closed_at IS NULL
            ORDER BY not_before, id LIMIT {GRANTS_PER_REPLY_MAX}) o)::text AS grants_json,
    (SELECT max(version) FROM agents_policy p WHERE p.organization_id = n.organization_id)
        AS newest_policy_version
FROM agents_node n WHERE n.id = %s
"""  # noqa: S608 - names of columns and a number, all ours
_GRANT_INSTANTS = ("not_before", "not_after", "reported_at", "created_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuNow:
    """A GPU as its row has it."""

    uuid: str
    present: bool
    health: str
    health_reason: str
    idle_state: str
    idle_since: dt.datetime | None
    measured_at: dt.datetime | None
    counters_at: dt.datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A node, its GPUs and its open grants, as they were when its report arrived.

    `policy_version` is the newest policy of its owner, 0 without one.
    """

    node: Node
    gpus: Mapping[str, GpuNow]
    grants: Mapping[GrantKey, Grant]
    policy_version: int

    def is_starting(self, *, before: dt.datetime) -> bool:
        """Say whether a lease is to begin before an instant, or is just being handed over."""
        over = {*FINAL_STATES, "active"}
        return any(
            grant.desired_state == "run"
            and grant.reported_state not in over
            and grant.not_before <= before
            for grant in self.grants.values()
        )


def standing_of(*, node_id: str) -> Standing | None:
    """Return what is known of a node, or None when there is no such node."""
    with connection.cursor() as cursor:
        cursor.execute(_READ, [node_id])
        row = cursor.fetchone()
    if row is None:
        return None
    *values, gpus_json, grants_json, policy_version = row
    for place in _DOCUMENTS:
        values[place] = json.loads(values[place])
    node = Node.from_db(DEFAULT_DB_ALIAS, _COLUMNS, values)
    gpus = [_gpu(values) for values in json.loads(gpus_json or "[]")]
    grants = [_grant(node, values) for values in json.loads(grants_json or "[]")]
    return Standing(
        node=node,
        gpus={gpu.uuid: gpu for gpu in gpus},
        grants={(grant.lease_id, grant.lease_epoch): grant for grant in grants},
        policy_version=policy_version or 0,
    )


def _gpu(values: dict[str, Any]) -> GpuNow:
    for name in ("idle_since", "measured_at", "counters_at"):
        values[name] = _instant(values[name])
    return GpuNow(**values)


def _grant(node: Node, values: dict[str, Any]) -> Grant:
    for name in _GRANT_INSTANTS:
        values[name] = _instant(values[name])
    grant = Grant(**values)
    grant.node = node
    return grant


def _instant(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text).astimezone(dt.UTC)
