"""What the catalogue does by the clock. Each task is thin, takes no input, and may run twice."""

from celery import shared_task
from django.utils import timezone

from marketplace import deliveries
from marketplace.api import idempotency


@shared_task(name="marketplace.prune_idempotency_records")
def prune_idempotency_records() -> int:
    """Forget old answers, a batch per run."""
    return idempotency.prune(at=timezone.now())


@shared_task(name="marketplace.deliver_events")
def deliver_events() -> int:
    """Call the endpoints that want to know of events."""
    return deliveries.deliver_due(at=timezone.now())


@shared_task(name="marketplace.prune_deliveries")
def prune_deliveries() -> int:
    """Forget deliveries of events that are not shown any more."""
    return deliveries.prune(at=timezone.now())
