"""What the beat calls: each task reads the clock and runs one verb, and may run twice or side by side."""

from celery import shared_task
from django.utils import timezone

from billing import inbox, payments, payouts, provider, settlements


@shared_task(name="billing.settle_leases")
def settle_leases() -> None:
    settlements.settle_ended(at=timezone.now())


@shared_task(name="billing.release_earnings")
def release_earnings() -> None:
    payouts.release_due(at=timezone.now())


@shared_task(name="billing.drive_intents")
def drive_intents() -> None:
    """Ask the provider for what is due, and give up what nobody paid."""
    now = timezone.now()
    payments.give_up_due(at=now)
    payments.capture_due(at=now)
    provider.drive_due(at=now)


@shared_task(name="billing.read_inbox")
def read_inbox() -> None:
    inbox.process_due(at=timezone.now())


@shared_task(name="billing.poll_provider")
def poll_provider() -> None:
    """Find what no webhook told of: missed events, and payments of which nothing was heard."""
    now = timezone.now()
    inbox.poll(at=now)
    provider.read_due(at=now)
