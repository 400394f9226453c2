"""Let reservations say that their price is held, where it was before they could."""

from django.db import migrations

HELD = """
UPDATE scheduler_reservation AS reservation SET is_payment_held = true
FROM billing_payment AS payment
WHERE payment.reservation_id = reservation.id AND payment.status = 'authorized'
    AND reservation.status = 'scheduled';
"""


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0024_approval_limit_takes_two"),
        ("scheduler", "0021_held_payments"),
    ]

    operations = [migrations.RunSQL(HELD, migrations.RunSQL.noop)]
