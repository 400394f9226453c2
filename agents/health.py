"""How alive a node is, judged by the age of its last accepted report on the server's clock."""

import datetime as dt
from enum import StrEnum

from agents import pacing
from agents.models import Node

# Three reports in a row may be lost to a restart or a network before nothing new is sold on a node.
REPORTS_LOST_MAX = 3
TRANSIT_SECONDS = 10  # a report may be that long on its way
# After ten minutes a person should look. Leases go on: silence is no proof that a tenant lost its GPUs.
NODE_LOST_SECONDS_MIN = 600


class Liveness(StrEnum):
    NEVER_REPORTED = "never_reported"
    FRESH = "fresh"
    STALE = "stale"
    LOST = "lost"


def stale_seconds(*, at: dt.datetime) -> int:
    """Return after how long a silence nothing new is sold on a node: it follows the granted interval."""
    return REPORTS_LOST_MAX * pacing.longest_interval_seconds(at=at) + TRANSIT_SECONDS


def lost_seconds(*, at: dt.datetime) -> int:
    """Return after how long a silence a person should look."""
    return max(NODE_LOST_SECONDS_MIN, 2 * stale_seconds(at=at))


def liveness(*, node: Node, at: dt.datetime) -> Liveness:
    """Say how long a node has been silent: fresh may be sold, stale may not, lost needs a person."""
    if node.last_report_at is None:
        return Liveness.NEVER_REPORTED
    silent_seconds = (at - node.last_report_at).total_seconds()
    if silent_seconds <= stale_seconds(at=at):
        return Liveness.FRESH
    return Liveness.STALE if silent_seconds <= lost_seconds(at=at) else Liveness.LOST


def fresh_since(*, at: dt.datetime) -> dt.datetime:
    """Return the instant after which a node must have reported to be fresh at `at`."""
    return at - dt.timedelta(seconds=stale_seconds(at=at))
