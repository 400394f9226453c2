"""What has room for a window: the project's own placement, or a mere count where only prices matter."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from scheduler.packing import Packer
from scheduler.states import Spread

GPUS_PER_NODE = 8
GPUS_PER_ISLAND = 256  # 32 nodes of one fabric


class Room(Protocol):
    """GPUs over the hours of a replay; `sold[hour]` is how many of them are taken."""

    sold: npt.NDArray[np.int64]

    def take(self, *, number: int, gpus: int, start: int, hours: int) -> bool:
        """Give GPUs to a request for a window, or change nothing and return `False`."""
        ...

    def advance(self, *, hour: int) -> None:
        """Let time pass: what starts at `hour` or before stays where it is."""
        ...


class CountedRoom:
    """An ideal divisible pool: all that matters is how many GPUs are taken in each hour."""

    def __init__(self, *, capacity: int, horizon_hours: int) -> None:
        self.capacity = capacity
        self.sold = np.zeros(horizon_hours, dtype=np.int64)

    def take(self, *, number: int, gpus: int, start: int, hours: int) -> bool:
        window = self.sold[start : start + hours]
        if int(window.max()) + gpus > self.capacity or not self._place(
            number=number, gpus=gpus, start=start, hours=hours
        ):
            return False
        window += gpus
        return True

    def advance(self, *, hour: int) -> None:
        """Do nothing: GPUs without a place need not be fixed to one."""

    def _place(self, *, number: int, gpus: int, start: int, hours: int) -> bool:
        return True


class PackedRoom(CountedRoom):
    """Nodes of eight in fabric islands, filled by the placement code of the market."""

    def __init__(self, *, capacity: int, horizon_hours: int) -> None:
        super().__init__(capacity=capacity, horizon_hours=horizon_hours)
        self._packer = Packer(
            nodes=capacity // GPUS_PER_NODE,
            islands=max(1, capacity // GPUS_PER_ISLAND),
            gpus_per_node=GPUS_PER_NODE,
            hours=horizon_hours,
        )

    def advance(self, *, hour: int) -> None:
        self._packer.advance(hour)

    def _place(self, *, number: int, gpus: int, start: int, hours: int) -> bool:
        spread = Spread.SINGLE_NODE if gpus <= GPUS_PER_NODE else Spread.SAME_FABRIC
        placed = self._packer.place(
            str(number), gpus=gpus, start_hour=start, hours=hours, spread=spread
        )
        return placed is not None
