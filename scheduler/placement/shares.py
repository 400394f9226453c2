"""Which slots of a node a request gets."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShare:
    """Take `count` of these slots of one node, the first ones rather than the last."""

    slots: tuple[int, ...]
    count: int


def run_lengths(slots: Sequence[int]) -> dict[int, int]:
    """Return for each of some rising slots how long its run of neighbours is."""
    lengths: dict[int, int] = {}
    run: list[int] = []
    for slot in [*slots, None]:
        if run and (slot is None or slot != run[-1] + 1):
            lengths |= dict.fromkeys(run, len(run))
            run = []
        if slot is not None:
            run.append(slot)
    return lengths
