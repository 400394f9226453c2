"""A market that gives back what was paid by card."""

from billing import ledger, provider, refunds, reservation_refunds, settlements
from billing.models import Refund
from billing.states import AccountKind
from scheduler import reservations
from tests.billing.card_market import World


class Undelivering(World):
    """A market that owes a tenant what it paid by card for and never got."""

    def undelivered(self):
        reservation, payment = self.reserve()
        self.completes(payment)
        reservations.start_due(at=self.clock(days=3))
        settlements.settle_ended(at=self.clock())
        self.credit = self.balance()  # what the market gives for the breach, beside the price
        return reservation, payment

    def owing(self):
        """Return a reservation that was paid by card, was not delivered, and owes its price."""
        reservation, payment = self.undelivered()
        refunds.open_due(at=self.clock())
        return reservation, payment

    def sent(self):
        """Ask the provider for what is to go back; return the one refund there is."""
        reservation_refunds.ask_due(at=self.clock())
        provider.drive_due(at=self.clock())
        return Refund.objects.get()

    def back(self):
        """Return what came back into the wallet."""
        return self.balance() - self.credit

    def dispute(self, payment):
        """Let the card holder dispute the payment; return the provider's object, of which we know nothing."""
        payment.refresh_from_db()
        return self.stand_in.control("/_control/dispute", {"id": payment.charge_id})

    def learn(self, made, *, won=None):
        if won is not None:
            self.stand_in.control("/_control/close-dispute", {"id": made["id"], "won": won})
        assert provider.READERS["dispute"](made["id"], self.clock())

    def again(self):
        """Open what is owed, and ask the provider for it, as the beat does."""
        refunds.open_due(at=self.clock())
        reservation_refunds.ask_due(at=self.clock())
        provider.drive_due(at=self.clock())

    def statuses(self):
        return list(Refund.objects.order_by("pk").values_list("status", flat=True))

    def payable(self, reservation):
        return ledger.balance(
            account=ledger.AccountRef(AccountKind.REFUND_PAYABLE, "usd", reservation.pk)
        )
