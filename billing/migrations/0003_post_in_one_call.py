"""Let one call to PostgreSQL write a whole entry, and check its postings once per statement.

`billing_post` makes the round trips of an entry one. It decides nothing that the guards do not decide again:
the postings that it inserts pass the same triggers as anybody's, which now look at all rows of a statement
at once.
"""

from django.db import migrations

POST = """
-- The legs arrive as a JSON array: code, currency, kind, subject_id, organization_id, normal_side, guarded,
-- side, amount. Answers with the entry that has the key, new or not, or with the wallet that is short.
CREATE FUNCTION billing_post(
    p_id text, p_key text, p_sha256 text, p_kind text, p_subject text, p_effective timestamptz,
    p_reverses text, p_legs jsonb
) RETURNS TABLE (
    entry_id text, content_sha256 text, recorded_at timestamptz, transaction_id bigint, is_new boolean,
    short_code text, short_balance bigint
) LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    short record;
    has_guarded boolean;
BEGIN
    RETURN QUERY SELECT e.id::text, e.content_sha256::text, e.recorded_at, e.transaction_id, false,
        NULL::text, NULL::bigint FROM billing_entry e WHERE e.idempotency_key = p_key;
    IF FOUND THEN
        RETURN;
    END IF;

    -- In one order for all writers, so that two that make the same accounts do not wait for each other.
    INSERT INTO billing_account
        (code, subject_id, kind, currency, normal_side, guarded, balance, organization_id)
    SELECT l.code, l.subject_id, l.kind, l.currency, l.normal_side, l.guarded, 0, l.organization_id
    FROM jsonb_to_recordset(p_legs) AS l (code text, subject_id text, kind text, currency text,
        normal_side text, guarded boolean, organization_id text)
    WHERE NOT EXISTS (
        SELECT FROM billing_account a WHERE a.code = l.code AND a.currency = l.currency
    )
    ORDER BY l.code, l.currency
    ON CONFLICT DO NOTHING;

    -- Ascending, for the same reason.
    PERFORM FROM billing_account a
    WHERE a.guarded AND (a.code, a.currency) IN (
        SELECT l.code, l.currency FROM jsonb_to_recordset(p_legs) AS l (code text, currency text)
    )
    ORDER BY a.id FOR NO KEY UPDATE;
    has_guarded := FOUND;

    IF has_guarded THEN
        SELECT a.code, a.balance INTO short
        FROM jsonb_to_recordset(p_legs) AS l (code text, currency text, side text, amount bigint)
        JOIN billing_account a ON a.code = l.code AND a.currency = l.currency
        WHERE a.kind = 'wallet' AND l.side = 'debit' AND a.balance < l.amount LIMIT 1;
        IF FOUND THEN
            -- Whoever held the lock may have been the same call, and spent the money on this very entry.
            RETURN QUERY SELECT e.id::text, e.content_sha256::text, e.recorded_at, e.transaction_id,
                false, NULL::text, NULL::bigint FROM billing_entry e WHERE e.idempotency_key = p_key;
            IF NOT FOUND THEN
                RETURN QUERY SELECT NULL::text, NULL::text, NULL::timestamptz, NULL::bigint, false,
                    short.code::text, short.balance::bigint;
            END IF;
            RETURN;
        END IF;
    END IF;

    RETURN QUERY INSERT INTO billing_entry
        (id, idempotency_key, content_sha256, kind, subject_id, effective_at, reverses_id)
        VALUES (p_id, p_key, p_sha256, p_kind, p_subject, p_effective, p_reverses)
        ON CONFLICT (idempotency_key) DO NOTHING
        RETURNING billing_entry.id::text, billing_entry.content_sha256::text,
            billing_entry.recorded_at, billing_entry.transaction_id, true, NULL::text, NULL::bigint;
    IF NOT FOUND THEN
        RETURN QUERY SELECT e.id::text, e.content_sha256::text, e.recorded_at, e.transaction_id, false,
            NULL::text, NULL::bigint FROM billing_entry e WHERE e.idempotency_key = p_key;
        RETURN;
    END IF;

    INSERT INTO billing_posting (entry_id, account_id, side, amount)
    SELECT p_id, a.id, l.side, l.amount
    FROM jsonb_to_recordset(p_legs) AS l (code text, currency text, side text, amount bigint)
    JOIN billing_account a ON a.code = l.code AND a.currency = l.currency;
END $$;
"""

BY_STATEMENT = """
DROP TRIGGER posting_seal ON billing_posting;
DROP TRIGGER posting_balance ON billing_posting;

CREATE OR REPLACE FUNCTION billing_refuse_late_posting() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    sealed text;
BEGIN
    SELECT n.entry_id INTO sealed FROM new_postings n
    WHERE NOT EXISTS (
        SELECT FROM billing_entry e
        WHERE e.id = n.entry_id AND e.transaction_id = pg_current_xact_id()::text::bigint
    ) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'entry % is sealed: its transaction is over', sealed
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'entry_is_sealed';
    END IF;
    RETURN NULL;
END $$;

-- After the insert, so that a posting that was not stored moves nothing.
CREATE OR REPLACE FUNCTION billing_keep_balance() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    UPDATE billing_account a SET balance = a.balance + moved.delta
    FROM (
        SELECT n.account_id,
            sum(CASE WHEN g.normal_side = n.side THEN n.amount ELSE -n.amount END)::bigint AS delta
        FROM new_postings n JOIN billing_account g ON g.id = n.account_id
        WHERE g.guarded GROUP BY n.account_id
    ) moved
    WHERE a.id = moved.account_id;
    RETURN NULL;
END $$;

CREATE TRIGGER posting_seal AFTER INSERT ON billing_posting REFERENCING NEW TABLE AS new_postings
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_late_posting();
CREATE TRIGGER posting_balance AFTER INSERT ON billing_posting REFERENCING NEW TABLE AS new_postings
    FOR EACH STATEMENT EXECUTE FUNCTION billing_keep_balance();
"""

BY_ROW = """
DROP TRIGGER posting_seal ON billing_posting;
DROP TRIGGER posting_balance ON billing_posting;

CREATE OR REPLACE FUNCTION billing_refuse_late_posting() RETURNS trigger LANGUAGE plpgsql
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

CREATE OR REPLACE FUNCTION billing_keep_balance() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    UPDATE billing_account
    SET balance = balance + CASE WHEN normal_side = NEW.side THEN NEW.amount ELSE -NEW.amount END
    WHERE id = NEW.account_id AND guarded;
    RETURN NULL;
END $$;

CREATE TRIGGER posting_seal BEFORE INSERT ON billing_posting
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_late_posting();
CREATE TRIGGER posting_balance AFTER INSERT ON billing_posting
    FOR EACH ROW EXECUTE FUNCTION billing_keep_balance();
"""

POST_SIGNATURE = "text, text, text, text, text, timestamptz, text, jsonb"


class Migration(migrations.Migration):
    dependencies = [("billing", "0002_guard_the_books")]

    operations = [
        migrations.RunSQL(BY_STATEMENT, BY_ROW),
        migrations.RunSQL(POST, f"DROP FUNCTION billing_post({POST_SIGNATURE});"),
    ]
