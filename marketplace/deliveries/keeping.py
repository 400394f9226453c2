"""How long deliveries are kept: as long as their events are shown, and no longer."""

import datetime as dt

from marketplace.events import SHOWN_DAYS
from marketplace.models import WebhookDelivery

PRUNE_BATCH = 1_000  # rows, and some ten calls of each: a delete that holds its locks for a moment
PRUNE_BATCHES_MAX = 100  # one run ends within a minute or so; the next hour goes on


def prune(*, at: dt.datetime) -> int:
    """Forget the deliveries of events that are not shown any more, in batches; return how many.

    What is still on its way stays. Safe to run twice, or beside another run: then both find less to delete.
    """
    count = 0
    for _ in range(PRUNE_BATCHES_MAX):
        batch = _oldest(before=at - dt.timedelta(days=SHOWN_DAYS))
        if not batch:
            break
        WebhookDelivery.objects.filter(pk__in=batch).delete()
        count += len(batch)
    return count


def _oldest(*, before: dt.datetime) -> list[int]:
    """Return the keys of the oldest deliveries that ended, as far as their events are older than this.

    The ids of events sort by time, so one walk of their index, a batch long, finds all there is to find.
    """
    ended = WebhookDelivery.objects.filter(due_at__isnull=True).order_by("event_id")
    rows = ended.values_list("pk", "event__at")[:PRUNE_BATCH]
    return [key for key, told_at in rows if told_at <= before]
