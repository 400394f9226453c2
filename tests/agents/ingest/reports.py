"""Reports of one machine, and what was made of them."""

import datetime as dt
from typing import Any

from agents import ingest, protocol
from agents.models import Grant, Node
from tests.agents import factories as make
from tests.agents.factories import NOW, Machine

FIVE_MINUTES = make.seconds(300)
MOMENT = make.seconds(0.001)


def accept(machine: Machine, *, at: dt.datetime = NOW, **parts: Any) -> protocol.ReportReply:
    """Send a report with the next sequence unless another is given."""
    machine.node.refresh_from_db()
    parts.setdefault("sequence", machine.node.last_sequence + 1)
    return ingest.accept(node=machine.node, report=make.report(machine=machine, **parts), at=at)


def node_as_told() -> dict[str, Any]:
    """Return the row of the one node, without what the market itself counts."""
    row = Node.objects.values().get().items()
    return {name: value for name, value in row if not name.startswith("stale_")}


def refused(logs: list[Any]) -> dict[tuple[str, str], int]:
    """Return what the log says was left out, by kind and reason."""
    return {(e["kind"], e["reason"]): e["count"] for e in logs if e["event"] == "part_refused"}


def status(grant: Grant, state: protocol.LeaseState, detail: str = "") -> protocol.LeaseStatus:
    return protocol.LeaseStatus(
        lease_id=grant.lease_id, lease_epoch=grant.lease_epoch, state=state, detail=detail
    )
