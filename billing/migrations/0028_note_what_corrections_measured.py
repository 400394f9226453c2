"""Let a correction say what the meters cover, alone without an entry, and two people rule on silence."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0027_promotions_and_withdrawals"),
        ("scheduler", "0021_held_payments"),
    ]

    operations = [
        migrations.AddField(
            model_name="correction",
            name="gpu_seconds_metered",
            field=models.BigIntegerField(
                db_comment="difference; null: made before it was noted", null=True
            ),
        ),
        migrations.AlterField(
            model_name="correction",
            name="entry",
            field=models.OneToOneField(
                db_comment="null: nothing moved, only more was measured",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="correction",
                to="billing.entry",
            ),
        ),
        migrations.AddConstraint(
            model_name="correction",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("entry__isnull", False),
                    models.Q(
                        ("borne_minor", 0),
                        ("credit_minor", 0),
                        ("earned_minor", 0),
                        ("fee_minor", 0),
                        ("gpu_seconds_busy", 0),
                        ("gpu_seconds_delivered", 0),
                    ),
                    _connector="OR",
                ),
                name="correction_without_entry_moves_nothing",
            ),
        ),
        migrations.CreateModel(
            name="SilentLease",
            fields=[],
            options={
                "ordering": ["closed_at"],
                "proxy": True,
                "indexes": [],
                "constraints": [],
            },
            bases=("scheduler.lease",),
        ),
        migrations.AlterField(
            model_name="approval",
            name="kind",
            field=models.CharField(
                choices=[
                    ("refund", "Refund"),
                    ("write_off", "Write Off"),
                    ("credit", "Credit"),
                    ("dispute", "Dispute"),
                    ("unpark", "Unpark"),
                    ("promotion", "Promotion"),
                    ("withdrawal", "Withdrawal"),
                    ("tax_remittance", "Tax Remittance"),
                    ("remittance_reversal", "Remittance Reversal"),
                    ("silence_delivered", "Silence Delivered"),
                    ("silence_refunded", "Silence Refunded"),
                ],
                max_length=20,
            ),
        ),
    ]
