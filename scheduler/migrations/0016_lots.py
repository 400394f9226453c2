"""What was sold at one tariff is one lot of all its GPUs."""

import django.contrib.postgres.fields
from django.db import migrations, models

_ONE_LOT = """
UPDATE scheduler_{table} SET lots = jsonb_build_array(jsonb_build_object(
    'gpus', {gpus},
    'listing_ids', {listing_ids},
    'tariff', {tariff},
    'floors', jsonb_build_array(jsonb_build_array(
        {tariff} #> '{{0,0}}', {tariff} #> '{{-1,1}}', ({floor} * 1000000)::bigint))))
"""


class Migration(migrations.Migration):
    dependencies = [
        ("scheduler", "0015_relocation_reason"),
    ]

    operations = [
        migrations.AddField(
            model_name="quote",
            name="lots",
            field=models.JSONField(
                db_comment="what the GPUs cost and who may serve: of `scheduler.lots`, one object per lot",
                default=list,
            ),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="reservation",
            name="lots",
            field=models.JSONField(
                db_comment="what the GPUs cost and who may serve: of `scheduler.lots`, one object per lot",
                default=list,
            ),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="changequote",
            name="lots",
            field=models.JSONField(
                db_comment="of the whole window after the change; empty where nothing is left",
                default=list,
            ),
        ),
        migrations.RunSQL(
            _ONE_LOT.format(
                table="quote",
                gpus="gpus",
                listing_ids="to_jsonb(listing_ids)",
                tariff="tariff",
                floor="floor_rate",
            ),
            migrations.RunSQL.noop,
        ),
        migrations.RunSQL(
            _ONE_LOT.format(
                table="reservation r",
                gpus="r.gpus",
                listing_ids="to_jsonb(q.listing_ids)",
                tariff="r.tariff",
                floor="q.floor_rate",
            )
            + " FROM scheduler_quote q WHERE q.id = r.quote_id",
            migrations.RunSQL.noop,
        ),
        migrations.RunSQL(
            _ONE_LOT.format(
                table="changequote c",
                gpus="r.gpus",
                listing_ids="to_jsonb(q.listing_ids)",
                tariff="c.tariff",
                floor="coalesce(c.floor_rate, q.floor_rate)",
            )
            + " FROM scheduler_reservation r JOIN scheduler_quote q ON q.id = r.quote_id"
            " WHERE r.id = c.reservation_id AND c.tariff <> '[]'",
            migrations.RunSQL.noop,
        ),
        migrations.RemoveField(model_name="quote", name="floor_rate"),
        migrations.RemoveField(model_name="quote", name="listing_ids"),
        migrations.RemoveField(model_name="quote", name="tariff"),
        migrations.RemoveField(model_name="reservation", name="tariff"),
        migrations.RemoveField(model_name="changequote", name="floor_rate"),
        migrations.RemoveField(model_name="changequote", name="tariff"),
        migrations.AlterField(
            model_name="quote",
            name="rate",
            field=models.DecimalField(
                db_comment="per GPU-hour, mean of the lots rounded up",
                decimal_places=6,
                max_digits=18,
            ),
        ),
        migrations.AlterField(
            model_name="quote",
            name="total_minor",
            field=models.BigIntegerField(
                db_comment="minor units, the lots over the whole window, locked"
            ),
        ),
        migrations.AlterField(
            model_name="reservation",
            name="rate",
            field=models.DecimalField(
                db_comment="per GPU-hour, mean of the lots rounded up",
                decimal_places=6,
                max_digits=18,
            ),
        ),
        migrations.AlterField(
            model_name="reservation",
            name="total_minor",
            field=models.BigIntegerField(db_comment="minor units, the lots over the whole window"),
        ),
        migrations.AddField(
            model_name="allocation",
            name="lot",
            field=models.PositiveSmallIntegerField(
                db_comment="number of the promise's lot that all the slots are of",
                db_default=0,
                default=0,
            ),
        ),
        migrations.AddField(
            model_name="lease",
            name="gpu_lots",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.PositiveSmallIntegerField(),
                db_comment="number of the lot of each of gpu_uuids; empty: all are of the first",
                default=list,
                size=None,
            ),
        ),
        migrations.AddConstraint(
            model_name="lease",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("gpu_lots__len", 0),
                    ("gpu_lots__len", models.F("gpu_uuids__len")),
                    _connector="OR",
                ),
                name="lease_has_a_lot_per_gpu",
            ),
        ),
    ]
