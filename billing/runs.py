"""Work off a batch of things that are due, each for itself."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import structlog
from django.db import transaction

from marketplace import contention

log = structlog.get_logger(__name__)

T = TypeVar("T")


def one_by_one(things: Iterable[T], verb: Callable[[T], int], *, name: str) -> int:
    """Run a verb for each thing in a transaction of its own; return how many it was done for.

    One that PostgreSQL breaks off is done again; one that raises is logged and left: it neither undoes its
    neighbours nor keeps them waiting.
    """
    done = 0
    for thing in things:
        try:
            done += contention.repeated(partial(_alone, verb, thing), name=name)
        except Exception:
            log.exception("run_left_one", run=name, thing=str(thing))
    return done


def _alone(verb: Callable[[T], int], thing: T) -> int:
    with transaction.atomic():
        return verb(thing)
