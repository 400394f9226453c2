"""Choose rows for a request: small ones share started nodes, blocks keep to one island.

A request smaller than a node goes where it adds the fewest node-hours, among those where the least room
is left over; a node that is idle all the time is started only where nothing else serves, on the fullest
island that has one. Blocks of whole nodes go to the tightest island that fits. So large islands and whole
nodes stay whole for those who need them.
"""

import numpy as np

from scheduler.packing.layout import Layout, Piece, Request, Rows
from scheduler.states import Spread

GAP_HOURS_MAX = 168  # a node that was idle for a week before a window is as good as any other


def choose(layout: Layout, request: Request) -> tuple[Piece, ...] | None:
    """Return rows that are free for a request without moving anybody, or `None`."""
    nodes, rest = divmod(request.gpus, layout.gpus_per_node)
    if nodes == 0:
        row = _row_for(layout, request=request, gpus=rest, without=None)
        if row is not None:
            return (Piece(row, rest),)
        return _scattered(layout, request=request) if request.spread is Spread.ANY else None
    if request.spread is Spread.SINGLE_NODE and nodes + (rest > 0) > 1:
        return None
    for island in islands_by_tightness(layout, request=request, nodes=nodes + (rest > 0)):
        pieces = _block(layout, request=request, nodes=nodes, rest=rest, island=island)
        if pieces is not None:
            return pieces
    return _scattered(layout, request=request) if request.spread is Spread.ANY else None


def islands_by_tightness(layout: Layout, *, request: Request, nodes: int) -> list[int]:
    """Return the islands that have so many idle nodes in every hour, the tightest first."""
    hours = slice(request.start_hour, request.end_hour)
    idle = layout.island_sizes - layout.busy_nodes[:, hours].max(axis=1)
    order = np.argsort(idle, kind="stable")
    return [int(island) for island in order if idle[island] >= nodes]


def best_row(
    *, room: Rows, idle_hours: Rows, left_over: Rows, idle_nodes: Rows, hours: int, gpus: int
) -> int | None:
    """Return the best row for a share of a node, or `None`.

    Per row: `room` is how many of its GPUs are free in every hour of the window, `idle_hours` in how many
    of the window's `hours` nothing is on it, `left_over` how many GPU-hours of it are free; `idle_nodes` how
    many nodes of its island are idle throughout.
    """
    rows: Rows = np.flatnonzero(room >= gpus)
    if not len(rows):
        return None
    rows = rows[idle_hours[rows] == idle_hours[rows].min()]
    rows = rows[left_over[rows] == left_over[rows].min()]
    return int(rows[np.argmin(idle_nodes[rows])]) if idle_hours[rows[0]] == hours else int(rows[0])


def _row_for(
    layout: Layout, *, request: Request, gpus: int, without: set[int] | None
) -> int | None:
    hours = slice(request.start_hour, request.end_hour)
    used = layout.used[:, hours]
    room = layout.gpus_per_node - used.max(axis=1)
    if without:
        room[list(without)] = 0
    idle_nodes = layout.island_sizes - layout.busy_nodes[:, hours].max(axis=1)
    return best_row(
        room=room,
        idle_hours=(used == 0).sum(axis=1),
        left_over=-used.sum(axis=1),
        idle_nodes=idle_nodes[layout.island_of],
        hours=used.shape[1],
        gpus=gpus,
    )


def _idle_rows(layout: Layout, *, request: Request, island: int) -> Rows:
    """Return the rows of an island that are idle over the window, those with the smallest gap first.

    A window that leaves no gap before it leaves the others whole.
    """
    rows = layout.rows_of(island)
    used = layout.used[rows.start : rows.stop]
    idle: Rows = np.flatnonzero(used[:, request.start_hour : request.end_hour].max(axis=1) == 0)
    if request.start_hour == 0:
        return idle + rows.start
    since = max(0, request.start_hour - GAP_HOURS_MAX)
    before = used[idle, since : request.start_hour][:, ::-1] > 0
    gaps = np.where(before.any(axis=1), before.argmax(axis=1), GAP_HOURS_MAX)
    nearest: Rows = idle[np.argsort(gaps, kind="stable")] + rows.start
    return nearest


def _block(
    layout: Layout, *, request: Request, nodes: int, rest: int, island: int
) -> tuple[Piece, ...] | None:
    """Return whole nodes of one island and a share of another, or `None` when they are not free."""
    idle = _idle_rows(layout, request=request, island=island)
    if len(idle) < nodes:
        return None
    pieces = [Piece(int(row), layout.gpus_per_node) for row in idle[:nodes]]
    if rest:
        rows = layout.rows_of(island)
        others = set(range(len(layout.used))) - set(rows) | {piece.row for piece in pieces}
        row = _row_for(layout, request=request, gpus=rest, without=others)
        if row is None:
            return None
        pieces.append(Piece(row, rest))
    return tuple(pieces)


def _scattered(layout: Layout, *, request: Request) -> tuple[Piece, ...] | None:
    """Return the largest shares of all rows, or `None` when there are too few GPUs."""
    used = layout.used[:, request.start_hour : request.end_hour].max(axis=1)
    room = layout.gpus_per_node - used
    if int(room.sum()) < request.gpus:
        return None
    pieces: list[Piece] = []
    missing = request.gpus
    for row in np.argsort(-room, kind="stable"):
        count = min(missing, int(room[row]))
        if count:
            pieces.append(Piece(int(row), count))
            missing -= count
    return tuple(pieces)
