"""Share what owners got twice with those who left the time that was sold again."""

import django.contrib.postgres.constraints
import django.contrib.postgres.fields.ranges
import django.db.models.deletion
import marketplace.core.ids
from django.db import migrations, models


TABLES = ("billing_resale", "billing_resalepart")


def _guards() -> list[migrations.RunSQL]:
    """Return the triggers by which the tables keep what is in them."""
    return [
        migrations.RunSQL(
            f"CREATE TRIGGER {name} BEFORE {events} ON {table} "
            f"FOR EACH {level} EXECUTE FUNCTION billing_refuse_change();",
            f"DROP TRIGGER {name} ON {table};",
        )
        for table in TABLES
        for name, events, level in (
            ("books_keep_rows", "UPDATE OR DELETE", "ROW"),
            ("books_keep_table", "TRUNCATE", "STATEMENT"),
        )
    ]


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0032_wallet_holds"),
    ]

    operations = [
        migrations.AddField(
            model_name="feeshare",
            name="resale_basis_points",
            field=models.PositiveIntegerField(
                db_comment="of what the owner gets twice, to who left; as it was when the fee was kept",
                default=0,
            ),
        ),
        migrations.CreateModel(
            name="Resale",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=marketplace.core.ids.new_resale_id,
                        max_length=32,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("currency", models.CharField(max_length=3)),
                ("gpu_seconds", models.BigIntegerField(db_comment="delivered again")),
                (
                    "worth_micro_seconds",
                    models.BigIntegerField(
                        db_comment="of these by the lots that were given back: micros per GPU-hour times seconds"
                    ),
                ),
                (
                    "earned_minor",
                    models.BigIntegerField(
                        db_comment="by the lease for these, fee and credits out"
                    ),
                ),
                (
                    "fee_part_minor",
                    models.BigIntegerField(db_comment="of the owner's part of the fee, for these"),
                ),
                (
                    "taken_minor",
                    models.BigIntegerField(db_comment="from what the lease earned its owner"),
                ),
                ("share_minor", models.BigIntegerField(db_comment="to the tenant that left")),
                ("shared_at", models.DateTimeField()),
                (
                    "entry",
                    models.OneToOneField(
                        db_comment="null: nothing was taken",
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="resale",
                        to="billing.entry",
                    ),
                ),
                (
                    "fee_share",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="resales",
                        to="billing.feeshare",
                    ),
                ),
                (
                    "settlement",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="resales",
                        to="billing.settlement",
                    ),
                ),
            ],
            options={
                "ordering": ["id"],
            },
        ),
        migrations.CreateModel(
            name="ResalePart",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "slots",
                    django.contrib.postgres.fields.ranges.IntegerRangeField(db_comment="half-open"),
                ),
                (
                    "period",
                    django.contrib.postgres.fields.ranges.DateTimeRangeField(
                        db_comment="half-open, between the handover and the return"
                    ),
                ),
                ("gpu_seconds", models.BigIntegerField(db_comment="delivered")),
                (
                    "resale",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="parts",
                        to="billing.resale",
                    ),
                ),
            ],
            options={
                "ordering": ["id"],
            },
        ),
        migrations.AddConstraint(
            model_name="resale",
            constraint=models.UniqueConstraint(
                fields=("fee_share", "settlement"), name="resale_is_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="resale",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("share_minor__gte", 0),
                    ("share_minor__lte", models.F("taken_minor")),
                    ("taken_minor__lte", models.F("earned_minor")),
                    ("taken_minor__lte", models.F("fee_part_minor")),
                ),
                name="resale_takes_what_was_paid_twice",
            ),
        ),
        migrations.AddConstraint(
            model_name="resale",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("entry__isnull", False), ("taken_minor__gt", 0)),
                    models.Q(("entry__isnull", True), ("taken_minor", 0)),
                    _connector="OR",
                ),
                name="resale_without_entry_takes_nothing",
            ),
        ),
        migrations.AddConstraint(
            model_name="resalepart",
            constraint=django.contrib.postgres.constraints.ExclusionConstraint(
                expressions=[("slots", "&&"), ("period", "&&")], name="resale_part_is_shared_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="resalepart",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("gpu_seconds__gt", 0), ("period__isempty", False), ("slots__isempty", False)
                ),
                name="resale_part_is_not_empty",
            ),
        ),
        *_guards(),
    ]
