"""A turn-round after every allocation, and when its GPUs are occupied, computed by PostgreSQL.

Adding the computed column writes the table once; the exclusion constraint is built anew on it. Where a million
bookings stand that takes minutes, in which nothing is sold.
"""

import django.contrib.postgres.constraints
import django.contrib.postgres.fields.ranges
from django.contrib.postgres.fields import RangeOperators
from django.db import migrations, models

# A timestamp plus an interval of seconds is the same instant in every time zone, so it may be IMMUTABLE,
# which PostgreSQL cannot know of its own operator. Names are qualified instead of a search path: setting one
# for each row costs more than the sum.
OCCUPIED = """
CREATE FUNCTION scheduler_occupied(
    period tstzrange, turnaround_seconds integer, live boolean, free_at timestamptz
) RETURNS tstzrange LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF live AND turnaround_seconds OPERATOR(pg_catalog.=) 0 THEN
        RETURN period;
    ELSIF live THEN
        RETURN pg_catalog.tstzrange(pg_catalog.lower(period), pg_catalog.upper(period)
            OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => turnaround_seconds));
    ELSIF free_at IS NOT NULL THEN
        RETURN pg_catalog.tstzrange(pg_catalog.lower(period), free_at);
    END IF;
    RETURN NULL;
END $$;
"""
UNDO_OCCUPIED = """
DROP FUNCTION scheduler_occupied(tstzrange, integer, boolean, timestamptz);
"""

MARKS = """
CREATE OR REPLACE FUNCTION scheduler_mark_added() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO scheduler_calendarmark (slots, period)
    SELECT slots, occupied FROM added WHERE occupied IS NOT NULL;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION scheduler_mark_changed() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO scheduler_calendarmark (slots, period)
    SELECT place.slots, place.occupied
    FROM removed JOIN added USING (id)
    CROSS JOIN LATERAL (VALUES
        (removed.slots, removed.occupied), (added.slots, added.occupied)
    ) AS place (slots, occupied)
    WHERE place.occupied IS NOT NULL
      AND (removed.slots, removed.occupied) IS DISTINCT FROM (added.slots, added.occupied);
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION scheduler_mark_removed() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO scheduler_calendarmark (slots, period)
    SELECT slots, occupied FROM removed WHERE occupied IS NOT NULL;
    RETURN NULL;
END $$;
"""
UNDO_MARKS = """
CREATE OR REPLACE FUNCTION scheduler_mark_added() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO scheduler_calendarmark (slots, period)
    SELECT slots, period FROM added WHERE live;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION scheduler_mark_changed() RETURNS trigger LANGUAGE plpgsql
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

CREATE OR REPLACE FUNCTION scheduler_mark_removed() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO scheduler_calendarmark (slots, period)
    SELECT slots, period FROM removed WHERE live;
    RETURN NULL;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("scheduler", "0018_price_versions_never_change"),
    ]

    operations = [
        migrations.RunSQL(sql=OCCUPIED, reverse_sql=UNDO_OCCUPIED),
        migrations.AddField(
            model_name="allocation",
            name="turnaround_seconds",
            field=models.PositiveIntegerField(
                db_comment="after the period, as the listing asked when this was sold", default=0
            ),
        ),
        migrations.AddField(
            model_name="allocation",
            name="free_at",
            field=models.DateTimeField(
                db_comment="when a turn-round is over whose tenant is gone; null: there is none",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="allocation",
            name="occupied",
            field=models.GeneratedField(
                db_comment="half-open; null: others may have the slots",
                db_persist=True,
                expression=models.Func(
                    "period",
                    "turnaround_seconds",
                    "live",
                    "free_at",
                    function="scheduler_occupied",
                ),
                output_field=django.contrib.postgres.fields.ranges.DateTimeRangeField(null=True),
            ),
        ),
        migrations.RemoveConstraint(model_name="allocation", name="allocation_no_overlap"),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=django.contrib.postgres.constraints.ExclusionConstraint(
                condition=models.Q(("occupied__isnull", False)),
                expressions=[
                    ("slots", RangeOperators.OVERLAPS),
                    ("occupied", RangeOperators.OVERLAPS),
                ],
                name="allocation_no_overlap",
            ),
        ),
        migrations.AddIndex(
            model_name="allocation",
            index=models.Index(
                condition=models.Q(("free_at__isnull", False)),
                fields=["free_at"],
                name="allocation_turning_round",
            ),
        ),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("free_at__isnull", True),
                    models.Q(("live", False), ("turnaround_seconds__gt", 0)),
                    _connector="OR",
                ),
                name="allocation_turns_round_when_over",
            ),
        ),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=models.CheckConstraint(
                condition=models.Q(("turnaround_seconds__lte", 86400)),
                name="allocation_turnaround_is_bounded",
            ),
        ),
        migrations.RunSQL(sql=MARKS, reverse_sql=UNDO_MARKS),
    ]
