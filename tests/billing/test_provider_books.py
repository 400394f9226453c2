"""What the provider books of a refund that comes back, matched with what its own arrows have posted."""

import pytest

from billing import ledger, provider, provider_books, refunds, reservation_refunds
from billing.models import BalanceTransaction, Refund
from billing.states import AccountKind
from tests.billing.card_market import Booked

pytestmark = pytest.mark.django_db


class Returned(Booked):
    """A tenant that leaves what it paid by card, a month ahead, and gets most of it back."""

    def __init__(self, stand_in, clock):
        super().__init__(stand_in, clock)
        self.reservation, payment = self.reserve(starts_in=40 * 24)
        self.pays(payment, "pm_card_refundFail")
        self.turn()
        self.leave()
        refunds.open_due(at=self.clock())
        reservation_refunds.ask_due(at=self.clock())
        provider.drive_due(at=self.clock())

    def fails(self):
        """Let the card turn out to be closed, and take over what the provider says and books of it."""
        self.clock(days=8)
        self.turn()
        refund = Refund.objects.get()
        object_id = self.stand_in.world.all("refund")[0]["id"]
        provider.READERS["refund"](object_id, self.clock())
        refund.refresh_from_db()
        assert refund.status == "failed"
        provider_books.fetch(at=self.clock())
        return refund


def available() -> int:
    return ledger.balance(account=ledger.AccountRef(AccountKind.STRIPE_AVAILABLE, "usd"))


@pytest.fixture
def world(provider, clock):
    return Returned(provider, clock)


class TestRefundsOfReservationsThatFail:
    def test_after_they_were_settled_come_back_once(self, world):
        assert Refund.objects.get().status == "settled"
        provider_books.fetch(at=world.clock())
        before = available()
        refund = world.fails()
        assert BalanceTransaction.objects.filter(category="refund_failure").count() == 1
        assert not BalanceTransaction.objects.filter(matched_at=None).exclude(category="topup")
        clearing = ledger.AccountRef(AccountKind.PSP_CLEARING, "usd", refund.pk)
        assert ledger.balance(account=clearing) == 0
        made_available = sum(
            row.amount_minor - row.fee_minor
            for row in BalanceTransaction.objects.filter(
                category="charge", made_available_at__isnull=False
            )
        )
        assert available() - before in {refund.amount_minor, refund.amount_minor + made_available}
        world.sound()
