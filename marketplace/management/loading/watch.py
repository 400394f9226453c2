"""How long each part of a load took."""

import time
from collections.abc import Callable


class Watch:
    """Say how long each part took."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._began = time.perf_counter()

    def lap(self, what: str) -> None:
        now = time.perf_counter()
        self._say(f"{now - self._began:7.1f} s  {what}")
        self._began = now
