"""Who is on which node when: the state that placement reads and changes.

Time is whole hours from an origin of the caller's; a node is a row with the same number of GPUs as every
other, an island is a range of rows. A booking has the same GPUs from its start to its end, but which GPU
of a node it is does not matter here: among bookings that never exceed a node's GPUs, each can be given
GPUs of its own in the order of their starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduler.states import Spread

Counts = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """GPUs for the hours `[start_hour, end_hour)`."""

    id: str
    gpus: int
    start_hour: int
    end_hour: int
    spread: Spread

    @property
    def gpu_hours(self) -> int:
        return self.gpus * (self.end_hour - self.start_hour)


@dataclass(frozen=True, slots=True)
class Piece:
    """So many GPUs of one row."""

    row: int
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a request is."""

    request: Request
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """The state of a layout at one moment."""

    used: Counts
    busy_nodes: Counts
    placements: dict[str, Placement]
    on_row: list[set[str]]


class Layout:
    """Bookings on rows. Every change keeps the sums by row and by island right.

    `fixed` are GPUs per row and hour that are no booking's of this layout, and never move.
    """

    def __init__(
        self, *, islands: Sequence[int], gpus_per_node: int, hours: int, fixed: Counts | None = None
    ) -> None:
        self.gpus_per_node = gpus_per_node
        self.island_sizes: Rows = np.array(islands, dtype=np.int64)
        self.island_of: Rows = np.repeat(np.arange(len(islands)), islands)
        self.first_row_of: Rows = np.concatenate(([0], np.cumsum(islands)))[:-1].astype(np.int64)
        self.has_fixed = fixed is not None
        self.used: Counts = np.zeros((len(self.island_of), hours), dtype=np.int32)
        if fixed is not None:
            self.used += fixed
        self.busy_nodes: Counts = np.zeros((len(islands), hours), dtype=np.int32)
        np.add.at(self.busy_nodes, self.island_of, self.used > 0)
        self.placements: dict[str, Placement] = {}
        self.on_row: list[set[str]] = [set() for _ in self.island_of]

    def rows_of(self, island: int) -> range:
        """Return the rows of an island."""
        first = int(self.first_row_of[island])
        return range(first, first + int(self.island_sizes[island]))

    def put(self, placement: Placement) -> None:
        """Add a booking; the caller has chosen rows that have room."""
        request = placement.request
        assert request.id not in self.placements, request.id
        self.placements[request.id] = placement
        hours = slice(request.start_hour, request.end_hour)
        for piece in placement.pieces:
            used = self.used[piece.row, hours]
            self.busy_nodes[self.island_of[piece.row], hours] += used == 0
            used += piece.gpus
            self.on_row[piece.row].add(request.id)

    def take(self, request_id: str) -> Placement:
        """Remove a booking and return it."""
        placement = self.placements.pop(request_id)
        request = placement.request
        hours = slice(request.start_hour, request.end_hour)
        for piece in placement.pieces:
            used = self.used[piece.row, hours]
            used -= piece.gpus
            self.busy_nodes[self.island_of[piece.row], hours] -= used == 0
            self.on_row[piece.row].discard(request.id)
        return placement

    def shorten(self, request_id: str, *, end_hour: int) -> None:
        """Let a booking end earlier than it would."""
        old = self.take(request_id)
        request = old.request
        if end_hour > request.start_hour:
            shorter = Request(
                id=request.id,
                gpus=request.gpus,
                start_hour=request.start_hour,
                end_hour=min(end_hour, request.end_hour),
                spread=request.spread,
            )
            self.put(Placement(request=shorter, pieces=old.pieces))

    def close(self, request_id: str) -> None:
        """Forget a booking that is over; the past keeps what it used."""
        placement = self.placements.pop(request_id)
        for piece in placement.pieces:
            self.on_row[piece.row].discard(request_id)

    def save(self) -> "Saved":
        """Return the whole state, to be given back to `restore`."""
        return Saved(
            used=self.used.copy(),
            busy_nodes=self.busy_nodes.copy(),
            placements=dict(self.placements),
            on_row=[set(ids) for ids in self.on_row],
        )

    def restore(self, saved: "Saved") -> None:
        """Return to a saved state; it is used up."""
        self.used, self.busy_nodes = saved.used, saved.busy_nodes
        self.placements, self.on_row = saved.placements, saved.on_row

    def has_count_for(self, request: Request) -> bool:
        """Say whether enough GPUs are free in every hour, wherever they are."""
        hours = slice(request.start_hour, request.end_hour)
        used = int(self.used[:, hours].sum(axis=0).max())
        return used + request.gpus <= len(self.on_row) * self.gpus_per_node

    def check(self) -> None:
        """Recompute the layout from its bookings and compare: for tests, and for those in doubt.

        :raises AssertionError: when a row holds more than it has, or a sum is wrong.
        """
        closed = self.used.copy()
        for placement in self.placements.values():
            request = placement.request
            assert sum(piece.gpus for piece in placement.pieces) == request.gpus, placement
            islands = {int(self.island_of[piece.row]) for piece in placement.pieces}
            assert request.spread is Spread.ANY or len(islands) == 1, placement
            assert request.spread is not Spread.SINGLE_NODE or len(placement.pieces) == 1, placement
            for piece in placement.pieces:
                closed[piece.row, request.start_hour : request.end_hour] -= piece.gpus
                assert request.id in self.on_row[piece.row]
        assert closed.min(initial=0) >= 0
        assert self.used.max(initial=0) <= self.gpus_per_node
        for island in range(len(self.island_sizes)):
            rows = self.rows_of(island)
            busy = (self.used[rows.start : rows.stop] > 0).sum(axis=0)
            assert (busy == self.busy_nodes[island]).all(), island
