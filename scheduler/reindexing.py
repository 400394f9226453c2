"""Keep the calendar's index: fold marks into weeks, derive it anew, compare it with the allocations.

One at a time writes the index, under an advisory lock: with two, an older view of the allocations could
overwrite a newer one. Marks are read before the allocations, so that what changes in between keeps its mark.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from django.db import connection, transaction
from psycopg.types.range import Int4Range

from agents import supply
from agents.models import SLOTS_PER_NODE
from agents.supply import Blocks, Masks
from marketplace.core.windows import to_instant, to_seconds
from scheduler import calendar, occupancy
from scheduler.models import CalendarMark, CalendarWeek
from scheduler.models.calendar import WEEK_BYTES
from scheduler.occupancy import HOUR_SECONDS, WEEK_HOURS, WEEK_SECONDS, Taken

FOLD_BATCH = 1_000  # marks per transaction: some 100 ms for bookings of two days
FOLD_BATCHES_MAX = 20  # per tick; the next tick goes on
REBUILD_BLOCKS = 500  # nodes at a time: 500 × 27 weeks take 18 MB
_FOLD_LOCK = 0x43616C66  # advisory


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One hour in which the index and the allocations disagree about a node."""

    block: int
    hour: dt.datetime
    indexed: int
    allocated: int


def fold() -> int:
    """Bring the index up to date where it is marked; return how many marks are gone.

    Safe twice and side by side: one at a time works, the others leave at once.
    """
    folded = 0
    for _ in range(FOLD_BATCHES_MAX):
        with transaction.atomic():
            count = _fold_batch() if _is_alone(wait=False) else 0
        folded += count
        if count < FOLD_BATCH:
            break
    return folded


@transaction.atomic
def rebuild(*, at: dt.datetime) -> int:
    """Derive the whole index anew, from the week of `at` on; return the number of its rows."""
    _is_alone(wait=True)
    # Before the allocations are read: what changes later leaves a mark that stays.
    CalendarMark.objects.all().delete()
    CalendarWeek.objects.all().delete()
    first_week = _week_of(at)
    last_week = _last_week()
    rows = 0
    for blocks in _blocks_in_use(first_week=first_week):
        masks = _derive(blocks=blocks, first_week=first_week, weeks=last_week + 1 - first_week)
        rows += _copy(masks=masks, blocks=blocks, first_week=first_week)
    return rows


def prune(*, at: dt.datetime) -> int:
    """Drop the weeks that are over, and the turn-rounds; return the number of weeks' rows."""
    calendar.forget_turnrounds(at=at)
    count, _ = CalendarWeek.objects.filter(week__lt=_week_of(at)).delete()
    return count


def compare(*, at: dt.datetime, limit: int) -> list[Mismatch]:
    """Compare the index with the allocations from the week of `at` on; return the first differences.

    Of one snapshot, if the caller's transaction has one; otherwise what changes meanwhile may differ.
    """
    found: list[Mismatch] = []
    first_week, last_week = _week_of(at), _last_week()
    hours = (last_week + 1 - first_week) * WEEK_HOURS
    if hours <= 0:
        return []
    first_hour = first_week * WEEK_HOURS
    marks = CalendarMark.objects.values_list("slots", "period")
    areas = [
        area
        for area in (occupancy.as_taken((s.lower, s.upper, p.lower, p.upper)) for s, p in marks)
        if area.hours[1] > first_hour
    ]
    for blocks in _blocks_in_use(first_week=first_week):
        indexed = occupancy.stored(blocks=blocks, first_hour=first_hour, hours=hours)
        occupancy.correct(masks=indexed, blocks=blocks, first_hour=first_hour, dirty=areas, at=None)
        allocated = _derive(blocks=blocks, first_week=first_week, weeks=hours // WEEK_HOURS)
        rows, columns = np.nonzero(indexed != allocated)
        found += [
            Mismatch(
                block=int(blocks[row]),
                hour=to_instant(int(first_hour + column) * HOUR_SECONDS),
                indexed=int(indexed[row, column]),
                allocated=int(allocated[row, column]),
            )
            for row, column in zip(rows[:limit], columns[:limit], strict=True)
        ]
        if len(found) >= limit:
            break
    return found[:limit]


def _week_of(instant: dt.datetime) -> int:
    return to_seconds(instant) // WEEK_SECONDS


def _is_alone(*, wait: bool) -> bool:
    """Lock out everybody else who writes the index, until the transaction ends."""
    with connection.cursor() as cursor:
        if wait:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_FOLD_LOCK])
            return True
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_FOLD_LOCK])
        return bool(cursor.fetchone()[0])


def _fold_batch() -> int:
    """Derive the weeks under the oldest marks anew, and drop those marks."""
    marks = list(
        CalendarMark.objects.order_by("pk").values_list("pk", "slots", "period")[:FOLD_BATCH]
    )
    touched: dict[int, set[int]] = {}
    for _, slots, period in marks:
        area = occupancy.as_taken((slots.lower, slots.upper, period.lower, period.upper))
        lower, upper = area.hours
        touched.setdefault(area.block, set()).update(
            range(lower // WEEK_HOURS, (upper - 1) // WEEK_HOURS + 1)
        )
    areas = [
        Taken(
            slot_lower=block * SLOTS_PER_NODE,
            slot_upper=(block + 1) * SLOTS_PER_NODE,
            starts=week * WEEK_SECONDS,
            ends=(week + 1) * WEEK_SECONDS,
        )
        for block, weeks in touched.items()
        for week in weeks
    ]
    by_block: dict[int, list[Taken]] = {}
    # After the marks: these allocations are at least as new as any of them.
    for place in occupancy.allocated(areas=areas, at=None):
        by_block.setdefault(place.block, []).append(place)
    weeks, blocks, busy = [], [], []
    for area in sorted(areas, key=lambda a: (a.starts, a.block)):
        masks: Masks = np.zeros((1, WEEK_HOURS), dtype=np.uint16)
        occupancy.paint(
            masks=masks,
            blocks=np.array([area.block], dtype=np.int32),
            taken=by_block.get(area.block, ()),
            first=area.starts,
            step=HOUR_SECONDS,
        )
        weeks.append(area.starts // WEEK_SECONDS)
        blocks.append(area.block)
        busy.append(masks.astype("<u2").tobytes())
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO scheduler_calendarweek (week, block, busy)"
            " SELECT * FROM unnest(%s::int[], %s::int[], %s::bytea[])"
            " ON CONFLICT (week, block) DO UPDATE SET busy = EXCLUDED.busy",
            [weeks, blocks, busy],
        )
    CalendarMark.objects.filter(pk__in=[pk for pk, _, _ in marks]).delete()
    return len(marks)


def _last_week() -> int:
    """Return the last week in which anything is allocated or indexed; -1 where nothing is."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT floor(greatest(
                (SELECT max(extract(epoch FROM upper(occupied)))
                   FROM scheduler_allocation WHERE occupied IS NOT NULL) / %s,
                (SELECT max(week) FROM scheduler_calendarweek), -1))::int
            """,
            [WEEK_SECONDS],
        )
        return int(cursor.fetchone()[0])


def _blocks_in_use(*, first_week: int) -> Iterator[Blocks]:
    """Yield the blocks of which anything is allocated or indexed from a week on, some at a time."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT DISTINCT lower(slots) / %(size)s FROM scheduler_allocation
             WHERE occupied && tstzrange(%(from)s, NULL)
             UNION SELECT block FROM scheduler_calendarweek WHERE week >= %(week)s ORDER BY 1
            """,
            {
                "size": SLOTS_PER_NODE,
                "from": to_instant(first_week * WEEK_SECONDS),
                "week": first_week,
            },
        )
        blocks: Blocks = np.array([block for (block,) in cursor.fetchall()], dtype=np.int32)
    for offset in range(0, len(blocks), REBUILD_BLOCKS):
        yield blocks[offset : offset + REBUILD_BLOCKS]


def _derive(*, blocks: Blocks, first_week: int, weeks: int) -> Masks:
    """Return what the allocations say of some blocks over whole weeks, without a look at the index."""
    masks: Masks = np.zeros((len(blocks), weeks * WEEK_HOURS), dtype=np.uint16)
    first = first_week * WEEK_SECONDS
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT string_agg(
                       int4send(lower(a.slots)) || int4send(upper(a.slots))
                       || int8send(floor(extract(epoch FROM lower(a.occupied)))::bigint)
                       || int8send(ceil(extract(epoch FROM upper(a.occupied)))::bigint), ''::bytea)
              FROM unnest(%s::int4range[]) AS run (slots)
              JOIN scheduler_allocation a
                ON a.slots && run.slots AND a.occupied && tstzrange(%s, %s)
            """,
            [
                [Int4Range(a * SLOTS_PER_NODE, b * SLOTS_PER_NODE) for a, b in supply.runs(blocks)],
                to_instant(first),
                to_instant(first + weeks * WEEK_SECONDS),
            ],
        )
        (packed,) = cursor.fetchone()
    rows = np.frombuffer(
        bytes(packed or b""),
        dtype=[("lower", ">i4"), ("upper", ">i4"), ("starts", ">i8"), ("ends", ">i8")],
    )
    occupancy.paint(
        masks=masks,
        blocks=blocks,
        taken=(
            Taken(slot_lower=lower, slot_upper=upper, starts=starts, ends=ends)
            for lower, upper, starts, ends in rows.tolist()
        ),
        first=first,
        step=HOUR_SECONDS,
    )
    return masks


def _copy(*, masks: Masks, blocks: Blocks, first_week: int) -> int:
    """Store the weeks in which anything is taken; return how many those are."""
    weeks = masks.reshape(len(blocks), -1, WEEK_HOURS)
    rows, columns = np.nonzero(weeks.any(axis=2))
    with connection.cursor() as cursor:
        statement = "COPY scheduler_calendarweek (week, block, busy) FROM STDIN (FORMAT BINARY)"
        with cursor.copy(statement) as copy:
            copy.set_types(["int4", "int4", "bytea"])
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
                busy = weeks[row, column].astype("<u2").tobytes()
                assert len(busy) == WEEK_BYTES
                copy.write_row((first_week + column, int(blocks[row]), busy))
    return len(rows)
