"""What the beat calls: each task reads the clock and runs one verb, and may run twice or side by side."""

from celery import shared_task
from django.utils import timezone

from billing import books, changes, corrections, earnings, payouts, refunds, settlements


@shared_task(name="billing.settle_leases")
def settle_leases() -> None:
    settlements.settle_ended(at=timezone.now())


@shared_task(name="billing.release_earnings")
def release_earnings() -> None:
    now = timezone.now()
    payouts.release_due(at=now)
    changes.release_due(at=now)
    payouts.release_due(at=timezone.now())


@shared_task(name="billing.close_hours")
def close_hours() -> None:
    earnings.close_due(at=timezone.now())


@shared_task(name="billing.review_settlements")
def review_settlements() -> None:
    corrections.review_due(at=timezone.now())


@shared_task(name="billing.open_refunds")
def open_refunds() -> None:
    refunds.open_due(at=timezone.now())


@shared_task(name="billing.check_books")
def check_books() -> None:
    books.run_if_due(at=timezone.now())
