"""A market, its provider and a tenant that pays by card: what tests of money that comes in share."""

from agents.models import Node
from billing import (
    books,
    card_refunds,
    changes,
    ledger,
    payments,
    provider,
    top_up_disputes,
    wallet,
)
from billing.models import CardRefund, Payment
from billing.payments import Wishes
from billing.provider_states import PaymentMeans
from billing.states import AccountKind
from marketplace.core.money import Money
from marketplace.models import Event
from marketplace.states import Tier
from scheduler import cancellations, checks, extension_holds, reservations
from scheduler.details import ReservationDetails
from tests.fakes.stripe import balance as standin_balance
from tests.fakes.stripe import bank
from tests.fakes.stripe.world import Request
from tests.scheduler import factories

BANK = Wishes(means=PaymentMeans.BANK_TRANSFER)
CARD = Wishes(means=PaymentMeans.CARD)
SAVING = Wishes(means=PaymentMeans.CARD, saves_card=True)
SAVED = Wishes(means=PaymentMeans.CARD, with_saved_card=True)


class World:
    """A market, its provider, and a tenant that pays; every turn is what the beat would do."""

    def __init__(self, stand_in, clock):
        self.stand_in = stand_in
        self.clock = clock
        self.nodes_report = True
        self.tenant = factories.make_organization()
        # The provider takes its fees out of this, so that refunds need not wait.
        standin_balance.move(
            stand_in.world,
            source={"id": "tu_1"},
            kind="topup",
            category="topup",
            amount=1_000_000,
            currency="usd",
        )

    def top_up(self, amount=5000, wishes=CARD):
        payment = payments.open_top_up(
            organization=self.tenant, amount=Money(amount, "usd"), wishes=wishes, at=self.clock()
        )
        provider.drive_payment(payment_id=payment.pk, at=self.clock())
        payment.refresh_from_db()
        return payment

    def reserve(self, wishes=CARD, *, starts_in=24, tier=Tier.FIRM):
        owner = factories.make_pool()
        if tier == Tier.RECLAIMABLE:
            factories.make_listing(owner=owner, tier=tier, reclaim_notice_seconds=3600)
        quote = factories.make_quote(
            tenant=self.tenant, gpus=2, tier=tier, window=factories.window_in(starts_in)
        )
        reservation = reservations.reserve(
            organization=self.tenant,
            quote_id=quote.pk,
            payment_method=wishes.means,
            details=ReservationDetails(),
            at=self.clock(),
            actor="test",
        )
        payment = payments.open_for_reservation(
            reservation=reservation, wishes=wishes, at=self.clock()
        )
        provider.drive_payment(payment_id=payment.pk, at=self.clock())
        payment.refresh_from_db()
        return reservation, payment

    def pays(self, payment, method="pm_card_bypassPending"):
        return self.stand_in.control(
            "/_control/confirm", {"id": payment.provider_id, "payment_method": method}
        )

    def completes(self, payment, method="pm_card_bypassPending"):
        """Let a payment be paid and the market hear of it; return it as it is then."""
        self.pays(payment, method)
        self.turn()
        payment.refresh_from_db()
        return payment

    def paid(self, amount=5000, method="pm_card_bypassPending"):
        """Return a top-up that was paid."""
        return self.completes(self.top_up(amount), method)

    def gives_back(self, payment, amount):
        """Let a part of a top-up go back to its card; return the refund as it is a turn later."""
        refund = card_refunds.write(
            payment=payment, amount_minor=amount, reason="asked", at=self.clock()
        )
        self.turn()
        refund.refresh_from_db()
        return refund

    def turn(self, **passed):
        at = self.clock(**passed)
        if self.nodes_report:
            Node.objects.update(last_report_at=at)
        reservations.expire_unpaid(at=at)
        extension_holds.drop_due(at=at)
        payments.end_untaken(at=at)
        payments.give_up_due(at=at)
        payments.capture_due(at=at)
        payments.pay_invoices_due(at=at)
        card_refunds.send_due(at=at)
        top_up_disputes.square_due(at=at)
        Payment.objects.update(read_due_at=at)
        CardRefund.objects.update(read_due_at=at)
        provider.drive_due(at=at)
        provider.read_due(at=at)
        provider.drive_due(at=at)

    def balance(self):
        return wallet.balance(organization=self.tenant).amount_minor

    def told(self):
        return list(
            Event.objects.filter(organization=self.tenant)
            .exclude(kind__startswith="reservation.")
            .order_by("at", "id")
            .values_list("kind", flat=True)
        )

    def sound(self):
        report = books.check(at=self.clock())
        assert report.ok, [c for c in report.checks if not c.ok]


class Booked(World):
    """A tenant with a reservation that it paid by card, and what it does with it."""

    def of(self, quote):
        """Return what every verb of a change is told, of the terms of a quote."""
        return {
            "organization": self.tenant,
            "reservation_id": self.reservation.pk,
            "quote_id": quote.pk,
            "at": self.clock(),
            "actor": "test",
        }

    def leave(self):
        """Cancel the reservation; return the quote by which it was left."""
        quote = cancellations.quote(
            organization=self.tenant, reservation_id=self.reservation.pk, at=self.clock()
        )
        changes.cancel(**self.of(quote))
        return quote

    def asked_for(self, held):
        """Return what is kept for a change, and its payment, once the provider was asked for it."""
        payment = Payment.objects.get(extension=held.pk)
        provider.drive_payment(payment_id=payment.pk, at=self.clock())
        payment.refresh_from_db()
        held.refresh_from_db()
        return held, payment

    def deferred(self):
        return ledger.balance(
            account=ledger.AccountRef(AccountKind.DEFERRED, "usd", self.reservation.pk)
        )

    def sound(self):
        super().sound()
        self.capacity_is_sound()

    def capacity_is_sound(self):
        report = checks.check(at=self.clock())
        assert report.ok, [c for c in report.checks if not c.ok]


def fund_cash(stand_in, customer_id, values):
    bank.fund_cash(stand_in.world, Request("POST", "", values), customer_id)
