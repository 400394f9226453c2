"""The counter of slot blocks, and the guard that keeps evidence as it was written."""

from django.db import migrations

CREATE_SEQUENCE = """
CREATE SEQUENCE agents_slot_block AS bigint MINVALUE 0 MAXVALUE 134217727 START WITH 0 NO CYCLE
"""  # the last block still fits the four bytes of slot_base

CREATE_GUARD = """
CREATE FUNCTION agents_refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: the table is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', CONSTRAINT = TG_TABLE_NAME || '_is_append_only';
END
$$;
CREATE TRIGGER agents_nodetransition_is_append_only BEFORE UPDATE OR DELETE ON agents_nodetransition
    FOR EACH ROW EXECUTE FUNCTION agents_refuse_change();
CREATE TRIGGER agents_receipt_is_append_only BEFORE UPDATE OR DELETE ON agents_receipt
    FOR EACH ROW EXECUTE FUNCTION agents_refuse_change();
CREATE TRIGGER agents_meterreading_is_append_only BEFORE UPDATE OR DELETE ON agents_meterreading
    FOR EACH ROW EXECUTE FUNCTION agents_refuse_change();
"""

DROP_GUARD = """
DROP TRIGGER agents_meterreading_is_append_only ON agents_meterreading;
DROP TRIGGER agents_receipt_is_append_only ON agents_receipt;
DROP TRIGGER agents_nodetransition_is_append_only ON agents_nodetransition;
DROP FUNCTION agents_refuse_change();
"""


class Migration(migrations.Migration):
    dependencies = [("agents", "0001_first_tables")]

    operations = [
        migrations.RunSQL(CREATE_SEQUENCE, "DROP SEQUENCE agents_slot_block"),
        migrations.RunSQL(CREATE_GUARD, DROP_GUARD),
    ]
