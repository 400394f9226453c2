"""Guard the tables that came after the first ones: what may change of them, and what never.

One function serves all tables of which a few columns may change; the trigger names them.
"""

from django.db import migrations

APPEND_ONLY_TABLES = (
    "billing_earnedhour",
    "billing_refundtransition",
    "billing_disputetransition",
    "billing_approvaltransition",
    "billing_booksrun",
)
# The columns that may change; no row goes.
CHANGING_TABLES = {
    "billing_correction": ("released_at",),
    "billing_reserve": ("released_at",),
    "billing_refund": ("status",),
    "billing_dispute": ("status",),
    "billing_approval": ("status", "decided_by", "decided_at"),
    "billing_parking": ("ended_at",),
}

FUNCTIONS = """
CREATE FUNCTION billing_guard_columns() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF to_jsonb(NEW) - TG_ARGV::text[] <> to_jsonb(OLD) - TG_ARGV::text[] THEN
        RAISE EXCEPTION 'of % only % may change', TG_TABLE_NAME, array_to_string(TG_ARGV, ', ')
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'row_is_final';
    END IF;
    RETURN NEW;
END $$;

-- A settlement is released once, and looked at again some times; nothing else of it changes.
CREATE OR REPLACE FUNCTION billing_guard_settlement() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NEW IS NOT DISTINCT FROM OLD
        OR (OLD.released_at IS NOT NULL AND NEW.released_at IS DISTINCT FROM OLD.released_at)
        OR to_jsonb(NEW) - '{released_at,review_due_at}'::text[]
            <> to_jsonb(OLD) - '{released_at,review_due_at}'::text[] THEN
        RAISE EXCEPTION 'settlement % is final; it can be released once', OLD.id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'settlement_is_final';
    END IF;
    RETURN NEW;
END $$;
"""

FUNCTIONS_BEFORE = """
CREATE OR REPLACE FUNCTION billing_guard_settlement() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF OLD.released_at IS NOT NULL OR NEW.released_at IS NULL
        OR to_jsonb(NEW) - 'released_at' <> to_jsonb(OLD) - 'released_at' THEN
        RAISE EXCEPTION 'settlement % is final; it can be released once', OLD.id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'settlement_is_final';
    END IF;
    RETURN NEW;
END $$;
DROP FUNCTION billing_guard_columns();
"""


def _keep_rows(table: str, *, events: str) -> list[tuple[str, str]]:
    """Return the statements, each with its reverse, that let nothing of a table change or go."""
    return [
        (
            (
                f"CREATE TRIGGER books_keep_rows BEFORE {events} ON {table} "
                "FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();"
            ),
            f"DROP TRIGGER books_keep_rows ON {table};",
        ),
        (
            (
                f"CREATE TRIGGER books_keep_table BEFORE TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();"
            ),
            f"DROP TRIGGER books_keep_table ON {table};",
        ),
    ]


def _guard_columns(table: str, *, columns: tuple[str, ...]) -> tuple[str, str]:
    """Return the statement, with its reverse, that lets only some columns of a table change."""
    arguments = ", ".join(f"'{column}'" for column in columns)
    return (
        (
            f"CREATE TRIGGER row_guard BEFORE UPDATE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION billing_guard_columns({arguments});"
        ),
        f"DROP TRIGGER row_guard ON {table};",
    )


def _statements() -> list[tuple[str, str]]:
    found = []
    for table in APPEND_ONLY_TABLES:
        found += _keep_rows(table, events="UPDATE OR DELETE")
    for table, columns in CHANGING_TABLES.items():
        found += [*_keep_rows(table, events="DELETE"), _guard_columns(table, columns=columns)]
    return found


class Migration(migrations.Migration):
    dependencies = [("billing", "0006_hours_refunds_and_controls")]

    operations = [
        migrations.RunSQL(FUNCTIONS, FUNCTIONS_BEFORE),
        *(migrations.RunSQL(forwards, backwards) for forwards, backwards in _statements()),
    ]
