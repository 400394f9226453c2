"""What the provider books beside tenants' money: our own, what it holds back of it, and what that costs."""

import datetime as dt
from typing import Any

import pytest
import stripe

from billing import ledger, provider_books, provider_money, stripe_shapes
from billing.models import BalanceTransaction, Entry
from billing.states import AccountKind, EntryKind
from marketplace.core.money import Money
from tests.billing import factories
from tests.fakes.stripe import balance as standin_balance

pytestmark = pytest.mark.django_db

AT = factories.START
DAY = dt.timedelta(days=1)
BANK, PENDING, AVAILABLE, RESERVED, FEES, SUSPENSE = (
    AccountKind.BANK,
    AccountKind.STRIPE_PENDING,
    AccountKind.STRIPE_AVAILABLE,
    AccountKind.STRIPE_RESERVED,
    AccountKind.PSP_FEES,
    AccountKind.SUSPENSE,
)


def booked(
    category: str, amount: int, *, fee: int = 0, number: int = 1, **changes: Any
) -> BalanceTransaction:
    return BalanceTransaction.objects.create(
        **{
            "id": f"txn_{number}",
            "category": category,
            "source_id": f"src_{number}",
            "amount_minor": amount,
            "fee_minor": fee,
            "currency": "usd",
            "available_at": AT,
            "created_at": AT - DAY + dt.timedelta(seconds=number),
            **changes,
        }
    )


def of_payment(*, amount: int, fee: int, number: int = 1) -> BalanceTransaction:
    """Return the booking of a payment that was matched, and waits to be available."""
    row = booked("charge", amount, fee=fee, number=number)
    row.subject_id, row.matched_at = f"pay_{number}", AT
    row.save()
    return row


def holds(*kinds: AccountKind) -> tuple[int, ...]:
    return tuple(ledger.balance(account=ledger.AccountRef(kind, "usd")) for kind in kinds)


class TestOurOwnMoney:
    def test_that_we_send_there_comes_from_our_bank_and_is_used_once_it_is_available(self) -> None:
        booked("topup", 5000, available_at=AT + DAY)
        assert provider_books.match_all(at=AT) == 1
        provider_books.make_available(at=AT)
        assert holds(BANK, PENDING, AVAILABLE) == (-5000, 5000, 0)
        provider_books.make_available(at=AT + DAY)
        assert holds(BANK, PENDING, AVAILABLE) == (-5000, 0, 5000)

    def test_that_comes_back_is_in_our_bank_again(self) -> None:
        booked("topup", 5000)
        booked("topup_reversal", -5000, number=2)
        assert provider_books.match_all(at=AT) == 2
        provider_books.make_available(at=AT)
        assert holds(BANK, PENDING, AVAILABLE) == (0, 0, 0)

    def test_of_which_the_provider_took_a_part_on_its_way_cost_a_fee(self) -> None:
        booked("payout", -4000, fee=40)
        booked("topup", 1000, fee=5, number=2)
        provider_books.match_all(at=AT)
        provider_books.make_available(at=AT)
        assert holds(BANK, AVAILABLE, FEES) == (3000, -4040 + 995, 45)

    @pytest.mark.parametrize("category", ["risk_reserved_funds", "connect_reserved_funds"])
    def test_that_is_held_back_stays_ours_and_is_let_go(self, category: str) -> None:
        booked(category, -700)
        provider_books.match_all(at=AT)
        assert holds(RESERVED, AVAILABLE, SUSPENSE) == (700, -700, 0)
        booked(category, 700, number=2)
        provider_books.match_all(at=AT)
        assert holds(RESERVED, AVAILABLE) == (0, 0)

    def test_is_told_once_of_what_is_booked_on_two_balances(
        self, provider: Any, clock: Any
    ) -> None:
        for row in provider.world.all("balance_transaction"):
            del provider.world.objects[row["id"]]
        for balance, amount in (("payments", -700), ("risk_reserved", 700)):
            made = standin_balance.move(
                provider.world,
                source={"id": "rh_1"},
                kind="reserve_hold",
                category="risk_reserved_funds",
                amount=amount,
                currency="usd",
            )
            made["balance_type"] = balance
        provider_books.fetch(at=clock())
        assert holds(RESERVED, AVAILABLE) == (700, -700)

    @pytest.mark.parametrize("category", ["fee", "network_cost", "tax"])
    def test_that_is_taken_for_services_is_a_cost(self, category: str) -> None:
        booked(category, -30)
        booked(category, 10, number=2)
        assert provider_books.match_all(at=AT) == 2
        assert holds(FEES, AVAILABLE) == (20, -20)

    def test_of_which_nothing_says_what_it_is_waits_for_a_person(self) -> None:
        booked("other_adjustment", 30)
        assert provider_books.match_all(at=AT) == 0
        assert not Entry.objects.exists()


class TestOneThatFails:
    def test_keeps_no_other_booking_from_being_matched(self, monkeypatch: Any) -> None:
        def breaks(row: BalanceTransaction, at: dt.datetime) -> bool:
            raise AssertionError(row.pk)

        monkeypatch.setitem(provider_books._MATCHERS, "payout", breaks)
        first, second = booked("payout", -1), booked("fee", -5, number=2)
        assert provider_books.match_all(at=AT) == 1
        for row, is_matched in ((first, False), (second, True)):
            row.refresh_from_db()
            assert (row.matched_at is not None) is is_matched

    def test_keeps_no_other_one_from_being_available(self, monkeypatch: Any) -> None:
        real = provider_money.make_available

        def breaks(**told: Any) -> Entry | None:
            assert told["transaction_id"] != "txn_1"
            return real(**told)

        monkeypatch.setattr(provider_money, "make_available", breaks)
        of_payment(amount=100, fee=3)
        second = of_payment(amount=5000, fee=175, number=2)
        assert provider_books.make_available(at=AT) == 1
        second.refresh_from_db()
        assert second.made_available_at == AT

    def test_is_none_that_nobody_can_match(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(provider_books, "ROWS_PER_RUN_MAX", 1)
        booked("other_adjustment", 30)
        booked("fee", -5, number=2)
        assert provider_books.match_all(at=AT) == 1


class TestAmounts:
    @pytest.mark.parametrize("category", ["fee", "payout", "topup", "risk_reserved_funds"])
    def test_of_nothing_are_matched_without_an_entry(self, category: str) -> None:
        row = booked(category, 0)
        assert provider_books.match_all(at=AT) == 1
        assert provider_books.make_available(at=AT) == (category == "topup")
        row.refresh_from_db()
        assert (row.matched_at, row.entry) == (AT, None)

    @pytest.mark.parametrize(("amount", "fee"), [(1000, 1036), (1000, 1000)])
    def test_that_a_fee_exceeds_become_available_all_the_same(self, amount: int, fee: int) -> None:
        of_payment(amount=amount, fee=fee)
        assert provider_books.make_available(at=AT) == 1
        assert holds(PENDING, AVAILABLE) == (fee - amount, amount - fee)
        assert provider_books.make_available(at=AT) == 0

    def test_of_nothing_are_put_aside_without_an_entry(self) -> None:
        row = booked("other_adjustment", 5, fee=5)
        assert provider_books.put_aside(transaction_id=row.pk, at=AT) is None
        row.refresh_from_db()
        assert row.matched_at == AT


class TestPuttingAside:
    def test_of_a_charge_makes_its_money_available_once(self) -> None:
        row = booked("charge", 900, fee=50)
        provider_books.put_aside(transaction_id=row.pk, at=AT)
        assert provider_books.make_available(at=AT) == 0
        assert holds(PENDING, AVAILABLE, SUSPENSE) == (0, 850, 850)

    def test_of_a_clearing_account_can_be_undone_by_a_booking_that_comes_after_all(self) -> None:
        clearing = ledger.AccountRef(AccountKind.PSP_CLEARING, "usd", "pay_1")
        wallet = ledger.AccountRef(AccountKind.WALLET, "usd", "org_1", factories.tenant())
        ledger.post(
            idempotency_key="top_up:pay_1",
            kind=EntryKind.TOP_UP,
            subject_id="pay_1",
            effective_at=AT,
            legs=ledger.transfer(debited=clearing, credited=wallet, amount=900),
        )
        for _ in range(2):
            provider_money.put_aside(account=clearing, at=AT)
        assert holds(SUSPENSE) == (-900,)
        provider_money.match(
            object_id="pay_1",
            transaction_id="txn_1",
            amount=Money(900, "usd"),
            fee_minor=50,
            at=AT,
        )
        provider_money.put_aside(account=clearing, at=AT)
        assert ledger.balance(account=clearing) == 0
        assert holds(SUSPENSE) == (0,)


def test_a_booking_of_an_older_version_of_the_api_is_of_the_payments_balance() -> None:
    row = {
        "id": "txn_1",
        "reporting_category": "fee",
        "amount": -1,
        "fee": 0,
        "currency": "usd",
        "source": None,
        "available_on": 0,
        "created": 0,
    }
    assert stripe_shapes.transaction_of(row).balance == provider_books.PAYMENTS_BALANCE
    assert (
        stripe_shapes.transaction_of({**row, "balance_type": "risk_reserved"}).balance
        == "risk_reserved"
    )


def test_the_categories_are_the_providers_own() -> None:
    run = stripe.params.reporting.ReportRunCreateParamsParameters
    known = str(run.__annotations__["reporting_category"])
    missing = [
        name for name in provider_books._MATCHERS if f'"{name}"' not in known.replace("'", '"')
    ]
    assert missing == []
