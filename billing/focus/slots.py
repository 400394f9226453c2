"""How many exports an organization may read at once: each holds a cursor of PostgreSQL while it is read.

A slot is a lock of the database session that reads, so it is gone with that session, whatever becomes of the
process.
"""

from collections.abc import Generator, Iterator
from typing import Self

from django.db import connection

from marketplace.core.errors import DomainError
from marketplace.models import Organization

EXPORTS_AT_ONCE_MAX = (
    2  # of an organization: one of a month, one of another; a file takes half a minute at most
)
RETRY_AFTER_SECONDS = 10


class TooManyExports(DomainError):
    """The organization reads as many exports as it may at once; `extra` says when to ask again."""

    code = "too_many_exports"
    title = "Too many exports at once"


class InSlot(Iterator[str]):
    """Lines of an export that hold a slot until they are read, or their reader goes.

    :raises TooManyExports: where no slot is free.
    """

    def __init__(self, lines: Generator[str], *, organization: Organization) -> None:
        self._lines = lines
        self._slot = _take(organization)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        try:
            return next(self._lines)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the slot back; a reader that never began gives it back as well."""
        self._lines.close()
        slot, self._slot = self._slot, None
        if slot is not None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [slot])


def _take(organization: Organization) -> str | None:
    with connection.cursor() as cursor:
        for number in range(EXPORTS_AT_ONCE_MAX):
            slot = f"export:{organization.pk}:{number}"
            cursor.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [slot])
            row = cursor.fetchone()
            if row is not None and row[0]:
                return slot
    raise TooManyExports(
        f"{EXPORTS_AT_ONCE_MAX} exports are being read already.",
        extra={"retry_after_seconds": RETRY_AFTER_SECONDS},
    )
