"""Measured samples of GPUs: kept for a day, for people who look."""

import datetime as dt

import structlog

from agents.models import Reading

log = structlog.get_logger(__name__)

READINGS_KEPT_HOURS = 24
PRUNE_BATCH_ROWS = 10_000  # a delete that holds its locks for some tens of milliseconds
PRUNE_BATCHES_MAX = 500  # one run ends within a minute or so; the next hour goes on


def prune(*, at: dt.datetime) -> int:
    """Delete the samples measured more than a day before `at`, in batches; return how many."""
    oldest = at - dt.timedelta(hours=READINGS_KEPT_HOURS)
    count = 0
    for _ in range(PRUNE_BATCHES_MAX):
        batch = Reading.objects.filter(measured_at__lt=oldest).order_by("measured_at").values("pk")
        deleted, _per_model = Reading.objects.filter(pk__in=batch[:PRUNE_BATCH_ROWS]).delete()
        count += deleted
        if deleted < PRUNE_BATCH_ROWS:
            break
    log.info("readings_pruned", count=count)
    return count
