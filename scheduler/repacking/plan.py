"""Some nodes of a supply as a layout of `scheduler.packing`, and back: from counts of GPUs to slots."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from agents.models import SLOTS_PER_NODE
from agents.supply import Masks
from scheduler import occupancy
from scheduler.packing.layout import Layout, Piece, Placement, Request
from scheduler.placement.demand import Demand
from scheduler.placement.supply import Supply
from scheduler.repacking.promises import Promise, hours_of

NEWCOMER = ""  # the request that has no promise yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Rows of a supply over some hours: the layout of what may move, and what else is taken, slot by slot.

    `slots` are those that each promise has now; the layout may be ahead of them.
    """

    supply: Supply
    rows: tuple[int, ...]
    first_hour: int
    layout: Layout
    offered: Masks
    fixed: Masks
    promises: dict[str, Promise]
    slots: dict[str, set[int]]

    def request(self, request_id: str, *, demand: Demand) -> Request:
        """Return a demand, with the turn-round after it, in the hours of the layout."""
        start, end = _hours(demand, supply=self.supply)
        return Request(
            id=request_id,
            gpus=demand.gpus,
            start_hour=start - self.first_hour,
            end_hour=end - self.first_hour,
            spread=demand.spread,
        )


def build(
    *,
    supply: Supply,
    rows: Sequence[int],
    promises: Sequence[Promise],
    demand: Demand | None,
    at: dt.datetime,
) -> Board:
    """Lay out some nodes, island by island, over the hours of some promises and of a demand."""
    windows = [_hours(promise.demand, supply=supply) for promise in promises]
    if demand is not None:
        windows.append(_hours(demand, supply=supply))
    first_hour, end_hour = min(w[0] for w in windows), max(w[1] for w in windows)
    by_block = sorted(rows)
    blocks = np.array([int(supply.blocks[row]) for row in by_block], dtype=np.int32)
    read = occupancy.read(blocks=blocks, first_hour=first_hour, hours=end_hour - first_hour, at=at)
    ordered = sorted(rows, key=lambda row: (supply.island_of[row], supply.slot_base(row)))
    place_of = {row: place for place, row in enumerate(by_block)}
    offered = supply.offered_at_all[ordered]
    fixed = read[[place_of[row] for row in ordered]] & offered[:, None]
    at_base = {supply.slot_base(row): place for place, row in enumerate(ordered)}
    pieces: dict[str, dict[int, int]] = {}
    for promise in promises:
        start, end = (hour - first_hour for hour in _hours(promise.demand, supply=supply))
        counts: dict[int, int] = {}
        for row, mask in _masks(promise.slots, at_base=at_base).items():
            fixed[row, start:end] &= ~np.uint16(mask)
            counts[row] = mask.bit_count()
        pieces[promise.id] = counts
    sizes = np.bitwise_count(offered).astype(np.int32)
    gpus_per_node = int(sizes.max())
    islands = supply.island_of[ordered]
    board = Board(
        supply=supply,
        rows=tuple(ordered),
        first_hour=first_hour,
        layout=Layout(
            islands=np.unique_counts(islands).counts.tolist(),
            gpus_per_node=gpus_per_node,
            hours=end_hour - first_hour,
            fixed=np.bitwise_count(fixed).astype(np.int32) + (gpus_per_node - sizes)[:, None],
        ),
        offered=offered,
        fixed=fixed,
        promises={promise.id: promise for promise in promises},
        slots={promise.id: promise.slots for promise in promises},
    )
    for promise in promises:
        board.layout.put(
            Placement(
                request=board.request(promise.id, demand=promise.demand),
                pieces=tuple(Piece(row, gpus) for row, gpus in pieces[promise.id].items()),
            )
        )
    return board


def _hours(demand: Demand, *, supply: Supply) -> tuple[int, int]:
    """Return the hours of a demand with the longest turn-round that may follow it, half-open."""
    return hours_of(demand.window.followed_by(seconds=supply.turnaround_seconds_max))


def slots_of_changes(board: Board) -> dict[str, set[int]] | None:
    """Return the slots of all that is not where it was, or `None` when some node has too few that are free.

    Who stays keeps its slots where that works; else all that may move on the node get slots anew, in the
    order of their starts, which works whenever nothing fixed starts later.
    """
    moved = {
        placement.request.id
        for placement in board.layout.placements.values()
        if _counts(board, placement.request.id) != _pieces(placement)
    }
    for changed in (moved, set(board.layout.placements)):
        found = _assign(board, changed=changed)
        if found is not None:
            return {
                request_id: slots
                for request_id, slots in found.items()
                if request_id == NEWCOMER or slots != board.slots[request_id]
            }
    return None


def slots_of_one(board: Board, *, request_id: str) -> set[int] | None:
    """Return the slots of one promise that has moved, or `None` when its node has too few that are free."""
    others = {
        other
        for piece in board.layout.placements[request_id].pieces
        for other in board.layout.on_row[piece.row]
    }
    found = _assign(board, changed={request_id}, among=others | {request_id})
    return found[request_id] if found is not None else None


def _assign(
    board: Board, *, changed: set[str], among: set[str] | None = None
) -> dict[str, set[int]] | None:
    """Return slots for those that changed, or `None`; `among` are those who may be in their way."""
    taken = board.fixed.copy()
    at_base = {board.supply.slot_base(row): place for place, row in enumerate(board.rows)}
    placements = board.layout.placements
    for request_id in (among or placements.keys()) - changed:
        request = placements[request_id].request
        for row, mask in _masks(board.slots[request_id], at_base=at_base).items():
            taken[row, request.start_hour : request.end_hour] |= np.uint16(mask)
    found: dict[str, set[int]] = {}
    for placement in sorted(
        (placements[request_id] for request_id in changed),
        key=lambda p: (p.request.start_hour, p.request.id),
    ):
        request = placement.request
        slots: set[int] = set()
        for piece in placement.pieces:
            hours = taken[piece.row, request.start_hour : request.end_hour]
            free = int(board.offered[piece.row]) & ~int(np.bitwise_or.reduce(hours))
            if free.bit_count() < piece.gpus:
                return None
            bits = [bit for bit in range(SLOTS_PER_NODE) if free >> bit & 1][: piece.gpus]
            hours |= np.uint16(sum(1 << bit for bit in bits))
            base = board.supply.slot_base(board.rows[piece.row])
            slots |= {base + bit for bit in bits}
        found[request.id] = slots
    return found


def _counts(board: Board, request_id: str) -> dict[int, int]:
    """Return how many GPUs a promise has on each row; none for one that has no place yet."""
    if request_id == NEWCOMER:
        return {}
    at_base = {board.supply.slot_base(row): place for place, row in enumerate(board.rows)}
    masks = _masks(board.slots[request_id], at_base=at_base)
    return {row: mask.bit_count() for row, mask in masks.items()}


def _pieces(placement: Placement) -> dict[int, int]:
    return {piece.row: piece.gpus for piece in placement.pieces}


def _masks(slots: Iterable[int], *, at_base: dict[int, int]) -> dict[int, int]:
    masks: dict[int, int] = {}
    for slot in slots:
        base = slot // SLOTS_PER_NODE * SLOTS_PER_NODE
        masks[at_base[base]] = masks.get(at_base[base], 0) | 1 << (slot - base)
    return masks
