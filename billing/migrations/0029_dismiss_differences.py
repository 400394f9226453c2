"""Let a person dismiss a difference with a reason; the row stays as it was written."""

import django.db.models.deletion
from django.db import migrations, models

GUARD = """
CREATE TRIGGER books_keep_rows BEFORE UPDATE OR DELETE ON billing_dismissal
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER books_keep_table BEFORE TRUNCATE ON billing_dismissal
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
"""
UNGUARD = """
DROP TRIGGER books_keep_table ON billing_dismissal;
DROP TRIGGER books_keep_rows ON billing_dismissal;
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0028_note_what_corrections_measured")]

    operations = [
        migrations.CreateModel(
            name="Dismissal",
            fields=[
                (
                    "difference",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="dismissal",
                        serialize=False,
                        to="billing.difference",
                    ),
                ),
                ("reason", models.CharField(max_length=500)),
                ("actor", models.CharField(max_length=100)),
                ("at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("reason", ""), _negated=True),
                            models.Q(("actor", ""), _negated=True),
                        ),
                        name="dismissal_has_reason_and_person",
                    )
                ],
            },
        ),
        migrations.RunSQL(GUARD, UNGUARD),
    ]
