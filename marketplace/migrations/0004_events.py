"""What organizations are told."""

import django.db.models.deletion
import marketplace.core.ids
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("marketplace", "0003_built_in_gpu_models"),
    ]

    operations = [
        migrations.CreateModel(
            name="Event",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=marketplace.core.ids.new_event_id,
                        max_length=32,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        db_comment="of EventKind: reservation.scheduled", max_length=60
                    ),
                ),
                ("object_id", models.CharField(db_comment="what it is about", max_length=32)),
                ("data", models.JSONField(db_comment="no secret", default=dict)),
                ("key", models.CharField(db_comment="one event per key, ever", max_length=200)),
                ("at", models.DateTimeField()),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="events",
                        to="marketplace.organization",
                    ),
                ),
            ],
            options={
                "ordering": ["-id"],
                "indexes": [models.Index(fields=["organization", "-id"], name="event_by_tenant")],
                "constraints": [
                    models.UniqueConstraint(fields=("key",), name="event_is_told_once")
                ],
            },
        ),
    ]
