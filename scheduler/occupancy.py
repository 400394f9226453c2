"""The calendar's index: which slots of a node are taken in which hour, as arrays of bits.

The index is derived from the allocations and kept per node and week (`CalendarWeek`). An allocation that
changes leaves a mark in the same transaction (`CalendarMark`), and where there is a mark the allocations are
asked instead. A periodic task folds the marks into the weeks. So the index is right at every instant, also in
the transaction that changes it; nobody who sells or frees GPUs locks a row of it, and nothing can deadlock.

An hour of which any part is taken counts as taken. For windows of whole hours that is exact. Windows that
begin or end within an hour are looked up in the allocations.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import psycopg
from django.db import connection
from psycopg.types.range import Int4Range, TimestamptzRange

from agents.models import SLOTS_PER_NODE
from agents.supply import Blocks, Masks, runs
from marketplace.core.windows import EPOCH, Window, to_instant, to_seconds

HOUR_SECONDS = 3600
WEEK_HOURS = 168
WEEK_SECONDS = WEEK_HOURS * HOUR_SECONDS

_ROW = np.dtype([("week", ">i4"), ("block", ">i4"), ("busy", "<u2", (WEEK_HOURS,))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A run of slots of one node that is taken over some time, half-open, seconds since the Unix epoch.

    The turn-round after an allocation is part of it.
    """

    slot_lower: int
    slot_upper: int
    starts: int
    ends: int

    @property
    def block(self) -> int:
        return self.slot_lower // SLOTS_PER_NODE

    @property
    def mask(self) -> int:
        """Return the bits of its slots in their block."""
        base = self.block * SLOTS_PER_NODE
        return (1 << (self.slot_upper - base)) - (1 << (self.slot_lower - base))

    @property
    def hours(self) -> tuple[int, int]:
        """Return the hours since the Unix epoch that it touches, half-open."""
        return self.starts // HOUR_SECONDS, -(-self.ends // HOUR_SECONDS)


def read(*, blocks: Blocks, first_hour: int, hours: int, at: dt.datetime) -> Masks:
    """Return which slots are taken, per block (row) and hour (column) from `first_hour` on.

    `blocks` are distinct, in any order; hours count from the Unix epoch. Holds that have expired at `at` are
    free, whether or not the sweep has seen them. Three queries, whatever is booked.
    """
    dirty = _dirty(first_hour=first_hour, hours=hours, at=at)
    masks = stored(blocks=blocks, first_hour=first_hour, hours=hours)
    correct(masks=masks, blocks=blocks, first_hour=first_hour, dirty=dirty, at=at)
    return masks


def on_grid(*, blocks: Blocks, span: Window, step_seconds: int, at: dt.datetime) -> Masks:
    """Return which slots are taken, per block (row) and step of the grid (column); `span` lies on the grid.

    A grid of hours reads the index. A finer one, for demonstrations, reads the allocations.
    """
    first, end = to_seconds(span.starts_at), to_seconds(span.ends_at)
    if step_seconds == HOUR_SECONDS:
        hours = (end - first) // HOUR_SECONDS
        return read(blocks=blocks, first_hour=first // HOUR_SECONDS, hours=hours, at=at)
    masks: Masks = np.zeros((len(blocks), (end - first) // step_seconds), dtype=np.uint16)
    taken = taken_between(blocks=blocks, window=span, at=at)
    paint(masks=masks, blocks=blocks, taken=taken, first=first, step=step_seconds)
    return masks


def during(*, blocks: Blocks, window: Window, at: dt.datetime) -> Masks:
    """Return per block which slots are taken at any time of one window, on the grid or not.

    Its whole hours are read from the index, what is left at its ends from the allocations.
    """
    starts, ends = to_seconds(window.starts_at), to_seconds(window.ends_at)
    first_hour, end_hour = -(-starts // HOUR_SECONDS), ends // HOUR_SECONDS
    masks: Masks = np.zeros(len(blocks), dtype=np.uint16)
    if first_hour >= end_hour:
        edges = [(starts, ends)]
    else:
        hours = end_hour - first_hour
        whole = read(blocks=blocks, first_hour=first_hour, hours=hours, at=at)
        masks |= np.bitwise_or.reduce(whole, axis=1)
        edges = [(starts, first_hour * HOUR_SECONDS), (end_hour * HOUR_SECONDS, ends)]
    for lower, upper in edges:
        if lower < upper:
            edge = Window(to_instant(lower), to_instant(upper))
            column = masks[:, np.newaxis]
            taken = taken_between(blocks=blocks, window=edge, at=at)
            paint(masks=column, blocks=blocks, taken=taken, first=lower, step=upper - lower)
    return masks


def paint(*, masks: Masks, blocks: Blocks, taken: Iterable[Taken], first: int, step: int) -> None:
    """Set the bits of what is taken; column i is `[first + i × step, first + (i + 1) × step)`, seconds."""
    row_of = {block: row for row, block in enumerate(blocks.tolist())}
    columns = masks.shape[1]
    for place in taken:
        row = row_of.get(place.block)
        lower = max(0, (place.starts - first) // step)
        upper = min(columns, -(-(place.ends - first) // step))
        if row is not None and lower < upper:
            masks[row, lower:upper] |= np.uint16(place.mask)


def taken_between(*, blocks: Blocks, window: Window, at: dt.datetime) -> list[Taken]:
    """Return what of some nodes is taken in a window, from the allocations; expired holds are free."""
    areas = [
        Taken(
            slot_lower=lower * SLOTS_PER_NODE,
            slot_upper=upper * SLOTS_PER_NODE,
            starts=to_seconds(window.starts_at),
            ends=to_seconds(window.ends_at),
        )
        for lower, upper in runs(np.sort(blocks))
    ]
    return allocated(areas=areas, at=at)


def _dirty(*, first_hour: int, hours: int, at: dt.datetime) -> list[Taken]:
    """Return where the weeks must not be believed: marks, and holds that have expired."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT lower(m.slots), upper(m.slots), lower(m.period), upper(m.period)
              FROM scheduler_calendarmark m WHERE m.period && tstzrange(%(from)s, %(to)s)
             UNION ALL
            SELECT lower(a.slots), upper(a.slots), lower(a.occupied), upper(a.occupied)
              FROM scheduler_quote q JOIN scheduler_allocation a ON a.quote_id = q.id AND a.live
             WHERE q.status = 'open' AND q.expires_at <= %(at)s AND a.occupied && tstzrange(%(from)s, %(to)s)
            """,
            {
                "at": at,
                "from": to_instant(first_hour * HOUR_SECONDS),
                "to": to_instant((first_hour + hours) * HOUR_SECONDS),
            },
        )
        return [as_taken(row) for row in cursor.fetchall()]


def as_taken(row: tuple[int, int, dt.datetime, dt.datetime]) -> Taken:
    lower, upper, starts_at, ends_at = row
    return Taken(
        slot_lower=lower,
        slot_upper=upper,
        starts=to_seconds(starts_at),
        ends=-(-((ends_at - EPOCH) // dt.timedelta(microseconds=1)) // 1_000_000),
    )


def stored(*, blocks: Blocks, first_hour: int, hours: int) -> Masks:
    """Return what the stored weeks say, per block and hour."""
    first_week = first_hour // WEEK_HOURS
    last_week = (first_hour + hours - 1) // WEEK_HOURS
    weeks = last_week + 1 - first_week
    masks: Masks = np.zeros((len(blocks), weeks, WEEK_HOURS), dtype=np.uint16)
    order = np.argsort(blocks)
    rising = blocks[order]
    parts = runs(rising)
    connection.ensure_connection()
    # Past Django's cursor, which cannot ask for PostgreSQL's binary form: as text a byte is two characters.
    with psycopg.Cursor(connection.connection) as cursor:
        cursor.execute(
            """
            SELECT int4send(w.week) || int4send(w.block) || w.busy
              FROM unnest(%(lower)s::int[], %(upper)s::int[]) AS part (lower, upper)
              JOIN scheduler_calendarweek w
                ON w.block >= part.lower AND w.block < part.upper
               AND w.week BETWEEN %(first)s AND %(last)s
            """,
            {
                "lower": [lower for lower, _ in parts],
                "upper": [upper for _, upper in parts],
                "first": first_week,
                "last": last_week,
            },
            binary=True,
        )
        packed = b"".join([row for (row,) in cursor.fetchall()])
    found = np.frombuffer(packed, dtype=_ROW)
    rows = order[np.searchsorted(rising, found["block"])]
    masks[rows, found["week"] - first_week] = found["busy"]
    skipped = first_hour - first_week * WEEK_HOURS
    flat: Masks = masks.reshape(len(blocks), -1)
    return np.ascontiguousarray(flat[:, skipped : skipped + hours])


def correct(
    *,
    masks: Masks,
    blocks: Blocks,
    first_hour: int,
    dirty: Sequence[Taken],
    at: dt.datetime | None,
) -> None:
    """Replace what the weeks say of some areas by what the allocations say."""
    if not dirty:
        return
    row_of = {block: row for row, block in enumerate(blocks.tolist())}
    end_hour = first_hour + masks.shape[1]
    areas = set()
    for area in dirty:
        lower, upper = max(area.hours[0], first_hour), min(area.hours[1], end_hour)
        if area.block in row_of and lower < upper:
            columns = slice(lower - first_hour, upper - first_hour)
            masks[row_of[area.block], columns] &= np.uint16(0xFFFF ^ area.mask)
            areas.add(replace(area, starts=lower * HOUR_SECONDS, ends=upper * HOUR_SECONDS))
    paint(
        masks=masks,
        blocks=blocks,
        taken=allocated(areas=list(areas), at=at),
        first=first_hour * HOUR_SECONDS,
        step=HOUR_SECONDS,
    )


def allocated(*, areas: Sequence[Taken], at: dt.datetime | None) -> list[Taken]:
    """Return what is occupied in some areas, with turn-rounds; at `None` with the holds that have expired.

    It goes down the index of the exclusion constraint once per area.
    """
    if not areas:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT DISTINCT a.id, lower(a.slots), upper(a.slots), lower(a.occupied), upper(a.occupied)
              FROM unnest(%(slots)s::int4range[], %(periods)s::tstzrange[]) AS area (slots, period)
              JOIN scheduler_allocation a
                ON a.slots && area.slots AND a.occupied && area.period
              LEFT JOIN scheduler_quote q ON q.id = a.quote_id
             WHERE NOT coalesce(q.status = 'open' AND q.expires_at <= %(at)s, false)
            """,
            {
                "slots": [Int4Range(area.slot_lower, area.slot_upper) for area in areas],
                "periods": [
                    TimestamptzRange(to_instant(area.starts), to_instant(area.ends))
                    for area in areas
                ],
                "at": at,
            },
        )
        return [as_taken(row[1:]) for row in cursor.fetchall()]
