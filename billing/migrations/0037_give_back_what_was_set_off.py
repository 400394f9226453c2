"""Give owners back what they were charged beyond a dispute's cost, and let them bear late credits."""

import django.db.models.deletion
from django.db import migrations, models


TABLE = "billing_disputereturn"


def _guards() -> list[migrations.RunSQL]:
    """Return the triggers by which the table keeps what is in it."""
    return [
        migrations.RunSQL(
            f"CREATE TRIGGER {name} BEFORE {events} ON {TABLE} "
            f"FOR EACH {level} EXECUTE FUNCTION billing_refuse_change();",
            f"DROP TRIGGER {name} ON {TABLE};",
        )
        for name, events, level in (
            ("books_keep_rows", "UPDATE OR DELETE", "ROW"),
            ("books_keep_table", "TRUNCATE", "STATEMENT"),
        )
    ]


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0035_card_inquiries"),
        ("marketplace", "0008_webhook_calls"),
    ]

    operations = [
        migrations.CreateModel(
            name="DisputeReturn",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("amount_minor", models.BigIntegerField()),
                (
                    "netted_minor",
                    models.BigIntegerField(
                        db_comment="of it, what the owner owed and owes no more; the rest is a payout"
                    ),
                ),
                ("currency", models.CharField(max_length=3)),
                ("returned_at", models.DateTimeField()),
            ],
            options={
                "ordering": ["id"],
            },
        ),
        migrations.RemoveConstraint(
            model_name="correction",
            name="correction_without_entry_moves_nothing",
        ),
        migrations.RemoveConstraint(
            model_name="payout",
            name="payout_is_for_one_thing",
        ),
        migrations.AddField(
            model_name="correction",
            name="credit_of_owner_minor",
            field=models.BigIntegerField(
                db_comment="difference; what more of all credits the owner bears, negative: the market does",
                default=0,
            ),
        ),
        migrations.AlterField(
            model_name="correction",
            name="credit_minor",
            field=models.BigIntegerField(
                db_comment="beyond what was refunded; what a settlement would have given as well",
                default=0,
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
                        ("credit_of_owner_minor", 0),
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
        migrations.AddField(
            model_name="disputereturn",
            name="charge",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="returns",
                to="billing.disputecharge",
            ),
        ),
        migrations.AddField(
            model_name="disputereturn",
            name="entry",
            field=models.OneToOneField(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="dispute_return",
                to="billing.entry",
            ),
        ),
        migrations.AddField(
            model_name="payout",
            name="dispute_return",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="payout",
                to="billing.disputereturn",
            ),
        ),
        migrations.AddConstraint(
            model_name="payout",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("correction__isnull", True),
                        ("dispute_return__isnull", True),
                        ("fee_share__isnull", True),
                        ("reserve__isnull", True),
                        ("settlement__isnull", False),
                    ),
                    models.Q(
                        ("correction__isnull", True),
                        ("dispute_return__isnull", True),
                        ("fee_share__isnull", False),
                        ("reserve__isnull", True),
                        ("settlement__isnull", True),
                    ),
                    models.Q(
                        ("correction__isnull", True),
                        ("dispute_return__isnull", True),
                        ("fee_share__isnull", True),
                        ("reserve__isnull", False),
                        ("settlement__isnull", True),
                    ),
                    models.Q(
                        ("correction__isnull", False),
                        ("dispute_return__isnull", True),
                        ("fee_share__isnull", True),
                        ("reserve__isnull", True),
                        ("settlement__isnull", True),
                    ),
                    models.Q(
                        ("correction__isnull", True),
                        ("dispute_return__isnull", False),
                        ("fee_share__isnull", True),
                        ("reserve__isnull", True),
                        ("settlement__isnull", True),
                    ),
                    _connector="OR",
                ),
                name="payout_is_for_one_thing",
            ),
        ),
        migrations.AddConstraint(
            model_name="disputereturn",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("amount_minor__gt", 0),
                    ("netted_minor__gte", 0),
                    ("netted_minor__lte", models.F("amount_minor")),
                ),
                name="dispute_return_makes_sense",
            ),
        ),
        *_guards(),
    ]
