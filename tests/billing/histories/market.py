"""A market, its provider and its clock; it hears of an event at once, or of none until they are delivered."""

import copy
import datetime as dt
import random
from typing import Any

import stripe
from django.db import transaction

from agents.models import Node
from billing import (
    card_refunds,
    cash,
    inbox,
    payments,
    provider,
    refunds,
    reservation_refunds,
    transfers,
)
from billing import stripe_gateway as gateway
from billing.models import InboxEvent, Intent, Payment
from billing.payments import Wishes
from billing.provider_states import IntentStatus
from marketplace.core.money import Money
from marketplace.models import Organization
from marketplace.states import Tier
from scheduler import reservations
from scheduler.details import ReservationDetails
from scheduler.models import Reservation
from tests.billing import factories as books_factories
from tests.billing.card_market import CARD
from tests.fakes.stripe import StandIn, bank
from tests.fakes.stripe import balance as standin_balance
from tests.fakes.stripe.webhooks import Delivery, deliveries
from tests.fakes.stripe.world import ApiError, Request
from tests.scheduler import factories

PAYS = "pm_card_bypassPending"
DECLINED = "pm_card_visa_chargeDeclined"
ASKS = "pm_card_threeDSecure2Required"
DISPUTES = "pm_card_createDispute"
REFUND_WAITS = "pm_card_pendingRefund"
A_MONTH = 30 * 24  # hours ahead at which most windows begin
ENDOWMENT_MINOR = 5_000_000
DECLINED_STATUS = 402
FIRM_NODES = 10  # so that no story takes the GPUs of another
QUIET_ROUNDS_MAX = 12
CHUNK_MAX = 5  # of events that one look at the inbox finds


class Restless(AssertionError):
    """Something is tried again and again, and comes to nothing."""


class Market:
    """What happens at the provider, and what the market does of it.

    A market that listens works every event off as soon as it is there. Another one knows only the answers of
    its own calls, until `hear` delivers the events to it.
    """

    def __init__(self, stand_in: StandIn, *, listens: bool) -> None:
        self.stand_in = stand_in
        self.listens = listens
        self.at = factories.NOW
        self._heard = 0
        self.named(factories.make_pool(nodes=FIRM_NODES), "owner of what is firm")
        held = self.named(factories.make_pool(), "owner of what is reclaimable")
        factories.make_listing(owner=held, tier=Tier.RECLAIMABLE, reclaim_notice_seconds=3600)
        # As a payout to our own bank that came back: refunds and transfers are taken out of it.
        standin_balance.move(
            stand_in.world,
            source={"id": "po_1"},
            kind="payout_failure",
            category="payout_reversal",
            amount=ENDOWMENT_MINOR,
            currency="usd",
        )
        inbox.poll(at=self.at)  # from now on the list of events is read, not only its last day

    # --- time, and what is heard ---------------------------------------------------------------

    def passes(self, **time: float) -> None:
        step = dt.timedelta(**time)
        self.at += step
        self.stand_in.advance(seconds=int(step.total_seconds()))
        Node.objects.update(last_report_at=self.at)

    def hears(self) -> None:
        """Work off what happened since the last time, as it was told; nothing where nobody listens."""
        if not self.listens:
            return
        self._receive_new()
        inbox.process_due(at=self.at)
        self.beat()

    def learns(self, payment: Payment) -> Payment:
        """Read one payment, as its tenant's browser makes the market do, without any event."""
        provider.read_payment(payment_id=payment.pk, object_id=payment.provider_id, at=self.at)
        payment.refresh_from_db()
        return payment

    def beat(self) -> None:
        """Do what every two seconds brings, but for what only looks at the clock."""
        at = self.at
        payments.pay_invoices_due(at=at)
        card_refunds.send_due(at=at)
        refunds.open_due(at=at)
        reservation_refunds.ask_due(at=at)
        transfers.send_due(at=at)
        provider.drive_due(at=at)

    def comes_to_rest(self) -> None:
        """Poll for what was missed, and go on until nothing is left to be done and nothing is news."""
        for _ in range(QUIET_ROUNDS_MAX):
            news = inbox.poll(at=self.at)
            while inbox.process_due(at=self.at):
                pass
            cash.read_due(at=self.at)
            self.beat()
            self.passes(seconds=61)
            waiting = InboxEvent.objects.filter(processed_at__isnull=True)
            calls = Intent.objects.filter(status__in=(IntentStatus.NEW, IntentStatus.SENT))
            if not news and not waiting.exists() and not calls.exists():
                return
        raise Restless([*waiting.values("type", "error"), *calls.values("kind", "status")])

    def hear(self, *, seed: int | None) -> None:
        """Deliver all that ever happened: thrice, shuffled by a seed and with gaps, or once in order."""
        knobs: dict[str, Any] = (
            {} if seed is None else {"duplicate": 3, "shuffle_seed": seed, "drop": 0.2}
        )
        chance = random.Random(seed)
        waiting = self.stand_in.deliveries(**knobs)
        while waiting:
            size = 1 if seed is None else chance.randint(1, CHUNK_MAX)
            for delivery in waiting[:size]:
                self._receive(delivery)
            waiting = waiting[size:]
            inbox.process_due(at=self.at)
            if seed is None or chance.random() < 0.2:
                self.beat()

    def _receive_new(self) -> None:
        world = self.stand_in.world
        fresh = world.events[self._heard :]
        self._heard += len(fresh)
        for delivery in deliveries(world, secrets=[self.stand_in.secret], events=fresh):
            self._receive(delivery)

    def _receive(self, delivery: Delivery) -> None:
        event = gateway.verified_event(body=delivery.body, signature=delivery.signature, at=self.at)
        inbox.store(event=event, source="webhook", at=self.at)

    # --- what tenants and owners do ------------------------------------------------------------

    def tenant(self, label: str) -> Organization:
        return self.named(factories.make_organization(), label)

    def named(self, organization: Organization, label: str) -> Organization:
        """Give an organization a name by which two histories can be compared."""
        organization.name = label
        organization.save(update_fields=["name"])
        return organization

    def top_up(
        self, tenant: Organization, amount: int = 5000, wishes: Wishes = CARD, *, lost: bool = False
    ) -> Payment:
        payment = payments.open_top_up(
            organization=tenant, amount=Money(amount, "usd"), wishes=wishes, at=self.at
        )
        return self.asks(payment, lost=lost)

    def reserve(
        self,
        tenant: Organization,
        wishes: Wishes = CARD,
        *,
        starts_in: int = A_MONTH,
        tier: Tier = Tier.FIRM,
    ) -> tuple[Reservation, Payment]:
        quote = factories.make_quote(
            tenant=tenant, tier=tier, window=factories.window_in(starts_in), at=self.at
        )
        reservation = reservations.reserve(
            organization=tenant,
            quote_id=quote.pk,
            payment_method=wishes.means,
            details=ReservationDetails(),
            at=self.at,
            actor="test",
        )
        payment = payments.open_for_reservation(reservation=reservation, wishes=wishes, at=self.at)
        return reservation, self.asks(payment)

    def bought(self, tenant: Organization, method: str = PAYS) -> tuple[Reservation, Payment]:
        """Return a reservation that was paid by card, as the market knows."""
        reservation, payment = self.reserve(tenant)
        self.pays(payment, method)
        self.learns(payment)
        reservation.refresh_from_db()
        return reservation, payment

    def asks(self, payment: Payment, *, lost: bool = False) -> Payment:
        if lost:
            self.stand_in.fail("timeout_after", "POST /v1/payment_intents")
        provider.drive_payment(payment_id=payment.pk, at=self.at)
        payment.refresh_from_db()
        self.hears()
        return payment

    def pays(self, payment: Payment, *methods: str) -> None:
        """Let a tenant try cards, one after the other; a decline is an answer like another."""
        for method in methods:
            try:
                self.stand_in.control(
                    "/_control/confirm", {"id": payment.provider_id, "payment_method": method}
                )
            except ApiError as refusal:
                if refusal.status != DECLINED_STATUS:
                    raise
            self.hears()

    def answers_bank(self, payment: Payment, *, passed: bool) -> None:
        self.stand_in.control(
            "/_control/authenticate", {"id": payment.provider_id, "passed": passed}
        )
        self.hears()

    def cancels_there(self, payment: Payment) -> None:
        """Let somebody cancel a payment on the provider's own pages, or a hold lapse."""
        self.client().v1.payment_intents.cancel(payment.provider_id)
        self.hears()

    def sends_by_bank(self, tenant: Organization, amount: int) -> None:
        values = {"amount": str(amount), "currency": "usd"}
        with self.stand_in.lock:
            bank.fund_cash(
                self.stand_in.world, Request("POST", "", values), tenant.payer.customer_id
            )
        self.hears()

    def disputes(self, payment: Payment, *, won: bool | None) -> None:
        charge = self.stand_in.world.get(payment.provider_id, "payment_intent")["latest_charge"]
        made = self.stand_in.control("/_control/dispute", {"id": charge})
        self.hears()
        self.decides(made["id"], won=won)

    def dispute_of(self, payment: Payment) -> str:
        (made,) = (
            row
            for row in self.stand_in.world.all("dispute")
            if row["payment_intent"] == payment.provider_id
        )
        return str(made["id"])

    def decides(self, dispute_id: str, *, won: bool | None) -> None:
        if won is not None:
            self.stand_in.control("/_control/close-dispute", {"id": dispute_id, "won": won})
            self.hears()

    def refund_fails(self, payment: Payment) -> None:
        (made,) = (
            row
            for row in self.stand_in.world.all("refund")
            if row["payment_intent"] == payment.provider_id
        )
        self.stand_in.control("/_control/fail-refund", {"id": made["id"]})
        self.hears()

    def client(self) -> stripe.StripeClient:
        return stripe.StripeClient("sk_test_x", base_addresses={"api": self.stand_in.base_url})


class TakenBack:
    """Let something happen, and take it back afterwards: in the database, and at a provider that is named."""

    def __init__(self, market: Market | None = None) -> None:
        self.market = market

    def __enter__(self) -> None:
        self._point = transaction.savepoint()
        if self.market is not None:
            self._at = self.market.at
            self._world = copy.deepcopy(self.market.stand_in.world.__dict__)

    def __exit__(self, *_: object) -> None:
        transaction.savepoint_rollback(self._point)
        if self.market is not None:
            self.market.at = self._at
            self.market.stand_in.world.__dict__.update(self._world)


def owner_of(label: str) -> Organization:
    return books_factories.owner(name=label)
