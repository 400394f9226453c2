"""A tenant that pays in two parts, and what is done with what it has bought."""

from agents.models import Node
from billing import checkout, ledger, provider, refunds, reservation_refunds
from billing.deposits import collecting
from billing.models import Deposit, Payer, Payment
from billing.states import GPU_SECONDS, AccountKind
from marketplace.models import Event
from scheduler.details import ReservationDetails
from scheduler.models import Reservation
from tests.billing.card_market import Booked
from tests.scheduler import factories

DAY = 24
AHEAD_DAYS = 40


class InTwoParts(Booked):
    """A tenant that has bought eight GPUs for a day, forty days ahead, and pays a deposit for them."""

    def __init__(self, stand_in, clock):
        super().__init__(stand_in, clock)
        self.owner = factories.make_pool()

    def buy(self, *, length=DAY, ahead_days=AHEAD_DAYS, gpus=8, method="card", tenant=None):
        quote = factories.make_quote(
            tenant=tenant or self.tenant,
            gpus=gpus,
            window=factories.window_in(ahead_days * DAY, length=length),
            at=self.clock(),
        )
        self.reservation = checkout.purchase(
            organization=quote.organization,
            quote_id=quote.pk,
            payment_method=method,
            details=ReservationDetails(),
            at=self.clock(),
            actor="test",
            in_two_parts=True,
        )
        self.first = Payment.objects.get(reservation=self.reservation)
        provider.drive_payment(payment_id=self.first.pk, at=self.clock())
        self.first.refresh_from_db()
        return self.reservation

    def booked(self, **wish):
        self.buy(**wish)
        self.pays(self.first)
        self.turn()
        self.see()
        return self.reservation

    def see(self):
        self.reservation = Reservation.objects.select_related("organization", "quote").get(
            pk=self.reservation.pk
        )
        self.plan = Deposit.objects.get(pk=self.reservation.pk)

    def tick(self, **passed):
        """Let time pass, and do what the beat does."""
        at = self.clock(**passed)
        Node.objects.update(last_report_at=at)
        collecting.advance_due(at=at)
        self.turn()
        refunds.open_due(at=at)
        reservation_refunds.ask_due(at=at)
        self.turn()
        self.see()

    def until_due(self):
        """Let time pass to the announcement and then to the instant at which the balance is due."""
        due_at = self.plan.balance_due_at
        self.tick(days=(due_at - self.clock()).days - 3)
        self.tick(seconds=(due_at - self.clock()).total_seconds())

    def leave(self):
        quote = super().leave()
        self.tick()
        return quote

    def behave(self, how):
        card = self.stand_in.world.get(Payer.objects.get().saved_card_id, "payment_method")
        card["_behaves"] = how

    @property
    def second(self):
        return Payment.objects.filter(purpose="balance").order_by("id").last()

    def account(self, kind, currency="usd"):
        return ledger.balance(account=ledger.AccountRef(kind, currency, self.reservation.pk))

    def kinds(self):
        told = Event.objects.filter(organization=self.tenant, kind__startswith="balance.")
        return list(told.order_by("at", "id").values_list("kind", flat=True))

    def ends_empty(self):
        """Nothing is left in the reservation's books but what it was bought for."""
        assert self.deferred() == 0
        assert self.account(AccountKind.U_OPEN, GPU_SECONDS) == 0
        assert self.account(AccountKind.REFUND_PAYABLE) == 0
        assert self.balance() == 0
        self.sound()
