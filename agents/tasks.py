"""Periodic work of the agents package. Each task reconciles from the database and may run twice."""

from celery import shared_task
from django.utils import timezone

from agents import alarms, readings


@shared_task(name="agents.prune_readings")
def prune_readings() -> None:
    """Forget samples that are older than a day."""
    readings.prune(at=timezone.now())


@shared_task(name="agents.review_alarms")
def review_alarms() -> None:
    """End the claims of nodes that are silent, and renew those against nodes that came back."""
    alarms.review(at=timezone.now())
