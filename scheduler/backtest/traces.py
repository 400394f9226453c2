"""Demand from files: hourly counts of a real cluster, or whole requests."""

import csv
from pathlib import Path

import numpy as np

from scheduler.backtest.demand import (
    BASE_RATE,
    GPUS,
    VALUE_MEDIAN,
    Demand,
    Floats,
    candidates,
)
from scheduler.pricing.forecast import Requests

COUNTS_COLUMN = "jobs"
REQUEST_COLUMNS = ("arrival", "start_from", "start_to", "duration", "gpus", "value")
ROWS_MAX = 2_000_000  # what fits into memory together with the program of the bound


class TraceUnreadable(ValueError):
    """A file does not hold what a backtest can replay; the message says where."""


def read_counts(path: Path) -> Floats:
    """Read hourly counts of submitted requests from the column `jobs` of a CSV file, hour after hour.

    :raises TraceUnreadable: when the column is absent, empty or holds something else.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if COUNTS_COLUMN not in (reader.fieldnames or ()):
            raise TraceUnreadable(f"{path} has no column {COUNTS_COLUMN!r}")
        counts = [_number(row[COUNTS_COLUMN], path=path, line=reader.line_num) for row in reader]
    if not counts or min(counts) < 0 or not any(counts):
        raise TraceUnreadable(f"{path} holds no counts")
    return np.array(counts)


def read_requests(path: Path, *, capacity: int = GPUS) -> Demand:
    """Read requests from a CSV file with the columns arrival, start_from, start_to, duration, gpus, value.

    Times are hours from the beginning of the trace (arrival may have a fraction and be negative), value is
    per GPU-hour. Starts and durations are rounded to whole hours, outwards. Requests that arrived before
    hour 0 for a start before hour 0 are the history that the forecast is fitted on.

    :raises TraceUnreadable: when a column is absent, or a row makes no sense.
    """
    rows: list[tuple[float, ...]] = []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if missing := set(REQUEST_COLUMNS) - set(reader.fieldnames or ()):
            raise TraceUnreadable(f"{path} has no column {sorted(missing)[0]!r}")
        for row in reader:
            line = reader.line_num
            values = tuple(_number(row[name], path=path, line=line) for name in REQUEST_COLUMNS)
            arrival, start_from, start_to, duration, gpus, value = values
            if not arrival <= start_from <= start_to or duration <= 0 or gpus < 1 or value <= 0:
                raise TraceUnreadable(f"{path}, line {line}: the request makes no sense")
            if gpus > capacity:
                raise TraceUnreadable(f"{path}, line {line}: more GPUs than the pool has")
            rows.append(values)
            if len(rows) > ROWS_MAX:
                raise TraceUnreadable(f"{path} has more than {ROWS_MAX} requests")
    table = np.array(rows).reshape(-1, len(REQUEST_COLUMNS))
    is_past = table[:, 1] < 0
    past, ahead = table[is_past], table[~is_past]
    if not len(ahead):
        raise TraceUnreadable(f"{path} has no request that starts at hour 0 or later")
    ahead = ahead[np.argsort(np.maximum(ahead[:, 0], 0), kind="stable")]
    arrival, earliest, latest, duration, gpus, value = ahead.T
    hours = np.ceil(duration).astype(np.int64)
    first_start = np.floor(earliest).astype(np.int64)
    starts, first = candidates(
        earliest=first_start, latest=np.maximum(np.floor(latest).astype(np.int64), first_start)
    )
    owner = np.repeat(np.arange(len(ahead)), np.diff(first, append=len(starts)))
    level = float(np.median(value)) / VALUE_MEDIAN
    return Demand(
        name=path.name,
        asked_hours=arrival,
        comes_hours=np.maximum(arrival, 0),
        gpus=gpus.astype(np.int64),
        hours=hours,
        value=value,
        scale=np.full(len(ahead), level),
        starts=starts,
        owner=owner,
        first=first,
        history=Requests(
            asked_hours=np.floor(past[:, 0]).astype(np.int64),
            start_hours=np.floor(past[:, 1]).astype(np.int64),
            duration_hours=np.ceil(past[:, 3]).astype(np.int64),
            gpus=past[:, 4].astype(np.int64),
        ),
        capacity=capacity,
        horizon_hours=int((starts + hours[owner]).max()),
        base_rate=BASE_RATE * level,
    )


def _number(text: str | None, *, path: Path, line: int) -> float:
    try:
        number = float(text or "")
    except ValueError:
        raise TraceUnreadable(f"{path}, line {line}: {text!r} is not a number") from None
    if not np.isfinite(number):
        raise TraceUnreadable(f"{path}, line {line}: {text!r} is not a number")
    return number
