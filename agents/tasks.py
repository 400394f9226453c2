"""Periodic work of the agents package. Each task reconciles from the database and may run twice."""

from celery import shared_task
from django.utils import timezone

from agents import readings


@shared_task(name="agents.prune_readings")
def prune_readings() -> None:
    """Forget samples that are older than a day."""
    readings.prune(at=timezone.now())
