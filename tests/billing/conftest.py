"""What the tests of the books share."""

import contextlib
from collections.abc import Iterator

import pytest
from django.db import connection


@pytest.fixture
def unguarded():
    """Return a context in which no trigger fires: how a breach is planted, and how a tamperer would."""

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with connection.cursor() as cursor:
            # What is still to be checked at commit is checked now, while it is sound.
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
            # Local to the transaction: a statement that fails in here takes the setting back with it.
            cursor.execute("SET LOCAL session_replication_role = replica")
            yield
            cursor.execute("SET LOCAL session_replication_role = DEFAULT")

    return context
