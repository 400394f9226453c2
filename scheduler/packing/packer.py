"""A market's nodes in memory: place, release, and let time pass. For benchmarks and backtests."""

import numpy as np

from scheduler.packing import repack
from scheduler.packing.layout import Layout, Placement, Request
from scheduler.states import Spread

TRIES = 8  # four sorted orders and four random ones: beyond that almost none succeeds


class Packer:
    """Nodes in islands of equal size, over hours that begin with 0. The same calls give the same result."""

    def __init__(
        self,
        *,
        nodes: int,
        islands: int,
        hours: int,
        gpus_per_node: int = 8,
        tries: int = TRIES,
        seed: int = 0,
    ) -> None:
        sizes = [nodes // islands + (number < nodes % islands) for number in range(islands)]
        self.layout = Layout(islands=sizes, gpus_per_node=gpus_per_node, hours=hours)
        self.repacks_tried = 0
        self.repacks_done = 0
        self._tries = tries
        self._rng = np.random.default_rng(seed)
        self._now_hour = -1

    def place(
        self, request_id: str, *, gpus: int, start_hour: int, hours: int, spread: Spread
    ) -> Placement | None:
        """Place a request of `hours` hours, moving others that have not started if need be.

        `None` when there is no room; then nothing has changed.
        """
        request = Request(
            id=request_id,
            gpus=gpus,
            start_hour=start_hour,
            end_hour=start_hour + hours,
            spread=spread,
        )
        placement = repack.place(self.layout, request, now_hour=self._now_hour)
        if placement is None and self._tries and self.layout.has_count_for(request):
            self.repacks_tried += 1
            placement = repack.repack(
                self.layout, request, now_hour=self._now_hour, tries=self._tries, rng=self._rng
            )
            self.repacks_done += placement is not None
        return placement

    def release(self, request_id: str, *, from_hour: int) -> None:
        """Free what a request has from an hour on: cancelled, returned early or reclaimed."""
        self.layout.shorten(request_id, end_hour=from_hour)

    def advance(self, now_hour: int) -> None:
        """Let time pass: what starts at `now_hour` or before keeps its nodes, what is over is forgotten."""
        if now_hour <= self._now_hour:
            return
        self._now_hour = now_hour
        over = [
            placement.request.id
            for placement in self.layout.placements.values()
            if placement.request.end_hour <= now_hour
        ]
        for request_id in over:
            self.layout.close(request_id)
