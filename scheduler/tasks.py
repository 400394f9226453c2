"""The market's clock: thin tasks without input that work off what is due. Cadences: marketplace/celery.py."""

from celery import shared_task
from django.utils import timezone

from scheduler import leases, quotes, reservations
from scheduler.prices import refresh


@shared_task(name="scheduler.end_due_leases")
def end_due_leases() -> None:
    """Move leases as far as time and evidence allow, and finish the reservations that are over."""
    now = timezone.now()
    leases.advance(at=now)
    reservations.finish_due(at=now)


@shared_task(name="scheduler.start_due_reservations")
def start_due_reservations() -> None:
    """Start what begins; ends of the same instant run first."""
    reservations.start_due(at=timezone.now())


@shared_task(name="scheduler.expire_quotes")
def expire_quotes() -> None:
    """Put the GPUs of expired holds and unpaid reservations back on sale."""
    now = timezone.now()
    quotes.expire_due(at=now)
    reservations.expire_unpaid(at=now)


@shared_task(name="scheduler.refresh_prices")
def refresh_prices() -> None:
    """Make the next version of the price tables that are due."""
    refresh.refresh_due(at=timezone.now())
