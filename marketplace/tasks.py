"""What the catalogue does by the clock. Each task is thin, takes no input, and may run twice."""

from celery import shared_task
from django.utils import timezone

from marketplace.api import idempotency


@shared_task(name="marketplace.prune_idempotency_records")
def prune_idempotency_records() -> int:
    """Forget old answers, a batch per run."""
    return idempotency.prune(at=timezone.now())
