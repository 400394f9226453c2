"""Give the busy runs of an island other nodes, so that a window finds nodes that are idle throughout.

A busy run of a node is an interval. Intervals that never exceed the number of nodes in any hour can always
be given nodes of their own, by handing them out in the order of their starts: an interval graph needs no
more colours than its largest clique has members. What has started keeps its node, and starts before all
that has not, so the argument holds for the rest of time.
"""

from dataclasses import dataclass

from scheduler.packing.layout import Layout, Piece, Placement

NEW = -1  # the row of a run that has none yet


@dataclass(slots=True, kw_only=True)
class _Run:
    row: int
    start_hour: int
    end_hour: int
    members: list[str]
    is_fixed: bool


def recolour(
    layout: Layout, *, island: int, start_hour: int, end_hour: int, nodes: int, now_hour: int
) -> list[int] | None:
    """Move what has not started within its island until `nodes` rows are idle in a window; return these.

    Nothing leaves its island, its hours or its company on a node. `None`, and nothing moves, when some
    hour has too few idle nodes.
    """
    busy = layout.busy_nodes[island, start_hour:end_hour]
    if int(busy.max()) + nodes > int(layout.island_sizes[island]):
        return None
    runs = _runs(layout, island=island, now_hour=now_hour)
    runs += [
        _Run(row=NEW, start_hour=start_hour, end_hour=end_hour, members=[], is_fixed=False)
        for _ in range(nodes)
    ]
    free_from = dict.fromkeys(layout.rows_of(island), 0)
    target: list[tuple[_Run, int]] = []
    for run in sorted(runs, key=lambda r: (not r.is_fixed, r.start_hour)):
        if run.is_fixed or (run.row != NEW and free_from[run.row] <= run.start_hour):
            row = run.row
        else:
            # The node that was left last: the others keep their longer gaps.
            candidates = [r for r, hour in free_from.items() if hour <= run.start_hour]
            row = max(candidates, key=lambda r: (free_from[r], -r))
        free_from[row] = run.end_hour
        target.append((run, row))
    _move(layout, target=target)
    return [row for run, row in target if run.row == NEW]


def _runs(layout: Layout, *, island: int, now_hour: int) -> list[_Run]:
    """Cut what is on each row where nobody stays from one hour to the next."""
    runs: list[_Run] = []
    for row in layout.rows_of(island):
        members = sorted(
            (layout.placements[i].request for i in layout.on_row[row]),
            key=lambda request: (request.start_hour, request.id),
        )
        current: _Run | None = None
        for request in members:
            is_fixed = request.start_hour <= now_hour
            if current is None or request.start_hour >= current.end_hour:
                current = _Run(
                    row=row,
                    start_hour=request.start_hour,
                    end_hour=request.end_hour,
                    members=[request.id],
                    is_fixed=is_fixed,
                )
                runs.append(current)
            else:
                current.members.append(request.id)
                current.end_hour = max(current.end_hour, request.end_hour)
                current.is_fixed |= is_fixed
    return runs


def _move(layout: Layout, *, target: list[tuple[_Run, int]]) -> None:
    """Carry out a new colouring: first all leave, then all come."""
    new_rows: dict[str, dict[int, int]] = {}
    for run, row in target:
        if run.row not in (NEW, row):
            for member in run.members:
                new_rows.setdefault(member, {})[run.row] = row
    taken = [layout.take(member) for member in new_rows]
    for placement in taken:
        rows = new_rows[placement.request.id]
        layout.put(
            Placement(
                request=placement.request,
                pieces=tuple(
                    Piece(rows.get(piece.row, piece.row), piece.gpus) for piece in placement.pieces
                ),
            )
        )
