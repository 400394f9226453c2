"""Let PostgreSQL keep the books: append-only, balanced, sealed, never overdrawn.

Every function pins its search path, so that no schema of somebody else can stand in for ours.
"""

from django.db import migrations

# What must never change or go: refused for rows and for whole tables alike.
APPEND_ONLY_TABLES = ("billing_entry", "billing_posting", "billing_payouttransition")
# Rows of these may change in the one way that their own trigger allows, and never go.
KEPT_TABLES = ("billing_account", "billing_settlement", "billing_payout")

FUNCTIONS = """
CREATE FUNCTION billing_refuse_change() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'books_are_append_only';
END $$;

-- The database's clock and the making transaction are not for the client to choose.
CREATE FUNCTION billing_seal_entry() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    NEW.transaction_id := pg_current_xact_id()::text::bigint;
    NEW.recorded_at := statement_timestamp();
    RETURN NEW;
END $$;

CREATE FUNCTION billing_refuse_late_posting() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM billing_entry
        WHERE id = NEW.entry_id AND transaction_id = pg_current_xact_id()::text::bigint
    ) THEN
        RAISE EXCEPTION 'entry % is sealed: its transaction is over', NEW.entry_id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'entry_is_sealed';
    END IF;
    RETURN NEW;
END $$;

-- After the insert, so that a posting that was not stored moves nothing.
CREATE FUNCTION billing_keep_balance() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    UPDATE billing_account
    SET balance = balance + CASE WHEN normal_side = NEW.side THEN NEW.amount ELSE -NEW.amount END
    WHERE id = NEW.account_id AND guarded;
    RETURN NULL;
END $$;

-- On the entry and not on its postings: an entry without postings has none that could complain.
CREATE FUNCTION billing_refuse_unbalanced() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    unequal text;
BEGIN
    IF NOT EXISTS (SELECT FROM billing_posting WHERE entry_id = NEW.id) THEN
        RAISE EXCEPTION 'entry % has no postings', NEW.id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'entry_is_not_empty';
    END IF;
    SELECT string_agg(currency, ', ') INTO unequal FROM (
        SELECT a.currency
        FROM billing_posting p JOIN billing_account a ON a.id = p.account_id
        WHERE p.entry_id = NEW.id
        GROUP BY a.currency
        HAVING sum(CASE WHEN p.side = 'debit' THEN p.amount ELSE -p.amount END) <> 0
    ) AS currencies;
    IF unequal IS NOT NULL THEN
        RAISE EXCEPTION 'entry % does not balance in %', NEW.id, unequal
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'entry_is_balanced';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION billing_refuse_opening_balance() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NEW.balance <> 0 THEN
        RAISE EXCEPTION 'an account begins with a balance of zero, not %', NEW.balance
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'account_begins_empty';
    END IF;
    RETURN NEW;
END $$;

-- The balance alone may change, and only from within the trigger of a posting: depth 1 is a client.
CREATE FUNCTION billing_guard_account() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF pg_trigger_depth() < 2 OR to_jsonb(NEW) - 'balance' <> to_jsonb(OLD) - 'balance' THEN
        RAISE EXCEPTION 'account % is kept by its postings alone', OLD.code
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'account_is_kept_by_postings';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION billing_guard_settlement() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF OLD.released_at IS NOT NULL OR NEW.released_at IS NULL
        OR to_jsonb(NEW) - 'released_at' <> to_jsonb(OLD) - 'released_at' THEN
        RAISE EXCEPTION 'settlement % is final; it can be released once', OLD.id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'settlement_is_final';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION billing_guard_payout() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF to_jsonb(NEW) - 'status' <> to_jsonb(OLD) - 'status' THEN
        RAISE EXCEPTION 'payout % may change its status alone', OLD.id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'payout_is_final';
    END IF;
    RETURN NEW;
END $$;
"""

TRIGGERS = """
CREATE TRIGGER entry_seal BEFORE INSERT ON billing_entry
    FOR EACH ROW EXECUTE FUNCTION billing_seal_entry();
CREATE CONSTRAINT TRIGGER entry_balance AFTER INSERT ON billing_entry DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_unbalanced();
CREATE TRIGGER posting_seal BEFORE INSERT ON billing_posting
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_late_posting();
CREATE TRIGGER posting_balance AFTER INSERT ON billing_posting
    FOR EACH ROW EXECUTE FUNCTION billing_keep_balance();
CREATE TRIGGER account_opening BEFORE INSERT ON billing_account
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_opening_balance();
CREATE TRIGGER account_guard BEFORE UPDATE ON billing_account
    FOR EACH ROW EXECUTE FUNCTION billing_guard_account();
CREATE TRIGGER settlement_guard BEFORE UPDATE ON billing_settlement
    FOR EACH ROW EXECUTE FUNCTION billing_guard_settlement();
CREATE TRIGGER payout_guard BEFORE UPDATE ON billing_payout
    FOR EACH ROW EXECUTE FUNCTION billing_guard_payout();
"""

DROP_TRIGGERS = """
DROP TRIGGER entry_seal ON billing_entry;
DROP TRIGGER entry_balance ON billing_entry;
DROP TRIGGER posting_seal ON billing_posting;
DROP TRIGGER posting_balance ON billing_posting;
DROP TRIGGER account_opening ON billing_account;
DROP TRIGGER account_guard ON billing_account;
DROP TRIGGER settlement_guard ON billing_settlement;
DROP TRIGGER payout_guard ON billing_payout;
"""

FUNCTION_NAMES = (
    "billing_refuse_change",
    "billing_seal_entry",
    "billing_refuse_late_posting",
    "billing_keep_balance",
    "billing_refuse_unbalanced",
    "billing_refuse_opening_balance",
    "billing_guard_account",
    "billing_guard_settlement",
    "billing_guard_payout",
)


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


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_first_tables")]

    operations = [
        migrations.RunSQL(
            FUNCTIONS, "".join(f"DROP FUNCTION {name}();" for name in FUNCTION_NAMES)
        ),
        migrations.RunSQL(TRIGGERS, DROP_TRIGGERS),
        *(
            migrations.RunSQL(forwards, backwards)
            for tables, events in (
                (APPEND_ONLY_TABLES, "UPDATE OR DELETE"),
                (KEPT_TABLES, "DELETE"),
            )
            for table in tables
            for forwards, backwards in _keep_rows(table, events=events)
        ),
    ]
