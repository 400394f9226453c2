"""An index of the calendar for searches, and triggers that mark what every change leaves out of date.

The functions pin their search path, so that no schema of somebody else can stand in for ours. They are
triggers of statements: a large request is one insert.
"""

import django.contrib.postgres.fields.ranges
import django.db.models.lookups
from django.db import migrations, models

TRIGGERS = """
CREATE FUNCTION scheduler_mark_added() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO scheduler_calendarmark (slots, period)
    SELECT slots, period FROM added WHERE live;
    RETURN NULL;
END $$;

CREATE FUNCTION scheduler_mark_changed() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO scheduler_calendarmark (slots, period)
    SELECT place.slots, place.period
    FROM removed JOIN added USING (id)
    CROSS JOIN LATERAL (VALUES
        (removed.slots, removed.period, removed.live), (added.slots, added.period, added.live)
    ) AS place (slots, period, live)
    WHERE place.live
      AND (removed.slots, removed.period, removed.live)
          IS DISTINCT FROM (added.slots, added.period, added.live);
    RETURN NULL;
END $$;

CREATE FUNCTION scheduler_mark_removed() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO scheduler_calendarmark (slots, period)
    SELECT slots, period FROM removed WHERE live;
    RETURN NULL;
END $$;

CREATE TRIGGER calendar_mark_added AFTER INSERT ON scheduler_allocation
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION scheduler_mark_added();
CREATE TRIGGER calendar_mark_changed AFTER UPDATE ON scheduler_allocation
    REFERENCING OLD TABLE AS removed NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION scheduler_mark_changed();
CREATE TRIGGER calendar_mark_removed AFTER DELETE ON scheduler_allocation
    REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION scheduler_mark_removed();

-- What was sold before there was an index.
INSERT INTO scheduler_calendarmark (slots, period)
SELECT slots, period FROM scheduler_allocation WHERE live;
"""

UNDO = """
DROP TRIGGER calendar_mark_added ON scheduler_allocation;
DROP TRIGGER calendar_mark_changed ON scheduler_allocation;
DROP TRIGGER calendar_mark_removed ON scheduler_allocation;
DROP FUNCTION scheduler_mark_added();
DROP FUNCTION scheduler_mark_changed();
DROP FUNCTION scheduler_mark_removed();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("scheduler", "0002_tariffs"),
    ]

    operations = [
        migrations.CreateModel(
            name="CalendarMark",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("slots", django.contrib.postgres.fields.ranges.IntegerRangeField()),
                ("period", django.contrib.postgres.fields.ranges.DateTimeRangeField()),
            ],
        ),
        migrations.CreateModel(
            name="CalendarWeek",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "week",
                        "block",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("week", models.IntegerField(db_comment="of 168 hours, since the Unix epoch")),
                ("block", models.IntegerField(db_comment="a node's slot_base / 16")),
                (
                    "busy",
                    models.BinaryField(
                        db_comment="168 little-endian uint16; bit i: slot 16 × block + i"
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=django.db.models.lookups.Exact(
                            models.Func(
                                models.F("busy"),
                                function="octet_length",
                                output_field=models.IntegerField(),
                            ),
                            336,
                        ),
                        name="calendar_week_has_168_hours",
                    )
                ],
            },
        ),
        migrations.RunSQL(sql=TRIGGERS, reverse_sql=UNDO),
    ]
