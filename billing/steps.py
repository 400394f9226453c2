"""Marked steps of the write paths, where a test lets the process die.

In production a step is a name and nothing else.
"""

from collections.abc import Callable

_listeners: list[Callable[[str], None]] = []


def reached(step: str) -> None:
    """Say that a step of a write path is done."""
    for listener in _listeners:
        listener(step)


def listen(listener: Callable[[str], None]) -> Callable[[], None]:
    """Call `listener` with the name of each step from now on; return what ends that."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)
