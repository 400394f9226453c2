"""What an operator watches: requests as they pass, and the market's counts when it is asked for them.

Counts alone: no organization, no name, no price. The counters of requests live in one web process.
"""

import datetime as dt
from collections.abc import Iterator

from django.db import DatabaseError
from django.db.models import Count, Min
from django.utils import timezone
from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agents import alarms
from agents.models import Gpu, Node
from billing import silences, watch
from billing.models import Settlement
from scheduler.models import Lease, Reservation
from scheduler.states import LEASE_ARROWS, LeaseStatus, ReservationStatus

_requests = Counter(
    "headroom_http_requests",
    "Answers by route, method and status",
    ["method", "route", "status"],
)
_seconds = Histogram(
    "headroom_http_request_seconds",
    "Time to answer, by route",
    ["method", "route"],
)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def observe_request(*, method: str, route: str, status: int, seconds: float) -> None:
    """Count one answer. Unknown methods and addresses share one label, so that nobody can fill the memory."""
    known_method = method if method in _METHODS else "other"
    known_route = route or "unmatched"
    _requests.labels(known_method, known_route, str(status)).inc()
    _seconds.labels(known_method, known_route).observe(seconds)


class MarketCollector(Collector):
    """Read the market's counts from the database at the moment of asking."""

    def describe(self) -> Iterator[Metric]:
        """Name nothing ahead of time: naming would ask the database at import."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the counts, or only that the database did not answer."""
        up = GaugeMetricFamily("headroom_database_up", "1 when PostgreSQL answered this scrape")
        try:
            yield from list(self._counts())
        except DatabaseError:
            up.add_metric([], 0)
        else:
            up.add_metric([], 1)
        yield up

    def _counts(self) -> Iterator[Metric]:
        now = timezone.now()
        for name, what, rows in (
            ("headroom_nodes", "Nodes by status", Node.objects.values_list("status")),
            (
                "headroom_gpus",
                "GPUs by health",
                Gpu.objects.filter(present=True).values_list("health"),
            ),
            (
                "headroom_reservations",
                "Reservations by status",
                Reservation.objects.values_list("status"),
            ),
            ("headroom_leases", "Leases by status", Lease.objects.values_list("status")),
            (
                "headroom_open_alarms",
                "Alarms that nobody has settled, by kind",
                alarms.open_alarms().values_list("kind"),
            ),
        ):
            family = GaugeMetricFamily(name, what, labels=["state"])
            for state, count in rows.order_by().annotate(count=Count("pk")):
                family.add_metric([state], count)
            yield family
        late = GaugeMetricFamily(
            "headroom_oldest_due_seconds",
            "How long the oldest thing that is due has waited",
            labels=["what"],
        )
        final = [status for status in LeaseStatus if LEASE_ARROWS.is_final(status)]
        for what, due in (
            (
                "start",
                Reservation.objects.filter(status=ReservationStatus.SCHEDULED).aggregate(
                    at=Min("starts_at")
                ),
            ),
            ("end", Lease.objects.filter(status=LeaseStatus.ACTIVE).aggregate(at=Min("ends_at"))),
            (
                "settle",
                Lease.objects.filter(status__in=final, settlement=None)
                .exclude(pk__in=silences.candidates().values("pk"))
                .aggregate(at=Min("closed_at")),
            ),
            (
                "release",
                Settlement.objects.filter(released_at=None).aggregate(at=Min("release_due_at")),
            ),
        ):
            waited = (now - due["at"]).total_seconds() if due["at"] else 0.0
            late.add_metric([what], max(waited, 0.0))
        yield late
        yield from _books(at=now)


def _books(*, at: dt.datetime) -> Iterator[Metric]:
    """Yield what waits for a person in the books, by kind: how many, for how long, and how long it may."""
    for name, what, rows in (
        ("differences", "Open differences between the provider and the ledger", watch.differences),
        ("waiting", "What only a person can end: parked, unknown or not cleared", watch.people),
    ):
        families = [
            GaugeMetricFamily(f"headroom_books_{name}{suffix}", f"{what}: {told}", labels=["kind"])
            for suffix, told in (
                ("", "how many"),
                ("_oldest_seconds", "how long the oldest has waited"),
                ("_limit_seconds", "after how long somebody is to be called"),
            )
        ]
        for row in rows(at=at):
            for family, value in zip(
                families, (row.count, row.oldest_seconds, row.limit_seconds), strict=True
            ):
                family.add_metric([row.kind], value)
        yield from families


REGISTRY.register(MarketCollector())
