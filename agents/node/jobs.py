"""Run the verbs of a provisioner beside the loop, so that no slow verb delays a report."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

Result = TypeVar("Result")


class Jobs(Protocol):
    """Starts work and hands back its future."""

    def submit(self, *, work: Callable[[], Result]) -> Future[Result]:
        """Start the work."""
        ...


class InlineJobs:
    """Does the work at once: for provisioners that do not block, and for tests."""

    def submit(self, *, work: Callable[[], Result]) -> Future[Result]:
        """Do the work and return its finished future."""
        future: Future[Result] = Future()
        _finish(future, work)
        return future


class ThreadJobs:
    """Does each piece of work in a thread of its own; a node serves at most a handful of leases at once.

    The threads are daemons: the agent may stop while a verb runs, and calls it again after its next start.
    """

    def __init__(self, *, wake: Callable[[], None]) -> None:
        self._wake = wake

    def submit(self, *, work: Callable[[], Result]) -> Future[Result]:
        """Start a thread; the loop is woken when it is done."""
        future: Future[Result] = Future()

        def run() -> None:
            _finish(future, work)
            self._wake()

        threading.Thread(target=run, daemon=True).start()
        return future


def _finish(future: Future[Result], work: Callable[[], Result]) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 - handed on to whoever asks the future
        future.set_exception(error)
