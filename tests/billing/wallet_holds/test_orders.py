"""What a wallet holds for an order while a second person decides: taken when it is asked, and spent."""

import pytest

from billing import (
    ledger,
    parking,
    purchase_requests,
)
from billing.ledger import InsufficientFunds
from billing.models import Entry, PurchaseRequest, WalletHold
from billing.purchase_requests import ApprovalRequired
from billing.states import AccountKind, EntryKind
from marketplace.models import Event
from tests.billing import factories as money
from tests.billing.wallet_holds.market import (
    ASKER,
    a_tenant,
    ask,
    breaches,
    decide,
    decide_limit,
    free,
    fund,
    held,
    legs,
    limited,
    order,
    taxed,
)
from tests.scheduler import factories
from tests.scheduler.factories import NOW, window_in

pytestmark = pytest.mark.django_db


class TestAsking:
    def test_takes_the_price_out_of_the_wallet_for_the_request_alone(self) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        asked = ask(quote)
        price = quote.total_minor
        assert (free(tenant), held(tenant)) == (100_000 - price, price)
        account = ledger.AccountRef(AccountKind.HOLD, "usd", asked.pk)
        assert ledger.balance(account=account) == price
        assert asked.hold.held_until == quote.expires_at
        told = Event.objects.get(kind="purchase_request.opened")
        assert told.data["held_minor"] == price
        assert breaches() == []

    def test_keeps_another_order_from_emptying_the_wallet(self) -> None:
        tenant = a_tenant(funds=0)
        mine, other = (
            factories.make_quote(tenant=tenant, gpus=2, window=window_in(start))
            for start in (24, 48)
        )
        fund(tenant, mine.total_minor)
        asked = ask(mine)
        decide(purchase_requests.approve, asked)
        limited(tenant, None)
        decide_limit(tenant)
        with pytest.raises(InsufficientFunds):
            order(other)
        assert order(mine).status == "scheduled"
        assert (free(tenant), held(tenant), breaches()) == (0, 0, [])

    def test_of_what_the_wallet_does_not_cover_says_what_is_missing_and_asks_nobody(self) -> None:
        tenant = a_tenant(funds=1)
        quote = factories.make_quote(tenant=tenant)
        with pytest.raises(InsufficientFunds) as refused:
            ask(quote)
        missing = {"amount_minor": quote.total_minor - 1, "currency": "usd"}
        assert refused.value.extra["missing"] == missing
        assert not PurchaseRequest.objects.exists()
        assert not Event.objects.filter(kind="purchase_request.opened").exists()
        assert free(tenant) == 1

    def test_again_holds_nothing_more(self) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        assert ask(quote) == ask(quote)
        assert held(tenant) == quote.total_minor
        assert Entry.objects.filter(kind=EntryKind.HOLD).count() == 1

    @pytest.mark.parametrize("method", ["card", "invoice", "bank_transfer"])
    def test_by_another_way_of_paying_holds_nothing_until_the_wallet_is_named(self, method) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        ask(quote, method=method)
        assert (free(tenant), held(tenant)) == (100_000, 0)
        ask(quote)
        assert held(tenant) == quote.total_minor

    def test_once_it_is_decided_holds_nothing_any_more(self) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        decide(purchase_requests.approve, ask(quote, method="card"))
        purchase_requests.ask_for_quote(
            organization=tenant,
            quote_id=quote.pk,
            project="",
            payment_method="wallet",
            at=NOW,
            actor=ASKER,
        )
        assert held(tenant) == 0
        order(quote)
        assert (free(tenant), breaches()) == (100_000 - quote.total_minor, [])

    def test_holds_the_tax_with_the_price(self) -> None:
        tenant = a_tenant()
        taxed(tenant)
        quote = factories.make_quote(tenant=tenant)
        ask(quote)
        assert held(tenant) == quote.total_minor + round(quote.total_minor * 19 / 100)

    def test_is_refused_while_the_money_is_parked(self) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        parking.park(breaches={tenant.pk: "looked into"}, at=NOW)
        with pytest.raises(parking.MoneyParked):
            ask(quote)
        assert not PurchaseRequest.objects.exists()


class TestOrder:
    def test_is_paid_by_what_is_held(self) -> None:
        tenant = a_tenant()
        taxed(tenant)
        quote = factories.make_quote(tenant=tenant)
        decide(purchase_requests.approve, ask(quote))
        price, before = held(tenant), free(tenant)
        row = order(quote)
        bought = Entry.objects.get(kind=EntryKind.PURCHASE, subject_id=row.pk)
        assert (legs(bought, AccountKind.HOLD), legs(bought, AccountKind.WALLET)) == (price, 0)
        kept = WalletHold.objects.get()
        assert (kept.resolution, kept.resolved_by) == ("captured", bought)
        assert (free(tenant), held(tenant)) == (before, 0)
        assert not Entry.objects.filter(kind=EntryKind.VOID).exists()
        assert breaches() == []

    def test_needs_nobody_when_the_limit_was_raised_and_is_paid_by_it_too(self) -> None:
        tenant = a_tenant(funds=0)
        quote = factories.make_quote(tenant=tenant)
        fund(tenant, quote.total_minor)
        ask(quote)
        limited(tenant, None)
        decide_limit(tenant)
        order(quote)
        assert (free(tenant), held(tenant), breaches()) == (0, 0, [])

    @pytest.mark.usefixtures("provider")
    def test_by_card_gives_it_back(self) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        decide(purchase_requests.approve, ask(quote))
        assert order(quote, method="card").status == "payment_pending"
        assert WalletHold.objects.get().resolution == "voided"
        assert (free(tenant), held(tenant), breaches()) == (100_000, 0, [])

    def test_that_is_refused_leaves_it_held(self) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant, gpus=8)
        ask(quote)
        with pytest.raises(ApprovalRequired):
            order(quote)
        assert held(tenant) == quote.total_minor

    @pytest.mark.parametrize(("before", "after"), [("standard", "exempt"), ("exempt", "standard")])
    def test_costs_what_the_taxes_of_its_own_instant_make_it(self, before, after) -> None:
        tenant = a_tenant()
        taxed(tenant, treatment=before)
        quote = factories.make_quote(tenant=tenant)
        asked = ask(quote)
        taxed(tenant, treatment=after, at=NOW)
        decide(purchase_requests.approve, asked)
        order(quote)
        tax = round(quote.total_minor * 19 / 100) if after == "standard" else 0
        assert (free(tenant), held(tenant)) == (100_000 - quote.total_minor - tax, 0)
        assert WalletHold.objects.get().resolution == "captured"
        assert breaches() == []

    def test_says_what_is_missing_beyond_what_is_held(self) -> None:
        tenant = a_tenant(funds=0)
        taxed(tenant, treatment="exempt")
        quote = factories.make_quote(tenant=tenant)
        fund(tenant, quote.total_minor)
        decide(purchase_requests.approve, ask(quote))
        taxed(tenant, at=NOW)
        with pytest.raises(InsufficientFunds) as refused:
            order(quote)
        tax = round(quote.total_minor * 19 / 100)
        assert refused.value.extra["missing"] == {"amount_minor": tax, "currency": "usd"}
        assert held(tenant) == quote.total_minor


class TestPromotion:
    def test_is_spent_first_and_what_it_pays_of_a_held_price_goes_back(self) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        money.promotion(buyer=tenant, minor=100, at=NOW)
        asked = ask(quote)
        assert held(tenant) == quote.total_minor
        decide(purchase_requests.approve, asked)
        order(quote)
        kept = WalletHold.objects.get()
        assert (
            legs(Entry.objects.get(resolved_hold=kept), AccountKind.HOLD) == quote.total_minor - 100
        )
        assert free(tenant) == 100_000 - quote.total_minor + 100
        assert breaches() == []

    def test_pays_what_the_wallet_does_not_hold(self) -> None:
        tenant = a_tenant(funds=200)
        quote = factories.make_quote(tenant=tenant)
        money.promotion(buyer=tenant, minor=quote.total_minor - 150, at=NOW)
        asked = ask(quote)
        assert (held(tenant), free(tenant)) == (200, 0)
        decide(purchase_requests.approve, asked)
        order(quote)
        assert (held(tenant), free(tenant), breaches()) == (0, 50, [])

    def test_that_pays_all_of_it_holds_nothing_of_an_empty_wallet(self) -> None:
        tenant = a_tenant(funds=0)
        quote = factories.make_quote(tenant=tenant)
        money.promotion(buyer=tenant, minor=quote.total_minor, at=NOW)
        asked = ask(quote)
        assert not WalletHold.objects.exists()
        decide(purchase_requests.approve, asked)
        order(quote)
        assert (free(tenant), breaches()) == (0, [])

    def test_counts_when_it_is_said_what_is_missing(self) -> None:
        tenant = a_tenant(funds=200)
        quote = factories.make_quote(tenant=tenant)
        money.promotion(buyer=tenant, minor=quote.total_minor - 201, at=NOW)
        with pytest.raises(InsufficientFunds) as refused:
            ask(quote)
        assert refused.value.extra["missing"] == {"amount_minor": 1, "currency": "usd"}
