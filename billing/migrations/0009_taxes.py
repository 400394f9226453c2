import django.db.models.deletion
from django.db import migrations, models


# Nothing of these changes or goes: a rule and a status are written anew, terms and lines stand.
APPEND_ONLY_TABLES = (
    "billing_reservationtax",
    "billing_taxline",
    "billing_taxrule",
    "billing_taxstatus",
)


def _keep_rows(table: str) -> list[tuple[str, str]]:
    """Return the statements, each with its reverse, that let nothing of a table change or go."""
    return [
        (
            (
                f"CREATE TRIGGER {name} BEFORE {events} ON {table} "
                f"FOR EACH {level} EXECUTE FUNCTION billing_refuse_change();"
            ),
            f"DROP TRIGGER {name} ON {table};",
        )
        for name, events, level in (
            ("books_keep_rows", "UPDATE OR DELETE", "ROW"),
            ("books_keep_table", "TRUNCATE", "STATEMENT"),
        )
    ]


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0008_provider"),
        ("marketplace", "0004_events"),
        ("scheduler", "0015_relocation_reason"),
    ]

    operations = [
        migrations.CreateModel(
            name="ReservationTax",
            fields=[
                (
                    "reservation",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="tax_terms",
                        serialize=False,
                        to="scheduler.reservation",
                    ),
                ),
                ("jurisdiction", models.CharField(max_length=6)),
                (
                    "treatment",
                    models.CharField(
                        choices=[
                            ("standard", "Standard"),
                            ("reverse_charge", "Reverse Charge"),
                            ("exempt", "Exempt"),
                        ],
                        max_length=20,
                    ),
                ),
                ("rate_basis_points", models.PositiveIntegerField()),
                ("name", models.CharField(blank=True, max_length=200)),
                ("tax_id", models.CharField(blank=True, max_length=40)),
                ("frozen_at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("rate_basis_points__lte", 10000)),
                        name="reservation_tax_is_a_share",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("treatment", "standard"), ("rate_basis_points", 0), _connector="OR"
                        ),
                        name="reservation_tax_follows_its_treatment",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="TaxRule",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "jurisdiction",
                    models.CharField(help_text="DE, or a part of a country: US-CA", max_length=6),
                ),
                ("version", models.PositiveIntegerField(db_comment="from 1 for each jurisdiction")),
                ("name", models.CharField(help_text="as documents say it: VAT", max_length=200)),
                (
                    "rate_basis_points",
                    models.PositiveIntegerField(help_text="of the net price; 1900 is 19 %"),
                ),
                ("valid_from", models.DateTimeField()),
                ("created_at", models.DateTimeField()),
                ("created_by", models.CharField(max_length=100)),
            ],
            options={
                "ordering": ["jurisdiction", "-version"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("jurisdiction", "version"), name="tax_rule_version_is_unique"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("jurisdiction__regex", "^[A-Z]{2}(-[A-Z0-9]{1,3})?$")),
                        name="tax_rule_has_a_place",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("rate_basis_points__lte", 10000)),
                        name="tax_rule_is_a_share",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("valid_from__gte", models.F("created_at"))),
                        name="tax_rule_is_not_backdated",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="TaxLine",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("currency", models.CharField(max_length=3)),
                ("net_charged_minor", models.BigIntegerField()),
                ("net_refunded_minor", models.BigIntegerField()),
                ("tax_charged_minor", models.BigIntegerField()),
                ("tax_refunded_minor", models.BigIntegerField()),
                (
                    "is_relief",
                    models.BooleanField(
                        db_comment="of an invoice that was written off", default=False
                    ),
                ),
                (
                    "at",
                    models.DateTimeField(
                        db_comment="when it was posted: the period in which it is filed",
                        db_index=True,
                    ),
                ),
                (
                    "entry",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="tax_line",
                        to="billing.entry",
                    ),
                ),
                (
                    "reservation",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="lines",
                        to="billing.reservationtax",
                    ),
                ),
            ],
            options={
                "ordering": ["id"],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("net_charged_minor__gte", 0),
                            ("net_refunded_minor__gte", 0),
                            ("tax_charged_minor__gte", 0),
                            ("tax_refunded_minor__gte", 0),
                        ),
                        name="tax_line_is_not_negative",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="TaxStatus",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("version", models.PositiveIntegerField(db_comment="from 1 for each organization")),
                (
                    "jurisdiction",
                    models.CharField(help_text="DE, or a part of a country: US-CA", max_length=6),
                ),
                (
                    "treatment",
                    models.CharField(
                        choices=[
                            ("standard", "Standard"),
                            ("reverse_charge", "Reverse Charge"),
                            ("exempt", "Exempt"),
                        ],
                        max_length=20,
                    ),
                ),
                (
                    "tax_id",
                    models.CharField(
                        blank=True, help_text="needed for reverse charge", max_length=40
                    ),
                ),
                ("valid_from", models.DateTimeField()),
                ("created_at", models.DateTimeField()),
                ("created_by", models.CharField(max_length=100)),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="tax_statuses",
                        to="marketplace.organization",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "tax statuses",
                "ordering": ["organization", "-version"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("organization", "version"), name="tax_status_version_is_unique"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("jurisdiction__regex", "^[A-Z]{2}(-[A-Z0-9]{1,3})?$")),
                        name="tax_status_has_a_place",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("treatment", "reverse_charge"), _negated=True),
                            models.Q(("tax_id", ""), _negated=True),
                            _connector="OR",
                        ),
                        name="tax_status_names_who_pays",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("valid_from__gte", models.F("created_at"))),
                        name="tax_status_is_not_backdated",
                    ),
                ],
            },
        ),
        *(
            migrations.RunSQL(forwards, backwards)
            for table in APPEND_ONLY_TABLES
            for forwards, backwards in _keep_rows(table)
        ),
    ]
