"""Leases of simulated GPUs: rows in the state file, and an address that cannot exist."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence

from agents.node.provision import Capabilities, Found, Presence
from agents.node.simulated import Tenancy
from agents.node.spool import Spool
from agents.node.workloads import draw
from agents.protocol import Access, Grant, to_json

_PORT_FIRST, _PORT_COUNT = 22000, 10000


class SimulatedProvisioner:
    """Remembers who has which simulated GPU, so that the scripted work follows the lease."""

    blocking = False

    def __init__(self, *, spool: Spool, node_name: str, now: Callable[[], dt.datetime]) -> None:
        self._connection = spool.connection
        self._node_name = node_name
        self._now = now
        self._tenancies: dict[str, list[Tenancy]] | None = None

    def probe(self) -> Capabilities:
        """Say that every simulated GPU can be handed over."""
        return Capabilities(kind="simulated")

    def cgroup_marks(self) -> Mapping[str, str]:
        """Return nothing: nothing runs."""
        return {}

    def config_sha256(self, *, grant: Grant) -> str | None:
        """Return nothing: no container is started."""
        del grant
        return None

    def list_leases(self) -> Sequence[Found]:
        """Return the leases whose tenancies are open."""
        rows = self._connection.execute(
            "SELECT lease_id, lease_epoch, group_concat(gpu_uuid) FROM tenancy"
            " WHERE ends_at IS NULL GROUP BY lease_id, lease_epoch"
        )
        return [
            Found(lease_id=lease_id, lease_epoch=lease_epoch, gpu_uuids=uuids.split(","))
            for lease_id, lease_epoch, uuids in rows
        ]

    def tenancies(self, gpu_uuid: str) -> list[Tenancy]:
        """Return all tenancies of a GPU in the order in which they began."""
        if self._tenancies is None:
            self._tenancies = {}
            rows = self._connection.execute(
                "SELECT gpu_uuid, starts_at, ends_at FROM tenancy ORDER BY starts_at, number"
            )
            for uuid, starts_at, ends_at in rows:
                tenancy = Tenancy(
                    starts_at=_instant(starts_at), ends_at=ends_at and _instant(ends_at)
                )
                self._tenancies.setdefault(uuid, []).append(tenancy)
        return self._tenancies.get(gpu_uuid, [])

    def prepare(self, *, grant: Grant) -> None:
        """Do nothing: there is nothing to fetch."""

    def start(self, *, grant: Grant) -> Access:
        """Write the tenancy down; a second start changes nothing."""
        self._connection.executemany(
            "INSERT INTO tenancy (lease_id, lease_epoch, gpu_uuid, starts_at) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            [
                (grant.lease_id, grant.lease_epoch, gpu_uuid, to_json(self._now()))
                for gpu_uuid in grant.gpu_uuids
            ],
        )
        self._tenancies = None
        return Access(
            host=f"{self._node_name.lower()}.simulated.invalid",  # .invalid never resolves (RFC 2606)
            port=_PORT_FIRST + draw(seed=grant.lease_id, below=_PORT_COUNT),
            username="simulated-tenant",
        )

    def inspect(self, *, grant: Grant) -> Presence:
        """Say whether the tenancy is open."""
        rows = self._connection.execute(
            "SELECT ends_at FROM tenancy WHERE lease_id = ? AND lease_epoch = ?",
            [grant.lease_id, grant.lease_epoch],
        ).fetchall()
        if not rows:
            return Presence.ABSENT
        return Presence.RUNNING if any(ends_at is None for (ends_at,) in rows) else Presence.EXITED

    def stop(self, *, grant: Grant) -> None:
        """Close the tenancy; a second stop changes nothing."""
        self._connection.execute(
            "UPDATE tenancy SET ends_at = ? WHERE lease_id = ? AND lease_epoch = ? AND ends_at IS NULL",
            [to_json(self._now()), grant.lease_id, grant.lease_epoch],
        )
        self._tenancies = None

    def destroy(self, *, grant: Grant) -> None:
        """Do nothing: a tenancy that ended is kept, because the energy counter rests on it."""


def _instant(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text.replace("Z", "+00:00"))
