"""Keep which GPUs a change gave back for a fee, and for which time."""

import django.contrib.postgres.fields.ranges
import django.contrib.postgres.indexes
import django.db.models.deletion
from django.db import migrations, models


_GUARD = """
CREATE TRIGGER scheduler_releasedplace_is_append_only BEFORE UPDATE OR DELETE ON scheduler_releasedplace
FOR EACH ROW EXECUTE FUNCTION scheduler_refuse_change();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("agents", "0006_return_overdue"),
        ("scheduler", "0022_moves_paid_by_card"),
    ]

    operations = [
        migrations.AddField(
            model_name="change",
            name="from_lots",
            field=models.JSONField(
                db_comment="what was bought before, where a fee was kept of what is given back; else empty",
                default=list,
            ),
        ),
        migrations.CreateModel(
            name="ReleasedPlace",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "slots",
                    django.contrib.postgres.fields.ranges.IntegerRangeField(
                        db_comment="half-open, within the node's block"
                    ),
                ),
                ("lot", models.PositiveSmallIntegerField()),
                (
                    "period",
                    django.contrib.postgres.fields.ranges.DateTimeRangeField(
                        db_comment="half-open"
                    ),
                ),
                (
                    "change",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="released_places",
                        to="scheduler.change",
                    ),
                ),
                (
                    "node",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="released_places",
                        to="agents.node",
                    ),
                ),
            ],
            options={
                "ordering": ["id"],
                "indexes": [
                    django.contrib.postgres.indexes.GistIndex(
                        fields=["slots", "period"], name="released_place_of_slots"
                    )
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("period__isempty", False), ("slots__isempty", False)),
                        name="released_place_is_not_empty",
                    )
                ],
            },
        ),
        migrations.RunSQL(
            _GUARD,
            "DROP TRIGGER scheduler_releasedplace_is_append_only ON scheduler_releasedplace;",
        ),
    ]
