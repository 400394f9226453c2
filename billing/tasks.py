"""What the beat calls: each task reads the clock and runs one verb, and may run twice or side by side."""

from celery import shared_task
from django.utils import timezone

from billing import changes, payouts, settlements


@shared_task(name="billing.settle_leases")
def settle_leases() -> None:
    settlements.settle_ended(at=timezone.now())


@shared_task(name="billing.release_earnings")
def release_earnings() -> None:
    now = timezone.now()
    payouts.release_due(at=now)
    changes.release_due(at=now)
