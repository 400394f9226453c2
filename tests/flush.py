"""Let the flush between tests empty the books, which refuse to be emptied.

`TRUNCATE` on the ledger is refused by triggers. The statements of Django's flush, and only those, run with
`session_replication_role = replica`, in which ordinary triggers do not fire. PostgreSQL grants that
setting to superusers alone: the throw-away server of the suite has one, production's role is none.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db.backends.postgresql.operations import DatabaseOperations


@pytest.fixture(scope="session", autouse=True)
def flush_may_empty_the_books() -> Iterator[None]:
    """Put the setting, local to its transaction, before the statements of every flush."""
    original = DatabaseOperations.sql_flush

    def sql_flush(self: DatabaseOperations, *args: Any, **kwargs: Any) -> list[str]:
        statements = original(self, *args, **kwargs)
        return ["SET LOCAL session_replication_role = replica;", *statements] if statements else []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseOperations, "sql_flush", sql_flush)
        yield
