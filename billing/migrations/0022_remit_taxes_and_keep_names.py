"""Let the market remit tax by two people; keep what was remitted, and what a closed month called things."""

import django.db.models.deletion
from django.db import migrations, models

APPEND_ONLY_TABLES = ("billing_taxremittance",)


def _guards() -> list[migrations.RunSQL]:
    """Return what keeps the rows of the tables as they were written, each with its reverse."""
    found = []
    for table in APPEND_ONLY_TABLES:
        for name, events, level in (
            ("books_keep_rows", "UPDATE OR DELETE", "ROW"),
            ("books_keep_table", "TRUNCATE", "STATEMENT"),
        ):
            found.append(
                migrations.RunSQL(
                    f"CREATE TRIGGER {name} BEFORE {events} ON {table} "
                    f"FOR EACH {level} EXECUTE FUNCTION billing_refuse_change();",
                    f"DROP TRIGGER {name} ON {table};",
                )
            )
    return found


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0021_several_payments_of_a_reservation"),
        ("marketplace", "0006_webhooks"),
    ]

    operations = [
        migrations.CreateModel(
            name="TaxRemittance",
            fields=[
                (
                    "approval",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="tax_remittance",
                        serialize=False,
                        to="billing.approval",
                    ),
                ),
                ("jurisdiction", models.CharField(max_length=6)),
                (
                    "month",
                    models.CharField(db_comment="YYYY-MM, of UTC, that is filed", max_length=7),
                ),
                ("currency", models.CharField(max_length=3)),
                ("amount_minor", models.BigIntegerField()),
                ("at", models.DateTimeField()),
            ],
            options={
                "ordering": ["-at", "-pk"],
            },
        ),
        migrations.AddField(
            model_name="monthclose",
            name="names",
            field=models.JSONField(
                db_comment="what the month's exports call things: later names are of later months",
                default=dict,
            ),
        ),
        migrations.AlterField(
            model_name="approval",
            name="kind",
            field=models.CharField(
                choices=[
                    ("refund", "Refund"),
                    ("write_off", "Write Off"),
                    ("credit", "Credit"),
                    ("unpark", "Unpark"),
                    ("tax_remittance", "Tax Remittance"),
                    ("remittance_reversal", "Remittance Reversal"),
                ],
                max_length=20,
            ),
        ),
        migrations.AlterField(
            model_name="approval",
            name="organization",
            field=models.ForeignKey(
                blank=True,
                db_comment="null: it concerns the market alone",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="approvals",
                to="marketplace.organization",
            ),
        ),
        migrations.AlterField(
            model_name="approval",
            name="subject_id",
            field=models.CharField(
                db_comment="reservation, invoice, organization, remittance, or a place and a month",
                max_length=32,
            ),
        ),
        migrations.AddConstraint(
            model_name="approval",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("kind__in", ("tax_remittance", "remittance_reversal")),
                        ("organization__isnull", True),
                    ),
                    models.Q(
                        models.Q(
                            ("kind__in", ("tax_remittance", "remittance_reversal")), _negated=True
                        ),
                        ("organization__isnull", False),
                    ),
                    _connector="OR",
                ),
                name="approval_is_of_somebody_or_the_market",
            ),
        ),
        migrations.AddField(
            model_name="taxremittance",
            name="entry",
            field=models.OneToOneField(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="tax_remittance",
                to="billing.entry",
            ),
        ),
        migrations.AddIndex(
            model_name="taxremittance",
            index=models.Index(fields=["jurisdiction", "month"], name="tax_remittance_by_month"),
        ),
        migrations.AddConstraint(
            model_name="taxremittance",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_minor__gt", 0)), name="tax_remittance_is_positive"
            ),
        ),
        migrations.AddConstraint(
            model_name="taxremittance",
            constraint=models.CheckConstraint(
                condition=models.Q(("jurisdiction__regex", "^[A-Z]{2}(-[A-Z0-9]{1,3})?$")),
                name="tax_remittance_has_a_place",
            ),
        ),
        *_guards(),
    ]
