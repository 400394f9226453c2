"""Work off a batch of things that are due, each for itself."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import structlog
from django.db import transaction

log = structlog.get_logger(__name__)

T = TypeVar("T")


def one_by_one(things: Iterable[T], verb: Callable[[T], int], *, name: str) -> int:
    """Run a verb for each thing in a transaction of its own; return how many it was done for.

    One that raises is logged and left; it neither undoes its neighbours nor keeps them waiting.
    """
    done = 0
    for thing in things:
        try:
            with transaction.atomic():
                done += verb(thing)
        except Exception:
            log.exception("run_left_one", run=name, thing=str(thing))
    return done
