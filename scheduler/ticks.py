"""Work off what is due: in batches that rivals skip, each row for itself.

A tick may run twice, late or beside another: it claims rows with FOR UPDATE SKIP LOCKED and every arrow
is a compare-and-set. A row whose arrow raises is logged and left; it neither undoes its neighbours nor
keeps them waiting.
"""

from collections.abc import Callable
from typing import TypeVar

import structlog
from django.db import models, transaction
from django.db.models import QuerySet

log = structlog.get_logger(__name__)

BATCH = 100  # rows per transaction: some 200 ms of locks
BATCHES_MAX = 50  # per tick: 5,000 rows; the next tick goes on

RowT = TypeVar("RowT", bound=models.Model)


def drain(*, due: QuerySet[RowT], advance: Callable[[RowT], None], name: str) -> int:
    """Call `advance` once for each due row, in its order; return how many moved."""
    moved = 0
    stuck: list[object] = []
    for _ in range(BATCHES_MAX):
        with transaction.atomic():
            rows = list(
                due.exclude(pk__in=stuck).select_for_update(
                    skip_locked=True, no_key=True, of=("self",)
                )[:BATCH]
            )
            for row in rows:
                try:
                    with transaction.atomic():
                        advance(row)
                    moved += 1
                except Exception:
                    log.exception("tick_left_a_row", tick=name, pk=row.pk)
                    stuck.append(row.pk)
        if len(rows) < BATCH:
            break
    return moved
