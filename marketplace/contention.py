"""Do a whole transaction again that PostgreSQL broke off for a rival's sake.

Rows are locked in one order everywhere (`billing/README.md`), so that two who want the same wait for each
other and neither is broken off. Should an order be broken all the same, PostgreSQL undoes one of the two:
nothing of it has happened, and done again it finds what the other left.
"""

import random
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from django.db import OperationalError, connection

log = structlog.get_logger(__name__)

T = TypeVar("T")

# serialization_failure and deadlock_detected: PostgreSQL's manual, appendix A.
BROKEN_OFF = frozenset({"40001", "40P01"})
TRIES_MAX = 3  # PostgreSQL looks for a deadlock after a second: a caller waits some three at most
PAUSE_SECONDS_MAX = 0.1  # drawn by lot, so that two who were in each other's way do not meet again


def repeated(act: Callable[[], T], *, name: str) -> T:
    """Run what opens and ends one transaction, up to `TRIES_MAX` times, and return what it returns.

    It is run again only where PostgreSQL has undone it, so it calls nobody outside. Inside an open
    transaction it is run once: what came before it there was undone too, and whoever opened that begins anew.

    :raises OperationalError: when it was broken off each time, or failed for another reason.
    """
    tries_left = TRIES_MAX
    while True:
        tries_left -= 1
        try:
            return act()
        except OperationalError as error:
            code = getattr(error.__cause__, "sqlstate", None)
            if code not in BROKEN_OFF or not tries_left or connection.in_atomic_block:
                raise
            log.warning("broken_off", act=name, sqlstate=code, tries_left=tries_left)
        time.sleep(random.uniform(0, PAUSE_SECONDS_MAX))  # noqa: S311 - a pause is no secret
