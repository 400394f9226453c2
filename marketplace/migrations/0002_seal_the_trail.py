"""History is append-only: PostgreSQL refuses to change or delete a row of it."""

from django.db import migrations

_TABLES = ("marketplace_listingtransition", "marketplace_auditevent")

_FORWARD = """
CREATE FUNCTION marketplace_refuse_change() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
""" + "".join(
    f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON {table} "
    "FOR EACH ROW EXECUTE FUNCTION marketplace_refuse_change();\n"
    for table in _TABLES
)
_BACKWARD = "".join(f"DROP TRIGGER append_only ON {table};\n" for table in _TABLES) + (
    "DROP FUNCTION marketplace_refuse_change();"
)


class Migration(migrations.Migration):
    dependencies = [("marketplace", "0001_first_tables")]
    operations = [migrations.RunSQL(_FORWARD, _BACKWARD)]
