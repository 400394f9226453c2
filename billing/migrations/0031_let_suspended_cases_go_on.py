"""Look once more at the debts of tenants that were suspended, whose step was taken for the last one.

Until a suspension cancelled a part at a time, it ended with the first hundred reservations and was never due
again. A case with nothing left to cancel has no next step after this look, as before.
"""

from django.db import migrations

LOOK_AGAIN = """
UPDATE billing_dunningcase SET act_due_at = now()
WHERE status = 'suspended' AND act_due_at IS NULL
"""


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0029_dismiss_differences"),
    ]

    operations = [migrations.RunSQL(LOOK_AGAIN, migrations.RunSQL.noop)]
