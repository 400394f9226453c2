from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0020_paid_in_parts")]

    operations = [
        migrations.AddField(
            model_name="reservation",
            name="is_payment_held",
            field=models.BooleanField(
                db_comment="confirmed by a price that is held, and was not taken", default=False
            ),
        ),
        migrations.AddConstraint(
            model_name="reservation",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("is_payment_held", False),
                    ("status__in", ("scheduled", "payment_failed", "cancelled")),
                    _connector="OR",
                ),
                name="reservation_is_taken_before_it_begins",
            ),
        ),
    ]
