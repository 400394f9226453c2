import datetime as dt
import threading

import pytest
from django.db import connections

from billing import ledger, wallet
from billing.models import Account, Entry, Posting
from billing.states import GPU_SECONDS, AccountKind, EntryKind, Side
from marketplace.core.money import Money
from marketplace.models import AuditEvent
from tests.billing import factories

pytestmark = pytest.mark.django_db

AT = factories.START
BANK = ledger.AccountRef(AccountKind.BANK, "usd")
FEE = ledger.AccountRef(AccountKind.PLATFORM_FEE, "usd")


def post(*, key: str = "one", amount: int = 5, at: dt.datetime = AT) -> Entry:
    return ledger.post(
        idempotency_key=key,
        kind=EntryKind.DEPOSIT,
        subject_id="somebody",
        effective_at=at,
        legs=ledger.transfer(debited=BANK, credited=FEE, amount=amount),
    )


class TestPost:
    def test_writes_an_entry_with_its_legs(self):
        entry = post()
        assert sorted(entry.postings.values_list("side", "amount", "account__code")) == [
            ("credit", 5, "platform_fee"),
            ("debit", 5, "bank"),
        ]
        stored = Entry.objects.get()
        assert (stored.recorded_at, stored.transaction_id) == (
            entry.recorded_at,
            entry.transaction_id,
        )

    def test_returns_the_first_entry_for_the_same_key_and_content(self):
        first = post()
        assert post(at=AT + dt.timedelta(days=1)) == first
        assert Posting.objects.count() == 2
        assert Entry.objects.get().effective_at == AT

    def test_refuses_the_same_key_with_other_content(self):
        post()
        with pytest.raises(ledger.EntryMismatch):
            post(amount=6)
        assert ledger.balance(account=FEE) == 5

    def test_makes_accounts_once(self):
        post(key="one")
        post(key="two")
        assert Account.objects.count() == 2

    def test_keeps_currencies_apart(self):
        buyer = factories.tenant(funds_minor=7)
        other = wallet.account(organization=buyer, currency="eur")
        assert ledger.balance(account=other) == 0
        assert wallet.balance(organization=buyer) == Money(7, "usd")

    @pytest.mark.parametrize(
        "legs",
        [
            [],
            [ledger.debit(BANK, amount=5)],
            [ledger.debit(BANK, amount=5), ledger.credit(FEE, amount=6)],
            [ledger.debit(BANK, amount=0), ledger.credit(FEE, amount=0)],
            [ledger.debit(BANK, amount=-5), ledger.credit(FEE, amount=-5)],
            [ledger.debit(BANK, amount=5), ledger.credit(BANK, amount=5)],
            [
                ledger.debit(BANK, amount=5),
                ledger.credit(ledger.AccountRef(AccountKind.PLATFORM_FEE, "eur"), amount=5),
            ],
        ],
    )
    def test_stops_a_callers_mistake_before_the_database_does(self, legs):
        with pytest.raises(AssertionError):
            ledger.post(
                idempotency_key="k",
                kind=EntryKind.DEPOSIT,
                subject_id="s",
                effective_at=AT,
                legs=legs,
            )
        assert not Entry.objects.exists()

    def test_moves_nothing_for_an_amount_of_nothing(self):
        assert ledger.transfer(debited=BANK, credited=FEE, amount=0) == []

    def test_says_what_is_missing_and_stores_nothing(self):
        buyer = factories.tenant(funds_minor=100)
        purse = wallet.account(organization=buyer, currency="usd")
        with pytest.raises(ledger.InsufficientFunds) as caught:
            ledger.post(
                idempotency_key="k",
                kind=EntryKind.PURCHASE,
                subject_id="rsv",
                effective_at=AT,
                legs=ledger.transfer(debited=purse, credited=FEE, amount=130),
            )
        assert caught.value.code == "payment_required"
        assert caught.value.extra == {
            "missing": {"amount_minor": 30, "currency": "usd"},
            "balance": {"amount_minor": 100, "currency": "usd"},
        }
        assert not Entry.objects.filter(idempotency_key="k").exists()
        assert wallet.balance(organization=buyer) == Money(100, "usd")

    def test_posts_one_fact_once_whatever_the_key_says(self):
        def buy(key: str) -> Entry:
            return ledger.post(
                idempotency_key=key,
                kind=EntryKind.PURCHASE,
                subject_id="rsv_1",
                effective_at=AT,
                legs=ledger.transfer(debited=BANK, credited=FEE, amount=1),
            )

        buy("first")
        with pytest.raises(Exception, match="entry_fact_is_unique"):
            buy("second")

    def test_does_not_call_a_defect_a_lack_of_funds(self):
        deferred = ledger.AccountRef(AccountKind.DEFERRED, "usd", "rsv_1")
        with pytest.raises(Exception, match="account_is_not_overdrawn") as caught:
            ledger.post(
                idempotency_key="k",
                kind=EntryKind.SETTLEMENT,
                subject_id="lse",
                effective_at=AT,
                legs=ledger.transfer(debited=deferred, credited=FEE, amount=1),
            )
        assert not isinstance(caught.value, ledger.InsufficientFunds)


class TestReverse:
    def test_restores_every_balance(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        purchase = Entry.objects.get(kind=EntryKind.PURCHASE)
        mirror = ledger.reverse(entry=purchase, idempotency_key="undo", at=AT)
        assert mirror.reverses == purchase
        assert wallet.balance(organization=reservation.organization) == Money(471, "usd")
        still_open = ledger.AccountRef(AccountKind.U_OPEN, GPU_SECONDS, reservation.id)
        assert ledger.balance(account=still_open) == 0

    def test_happens_once(self):
        entry = post()
        first = ledger.reverse(entry=entry, idempotency_key="undo", at=AT)
        assert ledger.reverse(entry=entry, idempotency_key="undo", at=AT) == first
        with pytest.raises(ledger.EntryMismatch, match="reversed before"):
            ledger.reverse(entry=entry, idempotency_key="undo again", at=AT)

    def test_may_itself_be_reversed(self):
        mirror = ledger.reverse(entry=post(), idempotency_key="undo", at=AT)
        ledger.reverse(entry=mirror, idempotency_key="redo", at=AT)
        assert ledger.balance(account=FEE) == 5

    def test_refuses_when_the_money_was_spent(self):
        buyer = factories.tenant(funds_minor=471)
        deposit = Entry.objects.get()
        factories.reservation(buyer=buyer)
        with pytest.raises(ledger.InsufficientFunds):
            ledger.reverse(entry=deposit, idempotency_key="undo", at=AT)


@pytest.mark.django_db(transaction=True)
class TestRaces:
    def run(self, count: int, work) -> list[object]:
        """Let `count` clients begin together; return what each got or was refused with."""
        ready = threading.Barrier(count)
        results: list[object] = []

        def client(number: int) -> None:
            try:
                connections["default"].ensure_connection()
                ready.wait(timeout=60)
                results.append(work(number))
            except Exception as error:  # noqa: BLE001 - the refusals are the result
                results.append(error)
            finally:
                connections["default"].close()

        threads = [threading.Thread(target=client, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    @pytest.mark.parametrize(
        "clients", [40, pytest.param(200, marks=pytest.mark.slow, id="200 clients")]
    )
    def test_spends_a_wallet_that_covers_eight_exactly_eight_times(self, clients):
        buyer = factories.tenant(funds_minor=8 * 471)
        wallets = wallet.account(organization=buyer, currency="usd")

        def buy(number: int) -> Entry:
            deferred = ledger.AccountRef(AccountKind.DEFERRED, "usd", f"rsv_{number}", buyer)
            return ledger.post(
                idempotency_key=f"purchase:{number}",
                kind=EntryKind.PURCHASE,
                subject_id=f"rsv_{number}",
                effective_at=AT,
                legs=ledger.transfer(debited=wallets, credited=deferred, amount=471),
            )

        results = self.run(clients, buy)
        assert sum(isinstance(result, Entry) for result in results) == 8
        refused = [result for result in results if isinstance(result, ledger.InsufficientFunds)]
        assert len(refused) == clients - 8
        assert wallet.balance(organization=buyer) == Money(0, "usd")

    def test_gives_one_entry_for_one_key(self):
        results = self.run(20, lambda _: post(key="the same"))
        assert {result.id for result in results} == {Entry.objects.get().id}
        assert ledger.balance(account=FEE) == 5

    def test_records_one_deposit_and_one_line_in_the_trail_for_one_key(self):
        buyer = factories.tenant()
        self.run(
            20,
            lambda _: wallet.record_deposit(
                organization=buyer,
                amount=Money(50, "usd"),
                idempotency_key="k",
                at=AT,
                actor="test",
            ),
        )
        assert wallet.balance(organization=buyer) == Money(50, "usd")
        assert AuditEvent.objects.count() == 1

    def test_reverses_an_entry_once_when_many_try(self):
        entry = post()
        results = self.run(
            8,
            lambda number: ledger.reverse(entry=entry, idempotency_key=f"undo {number}", at=AT),
        )
        assert sum(isinstance(result, Entry) for result in results) == 1
        assert ledger.balance(account=FEE) == 0


class TestChart:
    def test_knows_every_kind(self):
        assert set(ledger.CHART) == set(AccountKind)

    def test_guards_only_what_authorises_spending(self):
        guarded = {kind for kind, nature in ledger.CHART.items() if nature.is_guarded}
        assert guarded == {
            AccountKind.RECEIVABLE,
            AccountKind.WALLET,
            AccountKind.PROMO,
            AccountKind.HOLD,
            AccountKind.DEFERRED,
            AccountKind.DISPUTE_WITHHELD,
            AccountKind.REFUND_PAYABLE,
            AccountKind.U_OPEN,
        }
        assert ledger.CHART[AccountKind.U_OPEN].normal_side is Side.DEBIT
