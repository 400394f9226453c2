"""Let PostgreSQL keep issued documents: unchanged, numbered without gaps, adding up, never giving back too much.

The checks of sums wait for the end of the transaction, because a document is written before its lines.
"""

from django.db import migrations

KEPT_TABLES = ("billing_invoice", "billing_invoiceline", "billing_monthclose")

FUNCTIONS = """
CREATE FUNCTION billing_seal_invoice() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    NEW.transaction_id := pg_current_xact_id()::text::bigint;
    IF NEW.year <> extract(year FROM NEW.issued_at AT TIME ZONE 'UTC') THEN
        RAISE EXCEPTION 'invoice % is not of the year %', NEW.number, NEW.year
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'invoice_year_fits';
    END IF;
    IF NEW.sequence <> 1 AND NOT EXISTS (
        SELECT FROM billing_invoice before
        WHERE before.issuer = NEW.issuer AND before.kind = NEW.kind AND before.year = NEW.year
            AND before.sequence = NEW.sequence - 1 AND before.issued_at <= NEW.issued_at
    ) THEN
        RAISE EXCEPTION 'no number precedes %, or a later one does', NEW.number
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'invoice_numbers_are_gapless';
    END IF;
    RETURN NEW;
END $$;

-- Lines come with their document, and a credit is of a line of the document that its own one corrects.
CREATE FUNCTION billing_seal_invoice_line() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    document billing_invoice%ROWTYPE;
BEGIN
    SELECT * INTO document FROM billing_invoice
    WHERE id = NEW.invoice_id AND transaction_id = pg_current_xact_id()::text::bigint;
    IF document.id IS NULL THEN
        RAISE EXCEPTION 'document % is issued: its transaction is over', NEW.invoice_id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'invoice_is_issued';
    END IF;
    IF (document.kind = 'credit_note') <> (NEW.corrects_line_id IS NOT NULL) THEN
        RAISE EXCEPTION 'line % does not fit a %', NEW.id, document.kind
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'invoice_line_fits_its_kind';
    END IF;
    IF NEW.corrects_line_id IS NOT NULL AND NOT EXISTS (
        SELECT FROM billing_invoiceline l JOIN billing_invoice i ON i.id = l.invoice_id
        WHERE l.id = NEW.corrects_line_id AND l.invoice_id = document.corrects_id
            AND l.reservation_id IS NOT DISTINCT FROM NEW.reservation_id
            AND i.kind = 'invoice' AND i.currency = document.currency
            AND i.organization_id = document.organization_id
    ) THEN
        RAISE EXCEPTION 'line % corrects a line of another document', NEW.id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'credit_is_of_its_invoice';
    END IF;
    RETURN NEW;
END $$;

-- On the document and not on its lines: one without lines has none that could complain.
CREATE FUNCTION billing_refuse_wrong_invoice() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    found record;
BEGIN
    SELECT count(*) AS lines, coalesce(sum(net_minor), 0) AS net, coalesce(sum(tax_minor), 0) AS tax
    INTO found FROM billing_invoiceline WHERE invoice_id = NEW.id;
    IF found.lines = 0 OR (found.net, found.tax) IS DISTINCT FROM (NEW.net_minor, NEW.tax_minor) THEN
        RAISE EXCEPTION 'the % lines of % make % and %', found.lines, NEW.number, found.net, found.tax
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'invoice_lines_add_up';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION billing_refuse_excess_credit() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF EXISTS (
        SELECT FROM billing_invoiceline l
        WHERE l.id = NEW.corrects_line_id AND (
            l.net_minor < (SELECT sum(c.net_minor) FROM billing_invoiceline c WHERE c.corrects_line_id = l.id)
            OR l.tax_minor < (
                SELECT sum(c.tax_minor) FROM billing_invoiceline c WHERE c.corrects_line_id = l.id)
        )
    ) THEN
        RAISE EXCEPTION 'more is credited of line % than was invoiced', NEW.corrects_line_id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'credit_is_at_most_the_line';
    END IF;
    RETURN NULL;
END $$;
"""

DROP_FUNCTIONS = """
DROP FUNCTION billing_refuse_excess_credit();
DROP FUNCTION billing_refuse_wrong_invoice();
DROP FUNCTION billing_seal_invoice_line();
DROP FUNCTION billing_seal_invoice();
"""

TRIGGERS = """
CREATE TRIGGER invoice_seal BEFORE INSERT ON billing_invoice
    FOR EACH ROW EXECUTE FUNCTION billing_seal_invoice();
CREATE TRIGGER invoice_line_seal BEFORE INSERT ON billing_invoiceline
    FOR EACH ROW EXECUTE FUNCTION billing_seal_invoice_line();
CREATE CONSTRAINT TRIGGER invoice_sum AFTER INSERT ON billing_invoice DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_wrong_invoice();
CREATE CONSTRAINT TRIGGER invoice_line_credit AFTER INSERT ON billing_invoiceline
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.corrects_line_id IS NOT NULL)
    EXECUTE FUNCTION billing_refuse_excess_credit();
CREATE TRIGGER books_keep_rows BEFORE DELETE ON billing_invoiceseries
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER books_keep_table BEFORE TRUNCATE ON billing_invoiceseries
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER row_guard BEFORE UPDATE ON billing_invoiceseries
    FOR EACH ROW EXECUTE FUNCTION billing_guard_columns('last_sequence', 'last_issued_at');
"""

DROP_TRIGGERS = """
DROP TRIGGER row_guard ON billing_invoiceseries;
DROP TRIGGER books_keep_table ON billing_invoiceseries;
DROP TRIGGER books_keep_rows ON billing_invoiceseries;
DROP TRIGGER invoice_line_credit ON billing_invoiceline;
DROP TRIGGER invoice_sum ON billing_invoice;
DROP TRIGGER invoice_line_seal ON billing_invoiceline;
DROP TRIGGER invoice_seal ON billing_invoice;
"""


def _keep(table: str) -> tuple[str, str]:
    """Return the statements, and their reverse, that let nothing of a table change or go."""
    return (
        f"""
        CREATE TRIGGER books_keep_rows BEFORE UPDATE OR DELETE ON {table}
            FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();
        CREATE TRIGGER books_keep_table BEFORE TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
        """,
        f"""
        DROP TRIGGER books_keep_table ON {table};
        DROP TRIGGER books_keep_rows ON {table};
        """,
    )


class Migration(migrations.Migration):
    dependencies = [("billing", "0010_invoices")]

    operations = [
        migrations.RunSQL(FUNCTIONS, DROP_FUNCTIONS),
        migrations.RunSQL(TRIGGERS, DROP_TRIGGERS),
        *(migrations.RunSQL(*_keep(table)) for table in KEPT_TABLES),
    ]
