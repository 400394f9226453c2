"""How alive a node is, judged by the age of its last accepted report on the server's clock."""

import datetime as dt
from enum import StrEnum

from django.conf import settings

from agents.models import Node

# Three reports in a row may be lost to a restart or a network before nothing new is sold on a node.
NODE_STALE_SECONDS = 3 * settings.AGENT_REPORT_INTERVAL_SECONDS + 10
# After ten minutes a person should look. Leases go on: silence is no proof that a tenant lost its GPUs.
NODE_LOST_SECONDS = max(600, 2 * NODE_STALE_SECONDS)


class Liveness(StrEnum):
    NEVER_REPORTED = "never_reported"
    FRESH = "fresh"
    STALE = "stale"
    LOST = "lost"


def liveness(*, node: Node, at: dt.datetime) -> Liveness:
    """Say how long a node has been silent: fresh may be sold, stale may not, lost needs a person."""
    if node.last_report_at is None:
        return Liveness.NEVER_REPORTED
    silent_seconds = (at - node.last_report_at).total_seconds()
    if silent_seconds <= NODE_STALE_SECONDS:
        return Liveness.FRESH
    return Liveness.STALE if silent_seconds <= NODE_LOST_SECONDS else Liveness.LOST


def fresh_since(*, at: dt.datetime) -> dt.datetime:
    """Return the instant after which a node must have reported to be fresh at `at`."""
    return at - dt.timedelta(seconds=NODE_STALE_SECONDS)
