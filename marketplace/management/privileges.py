"""What a role may do that runs the market without owning its tables: a second wall behind the triggers.

A table's own triggers say what never happens to its rows, and the role is not granted that: no UPDATE where
rows never change, no DELETE where they never go. Nobody but the owner may TRUNCATE, alter a table or disable
a trigger, and nobody but a superuser may switch triggers off for a session. The owner migrates, and grants
anew afterwards: `manage.py prepare`, then `manage.py grant_role`.
"""

from django.db import connection, transaction

from marketplace.management.errors import PlainError

# Rows that never change and are locked all the same, while sums over them are made: PostgreSQL lets nobody
# lock a row who may change no column of it. The trigger refuses the change of this one as of any.
LOCKED_COLUMNS = {"billing_reservationtax": "reservation_id"}

# A trigger of these functions refuses every event that it fires on; bits of `tgtype`: pg_trigger.h.
_TABLES = """
    SELECT c.oid::regclass::text,
        NOT coalesce(bool_or(t.tgtype & 16 <> 0), false),
        NOT coalesce(bool_or(t.tgtype & 8 <> 0), false)
    FROM pg_class c
    LEFT JOIN (
        pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid AND p.proname LIKE '%\\_refuse\\_change'
    ) ON t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgqual IS NULL AND t.tgenabled <> 'D'
    WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
    GROUP BY c.oid ORDER BY 1
"""
_ROLE = """
    SELECT r.rolsuper OR r.rolcreaterole OR r.rolbypassrls OR r.rolreplication,
        EXISTS (
            SELECT FROM pg_class c
            WHERE c.relnamespace = 'public'::regnamespace AND pg_has_role(r.oid, c.relowner, 'MEMBER')
        )
    FROM pg_roles r WHERE r.rolname = %s
"""


@transaction.atomic
def grant(*, role: str) -> int:
    """Let a role run the market, and do nothing else; return on how many tables. Safe to run twice.

    :raises PlainError: when there is no such role, or it would not be held by what it is granted.
    """
    with connection.cursor() as cursor:
        cursor.execute(_ROLE, [role])
        known = cursor.fetchone()
        if known is None:
            raise PlainError(f"there is no role {role}: CREATE ROLE {role} LOGIN PASSWORD '…'")
        if any(known):
            raise PlainError(
                f"{role} is above what it is granted: it must be no superuser, make no roles, and own, or"
                " be a member of who owns, no table of the market"
            )
        name = connection.ops.quote_name(role)
        cursor.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {name}")
        cursor.execute(f"GRANT USAGE ON SCHEMA public TO {name}")
        cursor.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}")
        cursor.execute(f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO {name}")
        cursor.execute(_TABLES)
        tables = cursor.fetchall()
        for table, may_change, may_go in tables:
            if may_change:
                cursor.execute(f"GRANT UPDATE ON {table} TO {name}")
            elif table in LOCKED_COLUMNS:
                cursor.execute(f"GRANT UPDATE ({LOCKED_COLUMNS[table]}) ON {table} TO {name}")
            if may_go:
                cursor.execute(f"GRANT DELETE ON {table} TO {name}")
    return len(tables)
