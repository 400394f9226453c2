"""How often nodes report: the one place that knows the interval that is granted, and what follows from it.

The market grants it, so that a fleet of any size brings the same number of reports a second: with more nodes
each reports less often. Each node has a pace of its own, a little off the others', so that nodes that were
switched on together drift apart.
"""

import datetime as dt
import hashlib
import math
import threading
import time
from dataclasses import dataclass

from django.conf import settings

from agents.models import Node
from agents.states import NodeStatus

REPORTS_PER_SECOND_AIMED = (
    300  # below what two web processes take in beside PostgreSQL on two cores
)
INTERVAL_SECONDS_MAX = 60  # a tenant's order must not wait longer for its GPUs to hear of it
# Paces lie within a tenth around the base. By the node's id: an agent writes a changed interval to its disk.
PACE_SPREAD = 0.1
# Nodes of the last day count, so that an outage of theirs or of ours does not shorten the interval of the
# rest: those that return would find it too short for all.
COUNTED_HOURS = 24
COUNT_KEPT_SECONDS = 60  # per process: fleets grow slower
# A node that is to start a lease hears sooner of a change of mind.
FAST_LANE_SECONDS = 10
FAST_LANE_AHEAD_SECONDS = 120
# A report that only says what was known already is no reason to write a GPU's row or to keep a sample: one
# in so many is (five minutes at the usual interval).
REPORTS_PER_SAMPLE = 20


@dataclass(frozen=True, slots=True)
class _Count:
    nodes: int
    counted_at_monotonic: float


class _NodeCount:
    """How many nodes report, counted once a minute per process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count: _Count | None = None

    def get(self, *, at: dt.datetime) -> int:
        with self._lock:
            count = self._count
            now = time.monotonic()
            if count is None or now - count.counted_at_monotonic > COUNT_KEPT_SECONDS:
                count = self._count = _Count(_count_nodes(at=at), now)
            return count.nodes

    def set(self, *, nodes: int | None) -> None:
        with self._lock:
            self._count = None if nodes is None else _Count(nodes, time.monotonic())


_node_count = _NodeCount()


def remember_count(*, nodes: int | None) -> None:
    """Take `nodes` for the count of the next minute; None: count them when next asked."""
    _node_count.set(nodes=nodes)


def granted_interval_seconds(*, node_id: str, at: dt.datetime, is_starting: bool = False) -> int:
    """Return after how many seconds a node is to report again.

    `is_starting` says that a lease is about to begin on it.
    """
    digest = hashlib.sha256(node_id.encode()).digest()
    share = int.from_bytes(digest[:4]) / 2**32  # even in [0, 1)
    pace = 1 - PACE_SPREAD + 2 * PACE_SPREAD * share
    granted = max(1, round(base_interval_seconds(at=at) * pace))
    return min(granted, FAST_LANE_SECONDS) if is_starting else granted


def base_interval_seconds(*, at: dt.datetime) -> float:
    """Return the interval around which the nodes' paces lie.

    The setting is the shortest one: a demo's nodes report every other second.
    """
    least = settings.AGENT_REPORT_INTERVAL_SECONDS
    even = _node_count.get(at=at) / REPORTS_PER_SECOND_AIMED
    return float(min(max(even, least), max(least, INTERVAL_SECONDS_MAX)))


def longest_interval_seconds(*, at: dt.datetime) -> int:
    """Return the longest interval that a node may have been granted lately."""
    return math.ceil(base_interval_seconds(at=at) * (1 + PACE_SPREAD))


def sample_step_seconds() -> int:
    """Return how old what is kept of a GPU may become before the next report renews it."""
    return int(REPORTS_PER_SAMPLE * settings.AGENT_REPORT_INTERVAL_SECONDS)


def _count_nodes(*, at: dt.datetime) -> int:
    since = at - dt.timedelta(hours=COUNTED_HOURS)
    nodes = Node.objects.filter(last_report_at__gt=since).exclude(status=NodeStatus.REVOKED)
    return nodes.count()
