"""How much to load, and where its bookings lie: drawn with a seed, none over another."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from agents.models import SLOTS_PER_NODE
from marketplace.management.errors import PlainError

# How a node's GPUs are cut among its bookings, by number of lanes, with the share of nodes cut so.
LANES = ((1, 0.50), (2, 0.25), (4, 0.15), (8, 0.10))
LANES_AT_ONCE = 1_000  # a number for each of their 4,320 hours: 35 MB
Numbers: TypeAlias = npt.NDArray[np.int64]


class TooManyBookings(PlainError):
    """So many bookings do not fit into the days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSize:
    """How much to load. Bookings lie in the next `days`; each pool is a region of its own."""

    nodes: int
    gpus_per_node: int
    pools: int
    nodes_per_fabric: int
    bookings: int
    days: int
    seed: int


def draw(*, size: FleetSize) -> Numbers:
    """Draw bookings: rows of node, first slot, GPUs, first and last hour, half-open; none overlap.

    Each node is cut into lanes of equal width. A lane's windows and the gaps between them have the same
    mean: half of the time is sold.

    :raises TooManyBookings: when a lane has not two hours for each of its bookings.
    """
    dice = np.random.default_rng(size.seed)
    usable = [(lanes, share) for lanes, share in LANES if size.gpus_per_node % lanes == 0]
    shares = np.array([share for _, share in usable])
    cuts = np.array([lanes for lanes, _ in usable])[
        dice.choice(len(usable), size=size.nodes, p=shares / shares.sum())
    ]
    node = np.repeat(np.arange(size.nodes), cuts)
    width = size.gpus_per_node // cuts[node]
    number = np.arange(len(node)) - np.repeat(np.cumsum(cuts) - cuts, cuts)
    each, rest = divmod(size.bookings, len(node))
    count = np.full(len(node), each)
    count[:rest] += 1
    hours = size.days * 24 - 2  # the first hour is left to whoever tries the market
    if 2 * int(count.max()) > hours:
        raise TooManyBookings(f"{size.bookings} bookings in {size.days} days of {len(node)} lanes")
    rows = []
    for many, lanes in _batches(count):
        points = np.sort(
            np.argpartition(dice.random((len(lanes), hours)), 2 * many - 1, axis=1)[:, : 2 * many],
            axis=1,
        ).reshape(len(lanes), many, 2)
        rows.append(
            np.stack(
                [
                    np.repeat(node[lanes], many),
                    np.repeat(node[lanes] * SLOTS_PER_NODE + number[lanes] * width[lanes], many),
                    np.repeat(width[lanes], many),
                    points[:, :, 0].ravel(),
                    points[:, :, 1].ravel(),
                ],
                axis=1,
            )
        )
    drawn: Numbers = np.concatenate(rows).astype(np.int64)
    return drawn


def _batches(count: Numbers) -> Iterator[tuple[int, Numbers]]:
    """Yield lanes that have the same number of bookings, some at a time."""
    for many in np.unique(count[count > 0]).tolist():
        lanes = np.flatnonzero(count == many)
        for offset in range(0, len(lanes), LANES_AT_ONCE):
            yield many, lanes[offset : offset + LANES_AT_ONCE]
