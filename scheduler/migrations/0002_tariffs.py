"""Prices become step functions of time; what was sold at one rate is a step function of one step."""

from django.db import migrations, models

_ONE_STEP = """
UPDATE scheduler_{table} SET tariff = jsonb_build_array(jsonb_build_array(
    floor(extract(epoch FROM starts_at))::bigint,
    floor(extract(epoch FROM ends_at))::bigint,
    (rate * 1000000)::bigint))
"""


class Migration(migrations.Migration):
    dependencies = [
        ("scheduler", "0001_first_tables"),
    ]

    operations = [
        migrations.AddField(
            model_name="quote",
            name="tariff",
            field=models.JSONField(
                db_comment="rows of start, end (epoch seconds) and micros per GPU-hour: the price, hour by hour",
                default=[],
            ),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="reservation",
            name="tariff",
            field=models.JSONField(
                db_comment="rows of start, end (epoch seconds) and micros per GPU-hour: the price, hour by hour",
                default=[],
            ),
            preserve_default=False,
        ),
        migrations.RunSQL(_ONE_STEP.format(table="quote"), migrations.RunSQL.noop),
        migrations.RunSQL(_ONE_STEP.format(table="reservation"), migrations.RunSQL.noop),
        migrations.AlterField(
            model_name="quote",
            name="rate",
            field=models.DecimalField(
                db_comment="per GPU-hour, mean of the tariff rounded up",
                decimal_places=6,
                max_digits=18,
            ),
        ),
        migrations.AlterField(
            model_name="quote",
            name="total_minor",
            field=models.BigIntegerField(
                db_comment="minor units, the tariff over the whole window, locked"
            ),
        ),
        migrations.AlterField(
            model_name="reservation",
            name="rate",
            field=models.DecimalField(
                db_comment="per GPU-hour, mean of the tariff rounded up",
                decimal_places=6,
                max_digits=18,
            ),
        ),
        migrations.AlterField(
            model_name="reservation",
            name="total_minor",
            field=models.BigIntegerField(
                db_comment="minor units, the tariff over the whole window"
            ),
        ),
    ]
