"""PostgreSQL refuses to change a version of prices; old ones that no quote names may be thinned out."""

from django.db import migrations

_FORWARD = """
CREATE FUNCTION scheduler_refuse_change() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: the table is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', CONSTRAINT = TG_TABLE_NAME || '_is_append_only';
END $$;
CREATE TRIGGER scheduler_priceversion_is_append_only BEFORE UPDATE ON scheduler_priceversion
FOR EACH ROW EXECUTE FUNCTION scheduler_refuse_change();
"""
_BACKWARD = """
DROP TRIGGER scheduler_priceversion_is_append_only ON scheduler_priceversion;
DROP FUNCTION scheduler_refuse_change();
"""


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0017_weights_of_owners")]
    operations = [migrations.RunSQL(_FORWARD, _BACKWARD)]
