"""Guard what stands between us and the payment provider: what was asked for, and what was told, stays.

Of each table the named columns may change, as an answer comes in; no row goes, and no amount, no party and no
parameter of a call is ever another one.
"""

from django.db import migrations

APPEND_ONLY_TABLES = ("billing_providertransition",)
# The columns that may change; no row goes.
CHANGING_TABLES = {
    "billing_intent": (
        "status",
        "object_id",
        "refusal_code",
        "refusal_message",
        "attempts",
        "due_at",
        "sent_at",
        "closed_at",
    ),
    "billing_inboxevent": ("due_at", "attempts", "processed_at", "outcome", "error"),
    "billing_balancetransaction": ("matched_at", "made_available_at", "subject_id", "entry_id"),
    "billing_difference": ("detail", "last_seen_at", "resolved_at", "resolution"),
    "billing_payer": ("saved_card_id",),
    "billing_payment": (
        "status",
        "provider_id",
        "client_secret",
        "charge_id",
        "instructions",
        "failure_code",
        "failure_message",
        "received_minor",
        "refunded_minor",
        "capture_due_at",
        "read_due_at",
        "due_at",
        "closed_at",
    ),
    "billing_cardrefund": ("status", "provider_id", "failure_code", "read_due_at", "closed_at"),
    "billing_topupdispute": ("status", "closed_at"),
    "billing_payoutaccount": (
        "provider_id",
        "receives",
        "missing",
        "seen_at",
        "approved_by",
        "usable_at",
        "retired_at",
    ),
    "billing_transfer": ("status", "reversed_minor", "provider_id", "failure_code", "closed_at"),
    "billing_feeshare": ("released_at",),
}


def _trigger(table: str, *, name: str, events: str, level: str, calls: str) -> tuple[str, str]:
    """Return the statement that makes a trigger, with its reverse."""
    return (
        (
            f"CREATE TRIGGER {name} BEFORE {events} ON {table} "
            f"FOR EACH {level} EXECUTE FUNCTION {calls};"
        ),
        f"DROP TRIGGER {name} ON {table};",
    )


def _statements() -> list[tuple[str, str]]:
    kept = [(table, "UPDATE OR DELETE") for table in APPEND_ONLY_TABLES]
    kept += [(table, "DELETE") for table in CHANGING_TABLES]
    found = []
    for table, events in kept:
        for name, what, level in (
            ("books_keep_rows", events, "ROW"),
            ("books_keep_table", "TRUNCATE", "STATEMENT"),
        ):
            found.append(
                _trigger(
                    table, name=name, events=what, level=level, calls="billing_refuse_change()"
                )
            )
    for table, columns in CHANGING_TABLES.items():
        names = ", ".join(f"'{column}'" for column in columns)
        found.append(
            _trigger(
                table,
                name="row_guard",
                events="UPDATE",
                level="ROW",
                calls=f"billing_guard_columns({names})",
            )
        )
    return found


class Migration(migrations.Migration):
    dependencies = [("billing", "0019_purchase_requests")]

    operations = [migrations.RunSQL(forwards, backwards) for forwards, backwards in _statements()]
