"""What a wallet held for an order that is not made: given back once, and found where it was not."""

import datetime as dt
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import IntegrityError, connections, transaction
from django.db.models import F

from billing import (
    books,
    parking,
    purchase_requests,
    tasks,
    wallet_holds,
    withdrawals,
)
from billing.models import Entry, WalletHold
from billing.states import EntryKind
from billing.withdrawals import WithdrawalRefused
from marketplace.core.money import Money
from marketplace.models import Event
from scheduler.models import Quote
from tests.billing.wallet_holds.market import (
    ASKER,
    LATE,
    a_tenant,
    ask,
    breaches,
    decide,
    free,
    held,
)
from tests.scheduler import factories
from tests.scheduler.factories import NOW

pytestmark = pytest.mark.django_db


class TestGivenBack:
    def test_when_it_is_refused(self) -> None:
        tenant = a_tenant()
        asked = ask(factories.make_quote(tenant=tenant))
        refused = decide(purchase_requests.refuse, asked)
        assert (free(tenant), held(tenant)) == (100_000, 0)
        assert purchase_requests.held_minor(refused) == 0
        told = Event.objects.get(kind="purchase_request.refused")
        assert told.data["held_minor"] == 0
        assert WalletHold.objects.get().resolution == "voided"
        assert breaches() == []

    @pytest.mark.parametrize("is_approved", [True, False])
    def test_when_its_quote_expires_and_not_before(self, is_approved) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        asked = ask(quote)
        if is_approved:
            decide(purchase_requests.approve, asked)
        assert wallet_holds.void_due(at=quote.expires_at - dt.timedelta(seconds=1)) == 0
        assert held(tenant) == quote.total_minor
        assert wallet_holds.void_due(at=quote.expires_at) == 1
        assert (free(tenant), held(tenant)) == (100_000, 0)
        assert wallet_holds.void_due(at=quote.expires_at) == 0
        assert breaches(at=quote.expires_at) == []

    def test_by_a_task_of_its_own(self) -> None:
        tenant = a_tenant()
        ask(factories.make_quote(tenant=tenant))
        tasks.void_holds()  # now is later than NOW
        assert held(tenant) == 0

    @pytest.mark.django_db(transaction=True)
    def test_is_left_to_the_order_that_has_locked_it(self) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        ask(quote)

        def sweep() -> int:
            try:
                return wallet_holds.void_due(at=quote.expires_at)
            finally:
                connections["default"].close()

        with ThreadPoolExecutor(max_workers=1) as other, transaction.atomic():
            assert wallet_holds.open_of(quote_id=quote.pk) is not None
            assert other.submit(sweep).result(timeout=30) == 0
        assert sweep() == 1

    def test_once_the_money_moves_again(self) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        asked = ask(quote)
        parking.park(breaches={tenant.pk: "looked into"}, at=NOW)
        assert decide(purchase_requests.refuse, asked).status == "refused"
        later = quote.expires_at + LATE
        assert (wallet_holds.void_due(at=later), held(tenant)) == (0, quote.total_minor)
        assert breaches(at=later) == []
        parking.end(organization=tenant, at=later, actor="test")
        assert (wallet_holds.void_due(at=later), held(tenant)) == (1, 0)


class TestHeldMoney:
    def test_is_not_withdrawn(self) -> None:
        tenant = a_tenant()
        ask(factories.make_quote(tenant=tenant))
        rest = free(tenant)
        with pytest.raises(WithdrawalRefused):
            withdrawals.request(
                organization=tenant, amount=Money(rest + 1, "usd"), at=NOW, actor=ASKER
            )
        assert withdrawals.request(
            organization=tenant, amount=Money(rest, "usd"), at=NOW, actor=ASKER
        )

    def test_is_resolved_once_whatever_somebody_writes(self) -> None:
        tenant = a_tenant()
        asked = ask(factories.make_quote(tenant=tenant))
        decide(purchase_requests.refuse, asked)
        other = Entry.objects.get(kind=EntryKind.DEPOSIT)
        for change in ({"resolution": "captured", "resolved_by": other}, {"resolved_at": NOW}):
            with pytest.raises(IntegrityError, match="is resolved once"), transaction.atomic():
                WalletHold.objects.update(**change)
        open_one = ask(factories.make_quote(tenant=tenant)).hold
        with pytest.raises(IntegrityError, match="is resolved once"), transaction.atomic():
            WalletHold.objects.filter(pk=open_one.pk).update(amount_minor=F("amount_minor") - 1)
        twice = WalletHold.objects.get(pk=asked.pk).resolved_by
        with pytest.raises(IntegrityError, match="resolved_by"), transaction.atomic():
            WalletHold.objects.filter(pk=open_one.pk).update(
                resolution="voided", resolved_by=twice, resolved_at=NOW
            )

    def test_cannot_be_spent_and_given_back(self) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        asked = ask(quote)
        kept = wallet_holds.open_of(quote_id=quote.pk)
        assert kept is not None
        decide(purchase_requests.refuse, asked)
        with pytest.raises(IntegrityError, match="is resolved once"), transaction.atomic():
            wallet_holds.void(kept, at=NOW)

    def test_that_stays_too_long_is_found_and_parks_nobody(self) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        ask(quote)
        assert breaches(at=quote.expires_at + LATE - dt.timedelta(seconds=1)) == []
        report = books.check(at=quote.expires_at + LATE)
        assert [c.name for c in report.checks if not c.ok] == ["holds_end_with_their_order"]
        assert books.breaches_of(report) == {}

    def test_of_an_order_that_was_made_is_found_at_once(self) -> None:
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        decide(purchase_requests.approve, ask(quote))
        Quote.objects.update(status="used", used_at=NOW)
        report = books.check(at=NOW)
        assert books.breaches_of(report).keys() == {tenant.pk}
        assert [c.name for c in report.checks if not c.ok] == ["holds_end_with_their_order"]

    @pytest.mark.parametrize(
        "breach",
        [
            {"amount_minor": F("amount_minor") + 1},
            {"resolution": "voided", "resolved_at": NOW, "resolved_by": F("entry")},
        ],
        ids=["another amount", "resolved by nothing"],
    )
    def test_that_says_what_was_not_posted_is_found(self, unguarded, breach) -> None:
        tenant = a_tenant()
        ask(factories.make_quote(tenant=tenant))
        with unguarded():
            WalletHold.objects.update(**breach)
        assert breaches() == ["holds_keep_what_they_say"]
