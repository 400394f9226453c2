"""The web application with the scheduler's locks taken out: for the twin of the race, never for more."""

from collections.abc import Sequence

from marketplace.wsgi import application
from scheduler import placement
from scheduler.placement import assignment

__all__ = ["application"]


def _lock_nothing(shares: Sequence[placement.NodeShare]) -> set[int]:
    return {slot for share in shares for slot in share.slots[: share.count]}


assignment._lock = _lock_nothing
assignment._lock_patiently = _lock_nothing
assignment._clear = lambda **_: None
