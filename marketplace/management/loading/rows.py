"""Rows in bulk: one template row made by the model, multiplied inside PostgreSQL."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import connection, models

from scheduler.calendar import OVERLAP_CONSTRAINT

# An id of the right length in SQL: the prefix, and the expression of a number.
ID = "'{}_' || lpad(({})::text, 26, '0')"


def id_of(prefix: str, number: int) -> str:
    """Return the id that `ID` makes in SQL."""
    return f"{prefix}_{number:026d}"


def multiply(
    *,
    model: type[models.Model],
    template_id: str | int,
    source: str,
    changes: Mapping[str, str],
    parameters: Mapping[str, Any],
    where: str = "true",
) -> None:
    """Insert a copy of a row for each row of a source, with other values in some columns."""
    options = model._meta  # noqa: SLF001 - Django's documented way to a model's columns
    columns = [
        field.column
        for field in options.concrete_fields
        if not isinstance(field, models.AutoField | models.BigAutoField | models.GeneratedField)
    ]
    values = [changes.get(column, f't."{column}"') for column in columns]
    names = ", ".join(f'"{column}"' for column in columns)
    statement = (
        f"INSERT INTO {options.db_table} ({names}) SELECT {', '.join(values)}"  # noqa: S608 - texts of this file
        f" FROM {source} CROSS JOIN {options.db_table} t WHERE t.id = %(template)s AND ({where})"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, {**parameters, "template": template_id})


@contextmanager
def quietly() -> Iterator[None]:
    """Let a block load rows without triggers and without the exclusion constraint, which is then built.

    What it loads overlaps nowhere, or building the constraint fails. Only a superuser may silence the
    triggers of foreign keys; for others the load takes longer.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('is_superuser')::bool")
        (is_superuser,) = cursor.fetchone()
        cursor.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s",
            [OVERLAP_CONSTRAINT],
        )
        (definition,) = cursor.fetchone()
        cursor.execute(f"ALTER TABLE scheduler_allocation DROP CONSTRAINT {OVERLAP_CONSTRAINT}")
        # The index is derived when all is loaded; a mark for each booking would be a second load.
        cursor.execute("ALTER TABLE scheduler_allocation DISABLE TRIGGER USER")
        if is_superuser:
            cursor.execute("SET LOCAL session_replication_role = replica")
        yield
        if is_superuser:
            cursor.execute("SET LOCAL session_replication_role = origin")
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE scheduler_allocation ENABLE TRIGGER USER")
        cursor.execute("SET LOCAL maintenance_work_mem = '256MB'")
        cursor.execute(
            f"ALTER TABLE scheduler_allocation ADD CONSTRAINT {OVERLAP_CONSTRAINT} {definition}"
        )
