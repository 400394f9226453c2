"""What an operator of the books is called for: how many of each wait for a person, and for how long."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

from django.db.models import Count, Min, QuerySet

from billing import disputes, findings, reconcile, silences
from billing.models import Difference, Intent, Parking
from billing.provider_states import IntentStatus
from scheduler.models import Lease


@dataclass(frozen=True, slots=True)
class Waiting:
    """Of one kind: how many wait, for how long the oldest has, and after how long somebody is called."""

    kind: str
    count: int
    oldest_seconds: int
    limit_seconds: int


def differences(*, at: dt.datetime) -> Iterator[Waiting]:
    """Yield every kind of difference between the provider and the ledger, open or not.

    What a person has dismissed waits for nobody.
    """
    waiting = Difference.objects.filter(resolved_at__isnull=True, dismissal__isnull=True)
    opened = waiting.order_by().values("kind")
    counted = {
        row["kind"]: row for row in opened.annotate(count=Count("pk"), first=Min("first_seen_at"))
    }
    for kind, limit in reconcile.ALERT_AFTER_SECONDS.items():
        row = counted.get(kind)
        yield Waiting(
            kind=kind,
            count=row["count"] if row else 0,
            oldest_seconds=_age(row["first"], at=at) if row else 0,
            limit_seconds=limit,
        )


def people(*, at: dt.datetime) -> Iterator[Waiting]:
    """Yield what only a person can end: parked money, silent leases, unknown calls, open clearings."""
    yield _of(
        Parking.objects.filter(ended_at__isnull=True), "parked_organization", "parked_at", at=at
    )
    # Given up without a word of their node: readings, outages or two people tell what became of them.
    yield _of(silences.candidates(), "silent_lease", "closed_at", at=at)
    unknown = Intent.objects.filter(status=IntentStatus.UNKNOWN)
    yield _of(unknown, "unknown_call", "sent_at", at=at)
    # Tried once a day and a week long; after the first the provider would have told of a dispute.
    yield _of(
        disputes.unexplained_refusals(),
        "refused_refund",
        "closed_at",
        at=at,
        limit_seconds=disputes.KNOWN_WITHIN_SECONDS,
    )
    # Where nothing has moved for that long, the first is as old as its last posting.
    clearings = list(findings.open_clearings(at=at))
    yield Waiting(
        kind="open_clearing",
        count=len(clearings),
        oldest_seconds=max((_age(row.moved_at, at=at) for row in clearings), default=0),
        limit_seconds=findings.CLEARING_OPEN_SECONDS,
    )


def _of(
    rows: QuerySet[Parking] | QuerySet[Intent] | QuerySet[Lease],
    kind: str,
    column: str,
    *,
    at: dt.datetime,
    limit_seconds: int = 0,
) -> Waiting:
    counted = rows.order_by().aggregate(count=Count("pk"), first=Min(column))
    return Waiting(
        kind=kind,
        count=counted["count"],
        oldest_seconds=_age(counted["first"], at=at) if counted["first"] else 0,
        limit_seconds=limit_seconds,
    )


def _age(since: dt.datetime, *, at: dt.datetime) -> int:
    return max((at - since) // dt.timedelta(seconds=1), 0)
