"""A role that runs the market and owns none of it: it buys, settles and pays out, and undoes nothing."""

import datetime as dt
import io
from collections.abc import Iterator

import pytest
from django.core.management import CommandError, call_command
from django.db import ProgrammingError, connection, transaction

from agents import readings
from billing import books, changes, checkout, releases, settlements
from billing.invoices import month_close
from billing.models import Entry, Invoice, MonthClose, Payout, ReservationTax
from marketplace.api import idempotency
from marketplace.management.commands.prepare import count_missing_migrations
from marketplace.management.privileges import LOCKED_COLUMNS
from scheduler import cancellations
from scheduler.details import ReservationDetails
from scheduler.models import Reservation
from tests.billing import factories
from tests.scheduler.factories import NOW, make_pool, make_quote

ROLE = "runs_the_market_of_a_test"
MUCH_LATER = NOW + dt.timedelta(days=60)
REFUSED = r"permission denied|must be owner"
APPEND_ONLY = (
    "agents_meterreading",
    "agents_receipt",
    "billing_entry",
    "billing_invoice",
    "billing_invoiceline",
    "billing_payouttransition",
    "billing_posting",
    "billing_reservationtax",
    "billing_taxline",
    "marketplace_auditevent",
)

pytestmark = pytest.mark.django_db


def run(statement: str) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.fixture
def role() -> str:
    """Return a role that may run the market; it goes with the transaction of the test."""
    run(f"CREATE ROLE {ROLE}")
    call_command("grant_role", ROLE, stdout=io.StringIO())
    return ROLE


@pytest.fixture
def as_role(role: str) -> Iterator[None]:
    """Act as that role, as if it had logged in."""
    run(f"SET LOCAL ROLE {role}")
    yield
    run("RESET ROLE")


def columns_that_may_change(table: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
            " AND has_column_privilege(%s, attrelid, attnum, 'UPDATE')",
            [table, ROLE],
        )
        return [name for (name,) in cursor.fetchall()]


class TestTheRole:
    @pytest.mark.parametrize(
        "statement",
        [
            "DELETE FROM {table}",
            "TRUNCATE {table} CASCADE",
            "ALTER TABLE {table} DISABLE TRIGGER ALL",
            "ALTER TABLE {table} ADD COLUMN note text",
            "DROP TABLE {table} CASCADE",
        ],
    )
    @pytest.mark.usefixtures("as_role")
    def test_undoes_nothing_that_is_for_ever(self, statement: str) -> None:
        for table in APPEND_ONLY:
            with pytest.raises(ProgrammingError, match=REFUSED):
                run(statement.format(table=table))

    @pytest.mark.usefixtures("role")
    def test_changes_no_column_of_it_but_where_rows_are_locked(self) -> None:
        may_change = {
            table: columns for table in APPEND_ONLY if (columns := columns_that_may_change(table))
        }
        assert may_change == {table: [column] for table, column in LOCKED_COLUMNS.items()}

    @pytest.mark.parametrize(
        "statement",
        [
            "SET session_replication_role = replica",
            "CREATE TABLE mine (id int)",
            "CREATE OR REPLACE FUNCTION billing_refuse_change() RETURNS trigger AS '' LANGUAGE plpgsql",
            "ALTER TABLE billing_account DROP CONSTRAINT account_is_not_overdrawn",
            "DROP TRIGGER books_keep_rows ON billing_entry",
            "CREATE ROLE another",
            "UPDATE billing_entry SET kind = 'deposit'",
            "UPDATE billing_posting SET amount = amount + 1",
        ],
    )
    @pytest.mark.usefixtures("as_role")
    def test_takes_down_no_guard(self, statement: str) -> None:
        with pytest.raises(ProgrammingError, match=REFUSED):
            run(statement)

    @pytest.mark.usefixtures("as_role")
    def test_runs_the_market_from_purchase_to_payout(self) -> None:
        buyer = factories.taxed(buyer=factories.tenant(funds_minor=1_000_000))
        make_pool()
        left, kept = (self.buy(buyer) for _ in range(2))
        quote = cancellations.quote(organization=buyer, reservation_id=left.pk, at=NOW)
        changes.cancel(
            organization=buyer, reservation_id=left.pk, quote_id=quote.pk, at=NOW, actor="test"
        )
        lease = factories.lease(of=factories.reservation(buyer=buyer))
        settlements.settle(lease_id=lease.pk, at=NOW)
        releases.release_due(at=MUCH_LATER)
        month_close.run_due(at=MUCH_LATER)
        readings.prune(at=MUCH_LATER)
        idempotency.prune(at=MUCH_LATER)

        kept.refresh_from_db()
        assert kept.status == "scheduled"
        assert ReservationTax.objects.filter(pk=left.pk).exists()
        assert Payout.objects.get().amount_minor > 0
        assert MonthClose.objects.exists()
        assert Invoice.objects.exists()
        assert Entry.objects.filter(subject_id=left.changes.get().pk).exists()
        assert books.check(at=NOW).ok
        assert count_missing_migrations() == 0, "as `prepare` asks, which `up` runs as well"

    def buy(self, buyer) -> Reservation:
        return checkout.purchase(
            organization=buyer,
            quote_id=make_quote(tenant=buyer).pk,
            payment_method="wallet",
            details=ReservationDetails(),
            at=NOW,
            actor="test",
        )


class TestGranting:
    def test_again_takes_back_what_was_granted_beyond_it(self, role: str) -> None:
        run(f"GRANT ALL ON billing_entry TO {role}")
        call_command("grant_role", role, stdout=io.StringIO())
        assert columns_that_may_change("billing_entry") == []

    def test_needs_a_role_that_exists(self) -> None:
        with pytest.raises(CommandError, match="there is no role nobody_at_all"):
            call_command("grant_role", "nobody_at_all")

    @pytest.mark.parametrize(
        "more", ["SUPERUSER", "CREATEROLE", "BYPASSRLS", "REPLICATION", "IN ROLE CURRENT_USER"]
    )
    def test_refuses_a_role_that_no_grant_would_hold(self, more: str) -> None:
        run(f"CREATE ROLE {ROLE} {more}")
        with pytest.raises(CommandError, match="above what it is granted"):
            call_command("grant_role", ROLE)
