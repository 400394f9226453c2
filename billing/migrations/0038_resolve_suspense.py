"""Let two people say where money goes of which nobody knew whose it is."""

from django.db import migrations, models

MARKETS_OWN = (
    "tax_remittance",
    "remittance_reversal",
    "suspense_bank",
    "suspense_fees",
    "suspense_market",
)


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0037_give_back_what_was_set_off"),
    ]

    operations = [
        migrations.CreateModel(
            name="SuspenseItem",
            fields=[],
            options={
                "ordering": ["recorded_at", "id"],
                "proxy": True,
                "indexes": [],
                "constraints": [],
            },
            bases=("billing.entry",),
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
                    ("suspense_bank", "Suspense Bank"),
                    ("suspense_wallet", "Suspense Wallet"),
                    ("suspense_fees", "Suspense Fees"),
                    ("suspense_market", "Suspense Market"),
                ],
                max_length=20,
            ),
        ),
        migrations.RemoveConstraint(
            model_name="approval",
            name="approval_is_of_somebody_or_the_market",
        ),
        migrations.AddConstraint(
            model_name="approval",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("kind__in", MARKETS_OWN), ("organization__isnull", True)),
                    models.Q(
                        models.Q(("kind__in", MARKETS_OWN), _negated=True),
                        ("organization__isnull", False),
                    ),
                    _connector="OR",
                ),
                name="approval_is_of_somebody_or_the_market",
            ),
        ),
    ]
