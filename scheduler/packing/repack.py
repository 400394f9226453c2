"""Let a request in by placing anew those that have not started: all find room again, or none moves."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from scheduler.packing.choice import choose, islands_by_tightness
from scheduler.packing.colouring import recolour
from scheduler.packing.layout import Layout, Piece, Placement, Request
from scheduler.states import Spread

ORDERS: tuple[Callable[[Request], tuple[int, ...]], ...] = (
    lambda r: (-r.gpus, r.start_hour, -r.end_hour),
    lambda r: (-r.gpus, r.start_hour - r.end_hour, r.start_hour),
    lambda r: (r.gpus < 8, r.start_hour, -r.gpus),
    lambda r: (-r.gpu_hours, r.start_hour),
)


def place(layout: Layout, request: Request, *, now_hour: int) -> Placement | None:
    """Put a request where it is free, or where exchanging idle nodes of an island makes it so."""
    pieces = choose(layout, request) or _exchanged(layout, request, now_hour=now_hour)
    if pieces is None:
        return None
    placement = Placement(request=request, pieces=pieces)
    layout.put(placement)
    return placement


def repack(
    layout: Layout,
    request: Request,
    *,
    now_hour: int,
    tries: int,
    rng: np.random.Generator,
    is_late: Callable[[], bool] = lambda: False,
) -> Placement | None:
    """Let a request in by moving those that overlap its window and start after `now_hour`.

    Each try takes them all out and puts them back with the newcomer in another order: four sorted ones,
    then random ones. The first try that places everybody stands; otherwise nothing has changed. Nothing
    is tried when the GPUs of some hour do not suffice, nor once `is_late`.
    """
    if not layout.has_count_for(request):
        return None
    movable = [
        placement.request
        for placement in layout.placements.values()
        if placement.request.start_hour > now_hour
        and placement.request.start_hour < request.end_hour
        and request.start_hour < placement.request.end_hour
    ]
    if not movable:
        return None
    before = [layout.placements[r.id] for r in movable]
    for order in _orders([*movable, request], tries=tries, rng=rng):
        if is_late():
            return None
        if _try(layout, order=order, before=before, now_hour=now_hour):
            return layout.placements[request.id]
    return None


def _orders(
    requests: Sequence[Request], *, tries: int, rng: np.random.Generator
) -> Iterator[list[Request]]:
    for key in ORDERS[:tries]:
        yield sorted(requests, key=key)
    sizes = np.array([request.gpus for request in requests], dtype=np.float64)
    for _ in range(tries - len(ORDERS)):
        # Large ones first, as far as chance lets them: a shuffled order would strand them.
        blurred = sizes * rng.lognormal(0.0, 0.5, len(requests))
        yield [requests[i] for i in np.argsort(-blurred, kind="stable")]


def _try(
    layout: Layout, *, order: Sequence[Request], before: Sequence[Placement], now_hour: int
) -> bool:
    saved = layout.save()
    for placement in before:
        layout.take(placement.request.id)
    for request in order:
        if place(layout, request, now_hour=now_hour) is None:
            layout.restore(saved)
            return False
    return True


def _exchanged(layout: Layout, request: Request, *, now_hour: int) -> tuple[Piece, ...] | None:
    """Free whole nodes by recolouring an island, the tightest that can."""
    nodes, rest = divmod(request.gpus, layout.gpus_per_node)
    if layout.has_fixed or (request.spread is Spread.SINGLE_NODE and nodes + (rest > 0) > 1):
        return None  # what is no booking has no run that could be exchanged
    for island in islands_by_tightness(layout, request=request, nodes=nodes + (rest > 0)):
        rows = recolour(
            layout,
            island=island,
            start_hour=request.start_hour,
            end_hour=request.end_hour,
            nodes=nodes + (rest > 0),
            now_hour=now_hour,
        )
        if rows is not None:
            sizes = [layout.gpus_per_node] * nodes + ([rest] if rest else [])
            return tuple(Piece(row, gpus) for row, gpus in zip(rows, sizes, strict=True))
    return None
