"""Keep what a bank has taken back from going back twice, and let owners answer for what was lost."""

import django.db.models.deletion
import marketplace.core.ids
from django.db import migrations, models

APPEND_ONLY_TABLE = "billing_disputecharge"
# The columns that may change; no row goes.
NEW_TABLES = {"billing_reversal": ("status", "provider_id", "failure_code", "closed_at")}
# Tables that were guarded before: what may change of them now, and what could until now.
CHANGED_TABLES = {
    "billing_dispute": (("status", "set_off_minor"), ("status",)),
    "billing_reserve": (("released_at", "drawn_minor"), ("released_at",)),
    "billing_payer": (("saved_card_id", "cash_minor", "cash_read_at"), ("saved_card_id",)),
}


def _kept(table: str, *, events: str) -> list[tuple[str, str]]:
    return [
        (
            (
                f"CREATE TRIGGER {name} BEFORE {what} ON {table} "
                f"FOR EACH {level} EXECUTE FUNCTION billing_refuse_change();"
            ),
            f"DROP TRIGGER {name} ON {table};",
        )
        for name, what, level in (
            ("books_keep_rows", events, "ROW"),
            ("books_keep_table", "TRUNCATE", "STATEMENT"),
        )
    ]


def _guard(table: str, columns: tuple[str, ...]) -> str:
    names = ", ".join(f"'{column}'" for column in columns)
    return (
        f"CREATE TRIGGER row_guard BEFORE UPDATE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION billing_guard_columns({names});"
    )


def _statements() -> list[tuple[str, str]]:
    found = _kept(APPEND_ONLY_TABLE, events="UPDATE OR DELETE")
    for table, columns in NEW_TABLES.items():
        found += _kept(table, events="DELETE")
        found.append((_guard(table, columns), f"DROP TRIGGER row_guard ON {table};"))
    for table, (columns, before) in CHANGED_TABLES.items():
        drop = f"DROP TRIGGER row_guard ON {table};"
        found.append((f"{drop} {_guard(table, columns)}", f"{drop} {_guard(table, before)}"))
    return found


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0025_held_reservations"),
        ("marketplace", "0006_webhooks"),
        ("scheduler", "0019_turn_round"),
    ]

    operations = [
        migrations.CreateModel(
            name="DisputeCharge",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("amount_minor", models.BigIntegerField()),
                (
                    "drawn_minor",
                    models.BigIntegerField(db_comment="of it, out of what was kept in reserve"),
                ),
                ("currency", models.CharField(max_length=3)),
                ("charged_at", models.DateTimeField()),
            ],
            options={
                "ordering": ["-charged_at", "id"],
            },
        ),
        migrations.CreateModel(
            name="Reversal",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=marketplace.core.ids.new_reversal_id,
                        max_length=32,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[("asked", "Asked"), ("done", "Done"), ("refused", "Refused")],
                        default="asked",
                        max_length=20,
                    ),
                ),
                ("amount_minor", models.BigIntegerField()),
                ("provider_id", models.CharField(blank=True, db_index=True, max_length=255)),
                ("failure_code", models.CharField(blank=True, max_length=100)),
                ("created_at", models.DateTimeField()),
                ("closed_at", models.DateTimeField(null=True)),
            ],
            options={
                "ordering": ["-id"],
            },
        ),
        migrations.RemoveConstraint(
            model_name="providertransition",
            name="provider_transition_is_legal",
        ),
        migrations.RemoveConstraint(
            model_name="refundtransition",
            name="refund_transition_is_legal",
        ),
        migrations.AddField(
            model_name="dispute",
            name="payment",
            field=models.ForeignKey(
                db_comment="which the bank took back; null: of before that was written down",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="disputes",
                to="billing.payment",
            ),
        ),
        migrations.AddField(
            model_name="dispute",
            name="set_off_minor",
            field=models.BigIntegerField(
                db_comment="of the amount: what the reservation owed the tenant, once it was lost",
                default=0,
            ),
        ),
        migrations.AddField(
            model_name="payer",
            name="cash_minor",
            field=models.BigIntegerField(
                db_comment="on its cash balance there, when that was last read", default=0
            ),
        ),
        migrations.AddField(
            model_name="payer",
            name="cash_read_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="reserve",
            name="drawn_minor",
            field=models.BigIntegerField(
                db_comment="of it, for a dispute that was lost", default=0
            ),
        ),
        migrations.AddField(
            model_name="reserve",
            name="fee_share",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="reserve",
                to="billing.feeshare",
            ),
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
                    ("tax_remittance", "Tax Remittance"),
                    ("remittance_reversal", "Remittance Reversal"),
                ],
                max_length=20,
            ),
        ),
        migrations.AlterField(
            model_name="providertransition",
            name="machine",
            field=models.CharField(
                choices=[
                    ("intent", "Intent"),
                    ("payment", "Payment"),
                    ("refund", "Refund"),
                    ("transfer", "Transfer"),
                    ("dispute", "Dispute"),
                    ("reversal", "Reversal"),
                    ("deposit", "Deposit"),
                ],
                max_length=10,
            ),
        ),
        migrations.AlterField(
            model_name="refund",
            name="status",
            field=models.CharField(
                choices=[
                    ("due", "Due"),
                    ("sent", "Sent"),
                    ("settled", "Settled"),
                    ("failed", "Failed"),
                    ("set_off", "Set Off"),
                ],
                default="due",
                max_length=20,
            ),
        ),
        migrations.AlterField(
            model_name="refundtransition",
            name="to_status",
            field=models.CharField(
                choices=[
                    ("due", "Due"),
                    ("sent", "Sent"),
                    ("settled", "Settled"),
                    ("failed", "Failed"),
                    ("set_off", "Set Off"),
                ],
                max_length=20,
            ),
        ),
        migrations.AlterField(
            model_name="reserve",
            name="settlement",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="reserve",
                to="billing.settlement",
            ),
        ),
        migrations.AddConstraint(
            model_name="dispute",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("set_off_minor__gte", 0),
                    ("set_off_minor__lte", models.F("amount_minor")),
                    models.Q(("status", "lost"), ("set_off_minor", 0), _connector="OR"),
                ),
                name="dispute_sets_off_what_was_lost",
            ),
        ),
        migrations.AddConstraint(
            model_name="providertransition",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("machine", "intent"),
                        models.Q(
                            models.Q(("from_status", ""), ("to_status__in", ["new"])),
                            models.Q(("from_status", "new"), ("to_status", "sent")),
                            models.Q(("from_status", "sent"), ("to_status", "done")),
                            models.Q(("from_status", "sent"), ("to_status", "refused")),
                            models.Q(("from_status", "sent"), ("to_status", "unknown")),
                            models.Q(("from_status", "unknown"), ("to_status", "done")),
                            models.Q(("from_status", "unknown"), ("to_status", "refused")),
                            _connector="OR",
                        ),
                    ),
                    models.Q(
                        ("machine", "payment"),
                        models.Q(
                            models.Q(("from_status", ""), ("to_status__in", ["created"])),
                            models.Q(("from_status", "created"), ("to_status", "open")),
                            models.Q(("from_status", "created"), ("to_status", "authorized")),
                            models.Q(("from_status", "created"), ("to_status", "succeeded")),
                            models.Q(("from_status", "created"), ("to_status", "failed")),
                            models.Q(("from_status", "created"), ("to_status", "cancelled")),
                            models.Q(("from_status", "open"), ("to_status", "authorized")),
                            models.Q(("from_status", "open"), ("to_status", "succeeded")),
                            models.Q(("from_status", "open"), ("to_status", "failed")),
                            models.Q(("from_status", "open"), ("to_status", "cancelled")),
                            models.Q(("from_status", "authorized"), ("to_status", "succeeded")),
                            models.Q(("from_status", "authorized"), ("to_status", "failed")),
                            models.Q(("from_status", "authorized"), ("to_status", "cancelled")),
                            models.Q(("from_status", "failed"), ("to_status", "succeeded")),
                            _connector="OR",
                        ),
                    ),
                    models.Q(
                        ("machine", "refund"),
                        models.Q(
                            models.Q(("from_status", ""), ("to_status__in", ["due"])),
                            models.Q(("from_status", "due"), ("to_status", "pending")),
                            models.Q(("from_status", "due"), ("to_status", "succeeded")),
                            models.Q(("from_status", "due"), ("to_status", "failed")),
                            models.Q(("from_status", "pending"), ("to_status", "succeeded")),
                            models.Q(("from_status", "pending"), ("to_status", "failed")),
                            models.Q(("from_status", "succeeded"), ("to_status", "failed")),
                            _connector="OR",
                        ),
                    ),
                    models.Q(
                        ("machine", "transfer"),
                        models.Q(
                            models.Q(("from_status", ""), ("to_status__in", ["sending"])),
                            models.Q(("from_status", "sending"), ("to_status", "paid")),
                            models.Q(("from_status", "sending"), ("to_status", "failed")),
                            models.Q(("from_status", "paid"), ("to_status", "reversed")),
                            _connector="OR",
                        ),
                    ),
                    models.Q(
                        ("machine", "dispute"),
                        models.Q(
                            models.Q(("from_status", ""), ("to_status__in", ["open"])),
                            models.Q(("from_status", "open"), ("to_status", "won")),
                            models.Q(("from_status", "open"), ("to_status", "lost")),
                            _connector="OR",
                        ),
                    ),
                    models.Q(
                        ("machine", "reversal"),
                        models.Q(
                            models.Q(("from_status", ""), ("to_status__in", ["asked"])),
                            models.Q(("from_status", "asked"), ("to_status", "done")),
                            models.Q(("from_status", "asked"), ("to_status", "refused")),
                            _connector="OR",
                        ),
                    ),
                    models.Q(
                        ("machine", "deposit"),
                        models.Q(
                            models.Q(("from_status", ""), ("to_status__in", ["awaited"])),
                            models.Q(("from_status", "awaited"), ("to_status", "open")),
                            models.Q(("from_status", "open"), ("to_status", "asked")),
                            models.Q(("from_status", "open"), ("to_status", "paid")),
                            models.Q(("from_status", "open"), ("to_status", "ended")),
                            models.Q(("from_status", "asked"), ("to_status", "paid")),
                            models.Q(("from_status", "asked"), ("to_status", "ended")),
                            _connector="OR",
                        ),
                    ),
                    _connector="OR",
                ),
                name="provider_transition_is_legal",
            ),
        ),
        migrations.AddConstraint(
            model_name="refundtransition",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("from_status", ""), ("to_status__in", ["due"])),
                    models.Q(("from_status", "due"), ("to_status", "sent")),
                    models.Q(("from_status", "due"), ("to_status", "set_off")),
                    models.Q(("from_status", "sent"), ("to_status", "settled")),
                    models.Q(("from_status", "sent"), ("to_status", "failed")),
                    models.Q(("from_status", "settled"), ("to_status", "failed")),
                    _connector="OR",
                ),
                name="refund_transition_is_legal",
            ),
        ),
        migrations.AddConstraint(
            model_name="reserve",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("drawn_minor__gte", 0), ("drawn_minor__lte", models.F("amount_minor"))
                ),
                name="reserve_is_drawn_once",
            ),
        ),
        migrations.AddConstraint(
            model_name="reserve",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("fee_share__isnull", True), ("settlement__isnull", False)),
                    models.Q(("fee_share__isnull", False), ("settlement__isnull", True)),
                    _connector="OR",
                ),
                name="reserve_is_of_one_thing",
            ),
        ),
        migrations.AddField(
            model_name="disputecharge",
            name="approval",
            field=models.OneToOneField(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="dispute_charge",
                to="billing.approval",
            ),
        ),
        migrations.AddField(
            model_name="disputecharge",
            name="dispute",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="charges",
                to="billing.dispute",
            ),
        ),
        migrations.AddField(
            model_name="disputecharge",
            name="owner",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="dispute_charges",
                to="marketplace.organization",
            ),
        ),
        migrations.AddField(
            model_name="reversal",
            name="transfer",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="reversals",
                to="billing.transfer",
            ),
        ),
        migrations.AddConstraint(
            model_name="disputecharge",
            constraint=models.UniqueConstraint(
                fields=("dispute", "owner"), name="dispute_is_charged_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="disputecharge",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("amount_minor__gt", 0),
                    ("drawn_minor__gte", 0),
                    ("drawn_minor__lte", models.F("amount_minor")),
                ),
                name="dispute_charge_makes_sense",
            ),
        ),
        migrations.AddConstraint(
            model_name="reversal",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_minor__gt", 0)), name="reversal_is_positive"
            ),
        ),
        *(migrations.RunSQL(forwards, backwards) for forwards, backwards in _statements()),
    ]
