"""Let a reason be any word of its enumeration without a migration for each new one."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("scheduler", "0006_changes"),
    ]

    operations = [
        migrations.AlterField(
            model_name="leasetransition",
            name="reason",
            field=models.CharField(db_comment="of LeaseReason", max_length=40),
        ),
        migrations.AlterField(
            model_name="reservationtransition",
            name="reason",
            field=models.CharField(db_comment="of ReservationReason", max_length=40),
        ),
    ]
