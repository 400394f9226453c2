"""What PostgreSQL keeps of the provider's side, whoever asks: these tests go around the verbs."""

import pytest
from django.apps import apps
from django.db import DatabaseError, connection, models, transaction

from billing.models import (
    BalanceTransaction,
    CardRefund,
    Difference,
    InboxEvent,
    Intent,
    Payer,
    Payment,
    PayoutAccount,
    ProviderTransition,
    TopUpDispute,
)
from billing.provider_states import IntentKind, Machine, PaymentMeans, PaymentPurpose
from tests.billing import factories

pytestmark = pytest.mark.django_db
AT = factories.START

# By table: a column that an answer of the provider changes, and one that nothing may change.
TABLES = {
    "intent": ("attempts = 7", "params = '{}'"),
    "inboxevent": ("attempts = 7", "payload = 'forged'"),
    "balancetransaction": ("subject_id = 'pay_1'", "amount_minor = 1"),
    "difference": ("resolution = 'vanished'", "object_id = 'another'"),
    "payer": ("saved_card_id = 'pm_1'", "customer_id = 'cus_2'"),
    "payment": ("received_minor = 5", "amount_minor = 1"),
    "cardrefund": ("status = 'pending'", "amount_minor = 1"),
    "topupdispute": ("status = 'won'", "amount_minor = 1"),
    "payoutaccount": ("receives = true", "requested_by = 'somebody'"),
}
# What the verbs of other tests bring about; here their guards are known to be in place, as of all others.
UNPLANTED = ("transfer", "feeshare", "reversal")


@pytest.fixture(autouse=True)
def rows() -> None:
    """Store one row of each table."""
    buyer = factories.tenant()
    Payer.objects.create(organization=buyer, customer_id="cus_1", created_at=AT)
    payment = Payment.objects.create(
        organization=buyer,
        purpose=PaymentPurpose.TOP_UP,
        means=PaymentMeans.CARD,
        amount_minor=500,
        currency="usd",
        read_due_at=AT,
        due_at=AT,
        created_at=AT,
    )
    shared = {"payment": payment, "amount_minor": 500, "currency": "usd"}
    CardRefund.objects.create(**shared, reason="asked", read_due_at=AT, created_at=AT)
    TopUpDispute.objects.create(**shared, id="dp_1", fee_minor=15, opened_at=AT)
    Intent.objects.create(
        kind=IntentKind.PAYMENT,
        organization=buyer,
        subject_id=payment.pk,
        params={"amount_minor": 500},
        due_at=AT,
        created_at=AT,
    )
    InboxEvent.objects.create(
        id="evt_1", type="charge.updated", payload="{}", source="webhook", received_at=AT, due_at=AT
    )
    BalanceTransaction.objects.create(
        id="txn_1",
        category="charge",
        amount_minor=500,
        fee_minor=15,
        currency="usd",
        available_at=AT,
        created_at=AT,
    )
    Difference.objects.create(
        kind="charge_missing", object_id="ch_1", detail="", first_seen_at=AT, last_seen_at=AT
    )
    PayoutAccount.objects.create(owner=factories.owner(), requested_by="anna", requested_at=AT)
    ProviderTransition.objects.create(
        machine=Machine.PAYMENT, subject_id=payment.pk, to_status="created", at=AT
    )
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def execute(statement: str) -> int:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
        return int(cursor.rowcount)


@pytest.mark.parametrize("table", TABLES)
class TestProvider:
    def test_changes_what_an_answer_says(self, table: str) -> None:
        assert execute(f"UPDATE billing_{table} SET {TABLES[table][0]}") == 1

    def test_never_changes_what_was_asked_for_or_told(self, table: str) -> None:
        with pytest.raises(DatabaseError, match="may change"):
            execute(f"UPDATE billing_{table} SET {TABLES[table][1]}")

    def test_loses_no_row(self, table: str) -> None:
        with pytest.raises(DatabaseError, match="append-only"):
            execute(f"DELETE FROM billing_{table}")
        with pytest.raises(DatabaseError, match="append-only"):
            execute(f"TRUNCATE billing_{table} CASCADE")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE billing_providertransition SET reason = 'another'",
        "DELETE FROM billing_providertransition",
        "TRUNCATE billing_providertransition",
    ],
)
def test_a_move_at_the_provider_stands(statement: str) -> None:
    with pytest.raises(DatabaseError, match="append-only"):
        execute(statement)


def test_the_two_that_hold_money_of_owners_are_guarded_alike() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tgrelid::regclass::text, count(*) FROM pg_trigger WHERE NOT tgisinternal"
            " AND tgrelid::regclass::text = ANY(%s) GROUP BY 1",
            [[f"billing_{table}" for table in UNPLANTED]],
        )
        assert dict(cursor.fetchall()) == {f"billing_{table}": 3 for table in UNPLANTED}


def test_every_column_that_may_change_exists() -> None:
    """A guard that names a column which is gone guards the others all the same, and misleads its reader."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tgrelid::regclass::text, string_to_array(encode(tgargs, 'escape'), E'\\\\000')"
            " FROM pg_trigger WHERE tgname = 'row_guard'"
        )
        guarded = cursor.fetchall()
    columns = {
        model._meta.db_table: {field.column for field in model._meta.fields}
        for model in apps.get_app_config("billing").get_models()
        if issubclass(model, models.Model)
    }
    assert guarded
    for table, arguments in guarded:
        assert set(filter(None, arguments)) <= columns[table], table
