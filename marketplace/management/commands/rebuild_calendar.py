"""`manage.py rebuild_calendar`: derive the calendar's index from the allocations anew."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from scheduler import reindexing


class Command(BaseCommand):
    help = "Derive the calendar's index from the allocations anew; the market may go on meanwhile."

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Django's signature
        rows = reindexing.rebuild(at=timezone.now())
        self.stdout.write(f"{rows} node-weeks in which something is taken")
