"""Work off what is due: in batches that rivals skip, each row for itself.

A tick may run twice, late or beside another: it claims rows with FOR UPDATE SKIP LOCKED and every arrow
is a compare-and-set. A row whose arrow raises is logged and left; it neither undoes its neighbours nor
keeps them waiting.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog
from django.db import models, transaction
from django.db.models import QuerySet

log = structlog.get_logger(__name__)

BATCH = 100  # rows per transaction: some 200 ms of locks
BATCHES_MAX = 50  # per tick: 5,000 rows; the next tick goes on

RowT = TypeVar("RowT", bound=models.Model)


def drain(
    *,
    due: QuerySet[RowT],
    advance: Callable[[RowT], None],
    name: str,
    together: Callable[[Sequence[RowT]], None] | None = None,
    once: bool = False,
    batch: int = BATCH,
) -> int:
    """Call `advance` once for each due row, in its order; return how many moved.

    `together` moves a whole batch with few statements; where it raises, its rows are advanced one by one.
    `once` is for rows that may stay due when they were advanced: each is looked at once. `batch` is how many
    rows share a transaction: one, where a row's step locks more than the row, in an order.
    """
    moved = 0
    left: list[object] = []
    for _ in range(BATCHES_MAX * BATCH // batch):
        with transaction.atomic():
            rows = list(
                due.exclude(pk__in=left).select_for_update(
                    skip_locked=True, no_key=True, of=("self",)
                )[:batch]
            )
            if together is not None and _all_at_once(rows, together=together, name=name):
                moved += len(rows)
            else:
                for row in rows:
                    try:
                        with transaction.atomic():
                            advance(row)
                        moved += 1
                    except Exception:
                        log.exception("tick_left_a_row", tick=name, pk=row.pk)
                        left.append(row.pk)
            if once:
                left += [row.pk for row in rows]
        if len(rows) < batch:
            break
    return moved


def _all_at_once(
    rows: Sequence[RowT], *, together: Callable[[Sequence[RowT]], None], name: str
) -> bool:
    """Move a batch in one savepoint; say whether that went well."""
    if not rows:
        return True
    try:
        with transaction.atomic():
            together(rows)
    except Exception:
        log.exception("tick_parts_a_batch", tick=name, rows=len(rows))
        return False
    return True
