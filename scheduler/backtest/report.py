"""Turn the rows of a backtest into tables: every row as CSV, means and bars as Markdown, room by room."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from scheduler.backtest.runs import COLUMNS, OURS, POLICIES, SPOILED, Row

PLACEMENT_LEAST = 0.95  # of what an ideal divisible pool sells: the bar of placement at every load
DIGITS = 6  # in the CSV: more would show how the machine rounds, not what was measured
SHOWN = (
    "revenue",
    "welfare",
    "use",
    "fill_requests",
    "fill_gpu_hours",
    "no_room",
    "price_p5",
    "price_p50",
    "price_p95",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure, what it must reach, and whether it does. `measured` is `None` where nothing was run."""

    figure: str
    measured: float | None
    must: float
    is_least: bool = True

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not run"
        reached = self.measured >= self.must if self.is_least else self.measured <= self.must
        return "reached" if reached else "MISSED"


def sort_key(row: Row) -> tuple[str, str, float, int, int]:
    """Order rows by room, set, load, seed, and policy, ours first."""
    known = (*POLICIES, *SPOILED)
    return (row.room, row.demand_set, row.load, row.seed, known.index(row.policy))


def write_csv(rows: Sequence[Row], *, path: Path) -> None:
    """Write every row; the same rows give the same bytes."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in sorted(rows, key=sort_key):
            writer.writerow(
                f"{value:.{DIGITS}f}" if isinstance(value, float) else value
                for value in astuple(row)
            )


def markdown(rows: Sequence[Row]) -> str:
    """Return the means per room, set and policy, per load for ours, the bars, and what placement costs."""
    lines = [
        "Revenue and welfare are ratios to their bounds; prices are multiples of the base rate. Values,",
        "leads and flexibility are assumed laws; only arrivals, sizes and durations follow a real cluster.",
        "The bounds know no nodes: they divide the pool as finely as they like, as `counted` rows do. The",
        "bars were set so. `packed` rows went through the market's placement, and lose to the same bounds",
        "what whole nodes and fabrics cost; their rivals stood in the same room.",
    ]
    for room in sorted({row.room for row in rows}):
        lines += _of_room([row for row in rows if row.room == room], room=room)
    lines += ["", "## What placement costs", "", "| Packed ÷ counted | Measured | Must | |"]
    lines += ["|---|---|---|---|", *(_bar_line(bar) for bar in placement_bars(rows))]
    return "\n".join(lines) + "\n"


def _of_room(rows: Sequence[Row], *, room: str) -> list[str]:
    names = [name for name in (*POLICIES, *SPOILED) if any(row.policy == name for row in rows)]
    sets = sorted({row.demand_set for row in rows})
    lines = ["", f"## Means over seeds and loads, {room}", "", *_head("set", "policy")]
    lines += [
        _line([r for r in rows if (r.demand_set, r.policy) == (name, policy)], name, policy)
        for name in sets
        for policy in names
    ]
    lines += ["", f"## Mean over sets, {room}", "", *_head("sets", "policy")]
    lines += [_line([r for r in rows if r.policy == policy], "all", policy) for policy in names]
    lines += ["", f"## Ours by load, {room}", "", *_head("set", "load")]
    for name in sets:
        for load in sorted({row.load for row in rows}):
            cell = [r for r in rows if (r.demand_set, r.load, r.policy) == (name, load, OURS)]
            if cell:
                lines.append(_line(cell, name, str(load)))
    lines += ["", f"## Bars, {room}", "", "| Figure | Measured | Must | |", "|---|---|---|---|"]
    return lines + [_bar_line(bar) for bar in bars(rows)]


def _bar_line(bar: Bar) -> str:
    measured = "" if bar.measured is None else f"{bar.measured:.4f}"
    sign = "≥" if bar.is_least else "≤"
    return f"| {bar.figure} | {measured} | {sign} {bar.must:g} | {bar.verdict} |"


def placement_bars(rows: Sequence[Row]) -> list[Bar]:
    """Return which share of what is sold and earned by counts our method keeps on nodes and fabrics.

    The share of GPU-hours is held to the bar of placement itself; revenue has none of its own.
    """
    counted = {_demand_of(r): r for r in rows if (r.policy, r.room) == (OURS, "counted")}
    pairs = [
        (row, counted[_demand_of(row)])
        for row in rows
        if (row.policy, row.room) == (OURS, "packed") and _demand_of(row) in counted
    ]
    sold = [packed.use / by_counts.use for packed, by_counts in pairs]
    earned = [packed.revenue / by_counts.revenue for packed, by_counts in pairs]
    return [
        Bar(figure="GPU-hours sold", measured=_mean_of(sold), must=PLACEMENT_LEAST),
        Bar(figure="revenue", measured=_mean_of(earned), must=PLACEMENT_LEAST),
    ]


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Return what the method has to reach, with what these rows of one room say of it."""
    ours = [row for row in rows if row.policy == OURS]
    if not ours:
        return []
    found = [
        Bar(figure="revenue, mean over sets", measured=_mean(ours, "revenue"), must=0.93),
        Bar(figure="revenue, worst set", measured=_worst(ours, _by_set), must=0.91),
        Bar(figure="revenue, worst set and load", measured=_worst(ours, _by_cell), must=0.88),
        Bar(figure="welfare, mean over sets", measured=_mean(ours, "welfare"), must=0.87),
        Bar(
            figure="refused for lack of room",
            measured=_mean(ours, "no_room"),
            must=0.02,
            is_least=False,
        ),
        Bar(
            figure="limits broken (floor, cap, pace, ratchet)",
            measured=float(sum(row.limits_broken for row in ours)),
            must=0,
            is_least=False,
        ),
    ]
    for load, use in ((1.2, 0.72), (2.0, 0.82)):
        found.append(_use_bar(ours, load=load, must=use, column="use", label="firm use"))
    for load, use in ((0.6, 0.58), (1.2, 0.86), (2.0, 0.93)):
        found.append(
            _use_bar(
                ours, load=load, must=use, column="use_with_spot", label="use with reclaimable"
            )
        )
    found += _against(rows)
    for name in SPOILED:
        pairs = _pairs(rows, other=name)
        loss = _mean_of([one.revenue - two.revenue for one, two in pairs])
        found.append(
            Bar(
                figure=f"revenue lost with {name.removeprefix('clearing_')} forecast",
                measured=loss,
                must=0.01,
                is_least=False,
            )
        )
    return found


def _against(rows: Sequence[Row]) -> list[Bar]:
    by_load, single, monopoly, linear = (
        _pairs(rows, other=name)
        for name in ("static_by_load", "static_single", "static_monopoly", "linear_surge")
    )
    gains = {
        name: _gain([p for p in by_load if p[0].demand_set == name])
        for name in {p[0].demand_set for p in by_load}
    }
    return [
        Bar(
            figure="revenue over static by load, mean over sets", measured=_gain(by_load), must=0.03
        ),
        Bar(
            figure="revenue over static by load, worst set",
            measured=min((gain for gain in gains.values() if gain is not None), default=None),
            must=0.0,
        ),
        Bar(
            figure="revenue over static by load, worst load and seed",
            measured=min((one.revenue / two.revenue - 1 for one, two in by_load), default=None),
            must=-0.06,
        ),
        Bar(figure="revenue over best single static", measured=_gain(single), must=0.045),
        Bar(figure="revenue over monopoly static", measured=_gain(monopoly), must=0.12),
        Bar(figure="revenue over linear surge", measured=_gain(linear), must=0.01),
        Bar(figure="use above linear surge", measured=_more(linear, "use"), must=0.035),
        Bar(figure="welfare above linear surge", measured=_more(linear, "welfare"), must=0.045),
    ]


def _demand_of(row: Row) -> tuple[str, float, int]:
    return (row.demand_set, row.load, row.seed)


def _mean_of(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _pairs(rows: Sequence[Row], *, other: str) -> list[tuple[Row, Row]]:
    theirs = {_demand_of(row): row for row in rows if row.policy == other}
    return [
        (row, theirs[key])
        for row in rows
        if row.policy == OURS and (key := _demand_of(row)) in theirs
    ]


def _gain(pairs: Sequence[tuple[Row, Row]]) -> float | None:
    """Return the mean of the relative differences in revenue."""
    return _mean_of([one.revenue / two.revenue - 1 for one, two in pairs])


def _more(pairs: Sequence[tuple[Row, Row]], column: str) -> float | None:
    return _mean_of([getattr(one, column) - getattr(two, column) for one, two in pairs])


def _use_bar(rows: Sequence[Row], *, load: float, must: float, column: str, label: str) -> Bar:
    cell = [row for row in rows if row.load == load and getattr(row, column) is not None]
    return Bar(
        figure=f"{label} at load {load}", measured=_mean(cell, column) if cell else None, must=must
    )


def _by_set(row: Row) -> tuple[object, ...]:
    return (row.demand_set,)


def _by_cell(row: Row) -> tuple[object, ...]:
    return (row.demand_set, row.load)


def _worst(rows: Sequence[Row], group: Callable[[Row], tuple[object, ...]]) -> float:
    groups = {group(row) for row in rows}
    return min(_mean([r for r in rows if group(r) == each], "revenue") for each in groups)


def _mean(rows: Iterable[Row], column: str) -> float:
    return float(np.mean([getattr(row, column) for row in rows]))


def _head(*first: str) -> list[str]:
    columns = [*first, *SHOWN]
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]


def _line(rows: Sequence[Row], *first: str) -> str:
    cells = list(first)
    for column in SHOWN:
        known = [value for row in rows if (value := getattr(row, column)) is not None]
        cells.append(f"{np.mean(known):.3f}" if known else "")
    return "| " + " | ".join(cells) + " |"
