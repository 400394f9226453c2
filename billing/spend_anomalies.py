"""Days that cost a project far more than its days do: told on the day, once.

A day's spend is the price of the hours that are promised in it, as budgets count it: so it is known when it
is ordered, and not first when it is billed. It is compared with the days before that cost anything; days
without spend say nothing of how dear a day is, or whoever trains on Mondays would be told each week.

The rule is robust: one dear day among the days before moves neither the median nor the spread by much.
"""

import datetime as dt
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median_low

from django.conf import settings
from django.db.models import Exists, OuterRef

from billing.budgets.spending import COUNTED
from billing.promised import Promise
from marketplace import events
from marketplace.core.money import currency_exponent
from marketplace.core.windows import Window
from marketplace.models import Organization
from marketplace.states import EventKind
from scheduler.models import Reservation

DAYS_BEFORE = 28  # four weeks: each weekday counts as often as the others
DAYS_WITH_SPEND_MIN = 7  # before that nobody knows what is usual
TIMES_MEDIAN = 2  # a day must cost this much more than usual,
SPREADS = 6  # and lie so many median deviations above it: some four standard deviations,
EXCESS_MAJOR_MIN = 100  # and the difference must be worth a message, in major units of the currency
RESERVATIONS_PER_READ = 1_000
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """A day's spend beside what is usual, in minor units; `limit_minor` is where the rule draws the line."""

    spend_minor: int
    median_minor: int
    limit_minor: int
    days: int


def judge(*, spend_minor: int, before: Sequence[int], excess_minor_min: int) -> Anomaly | None:
    """Return how a day's spend stands out from the days before; None where it does not, or nobody can say.

    `before` are the days that cost anything, in any order.
    """
    if len(before) < DAYS_WITH_SPEND_MIN:
        return None
    median = median_low(before)
    spread = median_low([abs(spend - median) for spend in before])
    limit = max(TIMES_MEDIAN * median, median + SPREADS * spread, median + excess_minor_min)
    if spend_minor <= limit:
        return None
    return Anomaly(
        spend_minor=spend_minor, median_minor=median, limit_minor=limit, days=len(before)
    )


def watch(*, at: dt.datetime) -> int:
    """Tell of each project whose spend of this day of UTC stands out; return how many are news.

    Once per project and day. Safe to run twice, late or side by side.
    """
    midnight = at.astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    today = Window(midnight, midnight + _DAY)
    found = 0
    for organization, project, spends in _spends(today=today):
        anomaly = judge(
            spend_minor=spends.pop(today.starts_at, 0),
            before=[spend for spend in spends.values() if spend],
            excess_minor_min=EXCESS_MAJOR_MIN * 10 ** currency_exponent(settings.CURRENCY),
        )
        if anomaly is not None:
            found += _tell(organization, project=project, day=today, anomaly=anomaly, at=at)
    return found


def _spends(*, today: Window) -> Iterator[tuple[Organization, str, dict[dt.datetime, int]]]:
    """Yield each project that spends something today, with its spend by the beginnings of days."""
    since = today.starts_at - DAYS_BEFORE * _DAY
    counted = Reservation.objects.filter(status__in=COUNTED, currency=settings.CURRENCY)
    now = counted.filter(
        organization=OuterRef("organization"),
        project=OuterRef("project"),
        starts_at__lt=today.ends_at,
        ends_at__gt=today.starts_at,
    )
    rows = (
        counted.filter(Exists(now), starts_at__lt=today.ends_at, ends_at__gt=since)
        .select_related("organization")
        .order_by("organization", "project", "pk")
        .iterator(chunk_size=RESERVATIONS_PER_READ)
    )
    for (_, project), group in groupby(rows, key=lambda row: (row.organization_id, row.project)):
        spends: dict[dt.datetime, int] = defaultdict(int)
        for row in group:
            organization = row.organization
            for day in _days(row.window, since=since, until=today.ends_at):
                spends[day.starts_at] += Promise.of(row).part_minor(within=day)
        yield organization, project, spends


def _days(window: Window, *, since: dt.datetime, until: dt.datetime) -> Iterator[Window]:
    """Yield the days of UTC between two midnights in which a window has a part."""
    day = max(since, since + (window.starts_at - since) // _DAY * _DAY)
    while day < min(until, window.ends_at):
        yield Window(day, day + _DAY)
        day += _DAY


def _tell(
    organization: Organization, *, project: str, day: Window, anomaly: Anomaly, at: dt.datetime
) -> bool:
    name = hashlib.sha256(project.encode()).hexdigest()[:16]  # a project may be longer than a key
    return events.record(
        organization=organization,
        kind=EventKind.SPEND_ANOMALY,
        object_id=organization.pk,
        data={
            "project": project,
            "day": f"{day.starts_at:%Y-%m-%d}",
            "spend_minor": anomaly.spend_minor,
            "median_minor": anomaly.median_minor,
            "limit_minor": anomaly.limit_minor,
            "days_compared": anomaly.days,
            "currency": settings.CURRENCY,
        },
        at=at,
        key=f"{organization.pk}:spend:{day.starts_at:%Y-%m-%d}:{name}",
    )
