"""A closed hour remembers what its owner's floors ask; those of before were of one floor."""

from django.db import migrations, models

_ONE_FLOOR = """
ALTER TABLE billing_earnedhour DISABLE TRIGGER USER;
UPDATE billing_earnedhour h
   SET floor_micros = h.gpu_seconds_delivered * (r.lots #>> '{0,floors,0,2}')::numeric
  FROM scheduler_lease l JOIN scheduler_reservation r ON r.id = l.reservation_id
 WHERE l.id = h.lease_id;
ALTER TABLE billing_earnedhour ENABLE TRIGGER USER;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0011_guard_the_invoices"),
        ("scheduler", "0016_lots"),
    ]

    operations = [
        migrations.AddField(
            model_name="earnedhour",
            name="floor_micros",
            field=models.DecimalField(
                db_comment="owner's floors of what was delivered: micros per hour × seconds, exact",
                decimal_places=0,
                default=0,
                max_digits=40,
            ),
            preserve_default=False,
        ),
        migrations.RunSQL(_ONE_FLOOR, migrations.RunSQL.noop),
    ]
