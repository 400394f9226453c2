"""What a wallet holds for a change of a reservation while a second person decides."""

from typing import Any

import pytest

from billing import (
    added_hours,
    changes,
    ledger,
    month_movements,
    purchase_requests,
    wallet,
)
from billing.models import Entry, PurchaseRequest, WalletHold
from billing.month_movements import month_window
from billing.purchase_requests import ApprovalRequired
from billing.states import AccountKind, EntryKind
from scheduler import extensions, rebookings
from scheduler.models import Change, ChangeQuote, Reservation
from scheduler.rebookings import WindowWish
from tests.billing.wallet_holds.market import (
    ASKER,
    breaches,
    decide,
    free,
    fund,
    held,
    legs,
    limited,
    order,
    taxed,
)
from tests.scheduler import factories
from tests.scheduler.factories import NOW, hours, window_in

pytestmark = pytest.mark.django_db


class TestChange:
    def longer(self, row: Reservation) -> ChangeQuote:
        return extensions.quote(
            organization=row.organization,
            reservation_id=row.pk,
            ends_at=row.ends_at + hours(2),
            max_rate=None,
            at=NOW,
        )

    def moved(self, row: Reservation) -> ChangeQuote:
        return rebookings.quote(
            organization=row.organization,
            reservation_id=row.pk,
            wish=WindowWish(starts_at=row.starts_at + hours(24), ends_at=row.ends_at + hours(27)),
            at=NOW,
        )

    def ask(self, quote: ChangeQuote) -> PurchaseRequest:
        with pytest.raises(ApprovalRequired):
            purchase_requests.ask_for_change(
                organization=quote.organization,
                reservation_id=quote.reservation_id,
                quote_id=quote.pk,
                payment_method="wallet",
                at=NOW,
                actor=ASKER,
            )
        return PurchaseRequest.objects.get(quote_id=quote.pk)

    def booked(self) -> Reservation:
        """Return what a taxed tenant has bought; each further order takes two."""
        factories.make_pool()
        tenant = factories.make_organization()
        fund(tenant, 100_000)
        taxed(tenant)
        row = order(factories.make_quote(tenant=tenant, window=window_in(60)))
        limited(tenant)
        return row

    @pytest.mark.parametrize("kind", ["extension", "move"])
    def test_holds_what_it_adds_with_its_tax_and_takes_it(self, kind) -> None:
        row = self.booked()
        tenant = row.organization
        before = free(tenant)
        quote = self.longer(row) if kind == "extension" else self.moved(row)
        asked = self.ask(quote)
        price = held(tenant)
        assert quote.charge_minor < price < quote.charge_minor * 1.2
        decide(purchase_requests.approve, asked)
        verb = changes.extend if kind == "extension" else changes.rebook
        change = verb(**self.of(quote), payment_method="wallet")
        bought = Entry.objects.get(kind=EntryKind.CHANGE, subject_id=change.pk)
        assert (legs(bought, AccountKind.HOLD), legs(bought, AccountKind.WALLET)) == (price, 0)
        assert (free(tenant), held(tenant)) == (before - price, 0)
        assert WalletHold.objects.get().resolved_by == bought
        assert breaches() == []
        moved = month_movements.in_month(
            organization=tenant, window=month_window(month="2026-11"), currency="usd"
        )[row.pk]
        assert moved.charged == row.total_minor + change.charged_minor
        assert (moved.refunded, moved.fees, moved.credits) == (0, 0, 0)
        assert moved.closing == moved.charged

    @pytest.mark.parametrize("kind", ["extension", "move"])
    def test_is_made_when_all_that_is_left_was_held_for_it(self, kind) -> None:
        row = self.booked()
        tenant = row.organization
        quote = self.longer(row) if kind == "extension" else self.moved(row)
        asked = self.ask(quote)
        ledger.post(
            idempotency_key="everything else",
            kind=EntryKind.WITHDRAWAL,
            subject_id="wdr_1",
            effective_at=NOW,
            legs=ledger.transfer(
                debited=wallet.account(organization=tenant, currency="usd"),
                credited=ledger.AccountRef(AccountKind.BANK, "usd"),
                amount=free(tenant),
            ),
        )
        decide(purchase_requests.approve, asked)
        verb = changes.extend if kind == "extension" else changes.rebook
        verb(**self.of(quote), payment_method="wallet")
        assert (free(tenant), held(tenant)) == (0, 0)

    @pytest.mark.usefixtures("provider")
    def test_by_card_gives_it_back(self) -> None:
        row = self.booked()
        before = free(row.organization)
        quote = self.longer(row)
        decide(purchase_requests.approve, self.ask(quote))
        added_hours.extend(**self.of(quote), with_saved_card=False, saves_card=False)
        assert not Change.objects.exists()
        assert (free(row.organization), held(row.organization)) == (before, 0)
        assert breaches() == []

    def of(self, quote: ChangeQuote) -> dict[str, Any]:
        return {
            "organization": quote.organization,
            "reservation_id": quote.reservation_id,
            "quote_id": quote.pk,
            "at": NOW,
            "actor": ASKER,
        }
