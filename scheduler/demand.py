"""Demand: sample what tenants ask for, and say what of it prices may follow.

A wish costs nothing, so that a rival could talk a price up. Therefore: who is not signed in is not heard;
one tenant's wish for one window counts once an hour; a search, which names no window, is kept for people to
see and moves no price; and a day's wishes of one tenant in a pool count, in number and in GPU-hours, for no
more than a tenth of what the others want on a day, or than three wishes of their kind.
"""

import datetime as dt
from collections import Counter, defaultdict

import numpy as np
from django.db import connection, transaction

from marketplace.core.money import SECONDS_PER_HOUR
from marketplace.core.windows import Window, to_seconds
from marketplace.models import Organization
from marketplace.states import Tier
from scheduler.models import DemandSample
from scheduler.pool_keys import PoolKey
from scheduler.pricing.forecast import Requests
from scheduler.states import DemandKind

# Of one tenant and hour, of all kinds: an honest buyer says far less; what is beyond is not even stored.
SAMPLES_PER_TENANT_HOUR_MAX = 200
TENANT_DAY_MIN = 3  # a pool with few tenants must hear each of them
TENANT_DAY_SHARE = 10  # one in ten of what the others asked for on a day
OTHERS_DAYS = 7  # over which that is reckoned: at midnight nobody has said anything yet
COUNTED_KINDS = (DemandKind.QUOTE, DemandKind.REFUSAL)  # a reservation was a quote before
BATCH = 5_000  # samples per transaction of the tick: some 100 ms
BATCHES_MAX = 20  # per tick; the next one goes on
KEPT_DAYS = 35  # four weeks are learnt from, and a week to look at what was
PRUNE_BATCH = 10_000
HOURS_PER_DAY = 24


def record(
    *,
    organization: Organization,
    kind: DemandKind,
    gpu_model_id: str,
    region: str,
    tier: Tier,
    window: Window,
    gpus: int,
    at: dt.datetime,
    occasion: str = "",
) -> None:
    """Sample a wish: one statement. One that was said in this hour already changes nothing."""
    hour = to_seconds(at) // SECONDS_PER_HOUR
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO scheduler_demandsample
                   (organization_id, gpu_model_id, region, tier, kind, occasion, asked_at, asked_hour,
                    start_hour, end_hour, gpus)
            SELECT %(organization)s, %(model)s, %(region)s, %(tier)s, %(kind)s, %(occasion)s, %(at)s,
                   %(hour)s, %(start)s, %(end)s, %(gpus)s
             WHERE (SELECT count(*) FROM (
                      SELECT 1 FROM scheduler_demandsample
                       WHERE organization_id = %(organization)s AND asked_hour = %(hour)s
                       LIMIT %(most)s) AS said) < %(most)s
                ON CONFLICT DO NOTHING
            """,
            {
                "organization": organization.pk,
                "model": gpu_model_id,
                "region": region,
                "tier": tier.value,
                "kind": kind.value,
                "occasion": occasion,
                "at": at,
                "hour": hour,
                "start": to_seconds(window.starts_at) // SECONDS_PER_HOUR,
                "end": -(-to_seconds(window.ends_at) // SECONDS_PER_HOUR),
                "gpus": gpus,
                "most": SAMPLES_PER_TENANT_HOUR_MAX,
            },
        )


def count_due(*, at: dt.datetime) -> int:
    """Decide of the samples that wait for it whether they count; return how many do.

    Safe twice and side by side: a batch is claimed with SKIP LOCKED and decided in one transaction.
    """
    counted = 0
    for _ in range(BATCHES_MAX):
        with transaction.atomic():
            batch = list(
                DemandSample.objects.filter(counted_gpus=None, asked_at__lte=at)
                .order_by("asked_at", "pk")
                .select_for_update(skip_locked=True)[:BATCH]
            )
            _decide(batch)
            DemandSample.objects.bulk_update(batch, ["counted_gpus"])
        counted += sum(1 for row in batch if row.counted_gpus)
        if len(batch) < BATCH:
            break
    return counted


def requests(*, key: PoolKey, first_hour: int, at: dt.datetime) -> Requests:
    """Return what counts of a pool's demand since an hour, for `pricing.forecast`; one query.

    Who did not say where counts in every region.
    """
    rows = DemandSample.objects.filter(
        counted_gpus__gt=0,
        gpu_model_id=key.gpu_model_id,
        tier=key.tier,
        region__in=[key.region, ""],
        asked_hour__gte=first_hour,
        asked_at__lte=at,
    ).values_list("asked_hour", "start_hour", "end_hour", "counted_gpus")
    table = np.array(list(rows), dtype=np.int64).reshape(-1, 4)
    return Requests(
        asked_hours=table[:, 0],
        start_hours=table[:, 1],
        duration_hours=table[:, 2] - table[:, 1],
        gpus=table[:, 3],
    )


def prune(*, at: dt.datetime) -> int:
    """Forget a batch of what is older than `KEPT_DAYS`; return how many samples went."""
    old = DemandSample.objects.filter(asked_at__lt=at - dt.timedelta(days=KEPT_DAYS))
    deleted, _ = DemandSample.objects.filter(pk__in=old.values("pk")[:PRUNE_BATCH]).delete()
    return deleted


def _decide(batch: list[DemandSample]) -> None:
    """Write on each of the samples how many of its GPUs count, pool by pool and day by day."""
    said: dict[tuple[str, str, str, int], list[DemandSample]] = defaultdict(list)
    for row in batch:
        row.counted_gpus = 0
        if row.kind in COUNTED_KINDS:
            day = row.asked_hour // HOURS_PER_DAY
            said[row.gpu_model_id, row.region, row.tier, day].append(row)
    for (model, region, tier, day), rows in said.items():
        pool = DemandSample.objects.filter(
            counted_gpus__gt=0, gpu_model_id=model, region=region, tier=tier
        )
        week = _Said()
        today = _Said()
        for tenant, hour, start, end, gpus in pool.filter(
            asked_hour__gte=(day + 1 - OTHERS_DAYS) * HOURS_PER_DAY,
            asked_hour__lt=(day + 1) * HOURS_PER_DAY,
        ).values_list("organization_id", "asked_hour", "start_hour", "end_hour", "counted_gpus"):
            assert gpus is not None, tenant
            week.add(tenant, (hour, start, end), gpus)
            if hour >= day * HOURS_PER_DAY:
                today.add(tenant, (hour, start, end), gpus)
        for row in rows:
            row.counted_gpus = _allowed(row, today=today, week=week)
            if row.counted_gpus:
                wish = (row.asked_hour, row.start_hour, row.end_hour)
                today.add(row.organization_id, wish, row.counted_gpus)
                week.add(row.organization_id, wish, row.counted_gpus)


class _Said:
    """What tenants are counted with over some time: which wishes, and how many GPU-hours."""

    def __init__(self) -> None:
        self.wishes: set[tuple[str, int, int, int]] = set()
        self.number: Counter[str] = Counter()
        self.gpu_hours: Counter[str] = Counter()

    def add(self, tenant: str, wish: tuple[int, int, int], gpus: int) -> None:
        hour, start, end = wish
        self.wishes.add((tenant, hour, start, end))
        self.number[tenant] += 1
        self.gpu_hours[tenant] += gpus * (end - start)


def _allowed(row: DemandSample, *, today: _Said, week: _Said) -> int:
    """Return how many GPUs of a wish count beside what the tenant is counted with that day."""
    tenant, hours = row.organization_id, row.end_hour - row.start_hour
    if (tenant, row.asked_hour, row.start_hour, row.end_hour) in today.wishes:
        return 0
    number = week.number.total() - week.number[tenant]
    share = OTHERS_DAYS * TENANT_DAY_SHARE
    if today.number[tenant] >= max(TENANT_DAY_MIN, number // share):
        return 0
    if not number:
        return row.gpus  # who is alone can raise a price for nobody else
    gpu_hours = week.gpu_hours.total() - week.gpu_hours[tenant]
    most = max(TENANT_DAY_MIN * gpu_hours // number, gpu_hours // share)
    return max(0, min(row.gpus, (most - today.gpu_hours[tenant]) // hours))
