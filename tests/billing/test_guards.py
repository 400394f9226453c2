"""What PostgreSQL refuses, whoever asks: these tests go around the verbs."""

import datetime as dt

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import ProtectedError

from billing import books, ledger, releases, settlements, wallet
from billing.guards import GUARDS
from billing.models import Account, Entry, Payout, PayoutTransition, Posting, Settlement
from billing.states import AccountKind, EntryKind, PayoutStatus, Side
from marketplace.core.money import Money
from tests.billing import factories

pytestmark = pytest.mark.django_db

LATER = factories.START + dt.timedelta(days=30)


def deposit(minor: int = 1000) -> Entry:
    buyer = factories.tenant()
    return wallet.record_deposit(
        organization=buyer,
        amount=Money(minor, "usd"),
        idempotency_key=f"{minor}",
        at=factories.START,
        actor="test",
    )


def bare_entry(**fields: object) -> Entry:
    defaults = {
        "idempotency_key": "bare",
        "content_sha256": "",
        "kind": EntryKind.DEPOSIT,
        "subject_id": "bare",
        "effective_at": factories.START,
    }
    return Entry.objects.create(**{**defaults, **fields})


def account(
    kind: AccountKind = AccountKind.BANK, currency: str = "usd", **fields: object
) -> Account:
    nature = ledger.CHART[kind]
    defaults = {
        "code": f"{kind.value}:test",
        "kind": kind,
        "currency": currency,
        "normal_side": nature.normal_side,
        "guarded": nature.is_guarded,
    }
    return Account.objects.create(**{**defaults, **fields})


def execute(statement: str) -> None:
    """Run a statement of somebody who goes around Django."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


def check_now() -> None:
    """Run what PostgreSQL would check at commit."""
    execute("SET CONSTRAINTS ALL IMMEDIATE")


def commit_entry(*postings: tuple[Account, Side, int]) -> None:
    with transaction.atomic():
        entry = bare_entry()
        for place, side, amount in postings:
            Posting.objects.create(entry=entry, account=place, side=side, amount=amount)
        check_now()


class TestAppendOnly:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE billing_entry SET kind = 'purchase'",
            "UPDATE billing_entry SET transaction_id = 0",
            "DELETE FROM billing_entry",
            "UPDATE billing_posting SET amount = amount + 1",
            "DELETE FROM billing_posting",
            "TRUNCATE billing_posting",
            "TRUNCATE billing_entry CASCADE",
            "TRUNCATE billing_account CASCADE",
            "DELETE FROM billing_account",
        ],
    )
    def test_refuses_a_change_of_the_ledger(self, statement):
        deposit()
        check_now()
        with pytest.raises(DatabaseError, match="append-only"):
            execute(statement)
        assert Posting.objects.count() == 2

    @pytest.mark.parametrize(
        "model", [Entry, Posting, Settlement, Account, Payout, PayoutTransition]
    )
    def test_refuses_to_truncate_any_table_of_the_books(self, model):
        table = model._meta.db_table
        with pytest.raises(DatabaseError, match="append-only"):
            execute(f"TRUNCATE {table} CASCADE")

    def test_refuses_to_delete_through_the_orm(self):
        entry = deposit()
        with pytest.raises((ProtectedError, IntegrityError)), transaction.atomic():
            entry.delete()


class TestBalance:
    def test_refuses_an_entry_without_postings_at_commit(self):
        with pytest.raises(IntegrityError, match="has no postings"):
            commit_entry()

    def test_refuses_an_entry_that_does_not_balance(self):
        with pytest.raises(IntegrityError, match="does not balance in usd"):
            commit_entry((account(), Side.DEBIT, 5))

    def test_refuses_an_entry_that_balances_across_currencies_only(self):
        euros = account(AccountKind.PLATFORM_FEE, "eur")
        with pytest.raises(IntegrityError, match=r"does not balance in (eur, usd|usd, eur)"):
            commit_entry((account(), Side.DEBIT, 5), (euros, Side.CREDIT, 5))

    def test_accepts_one_that_balances_in_each(self):
        fee = account(AccountKind.PLATFORM_FEE)
        commit_entry((account(), Side.DEBIT, 5), (fee, Side.CREDIT, 5))
        assert Posting.objects.count() == 2

    @pytest.mark.parametrize("amount", [0, -1])
    def test_refuses_an_amount_that_is_not_positive(self, amount):
        with (
            pytest.raises(IntegrityError, match="posting_amount_is_positive"),
            transaction.atomic(),
        ):
            Posting.objects.create(
                entry=bare_entry(), account=account(), side=Side.DEBIT, amount=amount
            )


class TestSeal:
    def test_sets_transaction_and_clock_itself(self):
        long_ago = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
        with transaction.atomic():
            entry = bare_entry(transaction_id=7, recorded_at=long_ago)
            entry.refresh_from_db()
            assert entry.transaction_id != 7
            assert entry.recorded_at != long_ago
            transaction.set_rollback(True)

    @pytest.mark.django_db(transaction=True)
    def test_refuses_a_posting_after_the_entrys_transaction(self):
        entry = deposit()
        with pytest.raises(IntegrityError, match="sealed"):
            Posting.objects.create(
                entry=entry, account=Account.objects.first(), side=Side.DEBIT, amount=5
            )
        assert entry.postings.count() == 2


class TestAccount:
    @pytest.mark.parametrize(
        "change",
        [
            {"balance": 99},
            {"code": "x"},
            {"kind": "bank"},
            {"guarded": False, "balance": 0},
            {"normal_side": "debit"},
            {"currency": "eur"},
        ],
    )
    def test_refuses_a_change_from_outside(self, change):
        deposit()
        with pytest.raises(IntegrityError, match="postings alone"), transaction.atomic():
            Account.objects.filter(kind=AccountKind.WALLET).update(**change)
        assert Account.objects.get(kind=AccountKind.WALLET).balance == 1000

    def test_refuses_an_opening_balance(self):
        with pytest.raises(IntegrityError, match="begins with"), transaction.atomic():
            account(AccountKind.WALLET, balance=5)

    def test_refuses_an_overdraft_and_says_which_constraint(self):
        entry = deposit(minor=10)
        purse = Account.objects.get(kind=AccountKind.WALLET)
        with pytest.raises(IntegrityError) as caught, transaction.atomic():
            Posting.objects.create(entry=entry, account=purse, side=Side.DEBIT, amount=11)
        assert ledger.violated_constraint(caught.value) == "account_is_not_overdrawn"

    def test_keeps_no_balance_where_nothing_is_guarded(self):
        deposit()
        assert Account.objects.get(kind=AccountKind.BANK).balance == 0
        assert ledger.balance(account=ledger.AccountRef(AccountKind.BANK, "usd")) == 1000


class TestSettlement:
    @pytest.fixture
    def settlement(self) -> Settlement:
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        lease = factories.lease(of=reservation)
        row = settlements.settle(lease_id=lease.id, at=lease.ends_at + dt.timedelta(days=1))
        assert row is not None
        return row

    @pytest.mark.parametrize(
        "change",
        [
            {"settled_at": LATER},
            {"gpu_seconds_busy": 1},
            {"owner_minor": 1, "fee_minor": 470},
            {"released_at": LATER, "evidence": {}},
            {"released_at": None},
        ],
    )
    def test_refuses_every_change_but_the_release(self, settlement, change):
        with pytest.raises(IntegrityError, match="is final"), transaction.atomic():
            Settlement.objects.filter(pk=settlement.pk).update(**change)

    def test_refuses_a_second_release(self, settlement):
        mine = Settlement.objects.filter(pk=settlement.pk)
        assert mine.update(released_at=LATER) == 1
        with pytest.raises(IntegrityError, match="is final"), transaction.atomic():
            mine.update(released_at=LATER + dt.timedelta(seconds=1))

    def test_refuses_money_that_does_not_add_up(self, settlement, unguarded):
        with (
            pytest.raises(IntegrityError, match="settlement_money_adds_up"),
            transaction.atomic(),
            unguarded(),
        ):
            Settlement.objects.filter(pk=settlement.pk).update(owner_minor=1)

    def test_refuses_to_change_a_payout_beyond_its_status(self, settlement):
        releases.release(settlement_id=settlement.id, at=LATER)
        with pytest.raises(IntegrityError, match="status alone"), transaction.atomic():
            Payout.objects.update(amount_minor=1)
        assert Payout.objects.update(status=PayoutStatus.IN_TRANSIT) == 1


class TestMigration:
    def test_names_every_guard_that_the_check_of_the_books_looks_for(self):
        tables = [model._meta.db_table for model in apps.get_app_config("billing").get_models()]
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT c.relname || '.' || t.tgname FROM pg_trigger t"
                " JOIN pg_class c ON c.oid = t.tgrelid"
                " WHERE NOT t.tgisinternal AND c.relname = ANY(%s)",
                [tables],
            )
            assert {name for (name,) in cursor.fetchall()} == set(GUARDS)

    def test_pins_the_search_path_of_every_function(self):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT proname, proconfig FROM pg_proc WHERE proname LIKE 'billing\\_%%'"
            )
            functions = dict(cursor.fetchall())
        assert len(functions) == 17
        assert all(
            settings == ["search_path=pg_catalog, public, pg_temp"]
            for settings in functions.values()
        )

    # Where it is cut short, every later test of the process finds half a schema.
    @pytest.mark.timeout(900)
    @pytest.mark.django_db(transaction=True)
    def test_can_be_taken_back_and_applied_again(self):
        call_command("migrate", "billing", "0001", verbosity=0)
        try:
            # Without the guards, and without the call that posts: as somebody would who has only tables.
            entry = bare_entry()
            purse = account(AccountKind.WALLET)
            Posting.objects.create(entry=entry, account=account(), side=Side.DEBIT, amount=9)
            Posting.objects.create(entry=entry, account=purse, side=Side.CREDIT, amount=9)
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM pg_proc WHERE proname LIKE 'billing\\_%%'")
                assert cursor.fetchone() == (0,)
        finally:
            call_command("migrate", "billing", verbosity=0)
        report = books.check(at=LATER)
        # Without its trigger the posting moved no balance, and the books say so.
        assert [c.name for c in report.checks if not c.ok] == ["guarded_balances_are_derived"]
