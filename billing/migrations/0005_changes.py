"""What a tenant changes of its reservation, and who gets the fee for it."""

import django.db.models.deletion
import marketplace.core.ids
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0004_kinds_without_choices"),
        ("marketplace", "0004_events"),
        ("scheduler", "0006_changes"),
    ]

    operations = [
        migrations.AlterField(
            model_name="payout",
            name="settlement",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="payout",
                to="billing.settlement",
            ),
        ),
        migrations.CreateModel(
            name="FeeShare",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=marketplace.core.ids.new_fee_share_id,
                        max_length=32,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("amount_minor", models.BigIntegerField()),
                ("currency", models.CharField(max_length=3)),
                ("created_at", models.DateTimeField()),
                ("release_due_at", models.DateTimeField(db_comment="becomes payable to the owner")),
                ("released_at", models.DateTimeField(null=True)),
                (
                    "change",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="fee_shares",
                        to="scheduler.change",
                    ),
                ),
                (
                    "entry",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="fee_share",
                        to="billing.entry",
                    ),
                ),
                (
                    "owner",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="fee_shares",
                        to="marketplace.organization",
                    ),
                ),
            ],
            options={
                "ordering": ["id"],
            },
        ),
        migrations.AddField(
            model_name="payout",
            name="fee_share",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="payout",
                to="billing.feeshare",
            ),
        ),
        migrations.AddConstraint(
            model_name="payout",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("fee_share__isnull", True), ("settlement__isnull", False)),
                    models.Q(("fee_share__isnull", False), ("settlement__isnull", True)),
                    _connector="OR",
                ),
                name="payout_is_for_one_thing",
            ),
        ),
        migrations.AddIndex(
            model_name="feeshare",
            index=models.Index(
                condition=models.Q(("released_at__isnull", True)),
                fields=["release_due_at"],
                name="fee_share_due_to_release",
            ),
        ),
        migrations.AddConstraint(
            model_name="feeshare",
            constraint=models.UniqueConstraint(
                fields=("change", "owner"), name="fee_share_is_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="feeshare",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_minor__gt", 0)), name="fee_share_is_positive"
            ),
        ),
    ]
