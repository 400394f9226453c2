"""What is asked of the provider, of each kind, and what must be true when it is all over."""

from agents.models import Node
from billing import (
    books,
    card_refunds,
    changes,
    ledger,
    onboarding,
    payments,
    provider_books,
    reconcile,
    refunds,
    reservation_refunds,
    transfers,
    wallet,
)
from billing import provider as doors
from billing.models import (
    CardRefund,
    Intent,
    Payer,
    Payment,
    PayoutAccount,
    Refund,
    Reversal,
    Transfer,
)
from billing.provider_states import IntentKind, IntentStatus
from billing.states import AccountKind
from marketplace.core.money import Money
from marketplace.states import Tier
from scheduler import cancellations, reservations
from scheduler.details import ReservationDetails
from scheduler.models import Reservation
from tests.billing import factories as books_factories
from tests.billing.card_market import CARD, SAVED, SAVING
from tests.billing.owner_market import released_settlement
from tests.fakes.stripe import balance as standin_balance
from tests.scheduler import factories

# What is asked for, and as what kind of call. Of one kind there are several where what follows differs.
KINDS = {
    "customer": IntentKind.CUSTOMER,
    "payment": IntentKind.PAYMENT,
    "price": IntentKind.PAYMENT,
    "capture": IntentKind.CAPTURE,
    "cancel": IntentKind.CANCEL,
    "release": IntentKind.CANCEL,
    "refund": IntentKind.REFUND,
    "reservation_refund": IntentKind.REFUND,
    "account": IntentKind.ACCOUNT,
    "transfer": IntentKind.TRANSFER,
    "reversal": IntentKind.REVERSAL,
}
# What a call makes; a capture and a cancellation change what another one has made.
OBJECTS = {
    IntentKind.CUSTOMER: "customer",
    IntentKind.PAYMENT: "payment_intent",
    IntentKind.CAPTURE: "payment_intent",
    IntentKind.CANCEL: "payment_intent",
    IntentKind.REFUND: "refund",
    IntentKind.ACCOUNT: "v2.core.account",
    IntentKind.TRANSFER: "transfer",
    IntentKind.REVERSAL: "transfer_reversal",
}
# What is told of at most once for each object, whatever was asked for how often.
ONCE = ("payment_intent.succeeded", "payment_intent.canceled", "refund.created", "transfer.created")


class Case:
    """One intent that is about to be driven, and what must be true when it is all over."""

    def __init__(self, stand_in, clock, kind):
        self.stand_in = stand_in
        self.clock = clock
        self.kind = kind
        # As a payout to our own bank that came back: what the provider sends is taken out of it.
        standin_balance.move(
            stand_in.world,
            source={"id": "po_1"},
            kind="payout_failure",
            category="payout_reversal",
            amount=100_000,
            currency="usd",
        )
        provider_books.fetch(at=clock())
        getattr(self, f"prepare_{kind}")()

    # --- what is about to be asked for ---------------------------------------------------------

    def prepare_customer(self):
        self.tenant = factories.make_organization()
        self.payment = self.a_top_up(5000, CARD)

    def prepare_payment(self):
        self.tenant = factories.make_organization()
        self.a_paid_top_up()  # makes the customer and saves a card
        self.payment = self.a_top_up(700, SAVED)

    def prepare_price(self):
        self.tenant = factories.make_organization()
        self.a_paid_top_up()
        self.reserve(SAVED, starts_in=72)

    def prepare_capture(self):
        self.tenant = factories.make_organization()
        self.reserve(CARD, starts_in=24, tier=Tier.RECLAIMABLE)
        self.pay()
        self.clock(hours=23, minutes=50)
        payments.capture_due(at=self.clock())

    def prepare_cancel(self):
        self.tenant = factories.make_organization()
        self.payment = self.a_top_up(5000, CARD)
        doors.drive_payment(payment_id=self.payment.pk, at=self.clock())
        payments.give_up_due(at=self.clock(hours=24))

    def prepare_release(self):
        self.tenant = factories.make_organization()
        self.reserve(CARD, starts_in=48, tier=Tier.RECLAIMABLE)
        self.pay()
        self.cancel_reservation()
        payments.give_up_due(at=self.clock())

    def prepare_refund(self):
        self.tenant = factories.make_organization()
        paid = self.a_paid_top_up()
        self.refund = card_refunds.write(
            payment=paid, amount_minor=500, reason="asked", at=self.clock()
        )

    def prepare_reservation_refund(self):
        self.tenant = factories.make_organization()
        self.reserve(CARD, starts_in=240)
        self.pay()
        self.cancel_reservation()
        refunds.open_due(at=self.clock())
        reservation_refunds.ask_due(at=self.clock())

    def prepare_account(self):
        self.clock(days=60)
        onboarding.ask(
            owner=books_factories.owner(),
            email="owner@example.com",
            country="DE",
            at=self.clock(),
            actor="key_1",
        )

    def prepare_transfer(self):
        self.prepare_account()
        doors.drive_due(at=self.clock())
        account = PayoutAccount.objects.get()
        self.stand_in.control("/_control/capability", {"id": account.provider_id})
        onboarding.read(account=account, at=self.clock())
        released_settlement()
        transfers.send_due(at=self.clock())

    def prepare_reversal(self):
        self.prepare_transfer()
        doors.drive_due(at=self.clock())
        transfers.take_back(
            owner=books_factories.owner(), currency="usd", amount_minor=150, at=self.clock()
        )

    def a_top_up(self, amount, wishes):
        return payments.open_top_up(
            organization=self.tenant, amount=Money(amount, "usd"), wishes=wishes, at=self.clock()
        )

    def a_paid_top_up(self):
        self.payment = self.a_top_up(5000, SAVING)
        self.pay()
        return self.payment

    def reserve(self, wishes, *, starts_in, tier=Tier.FIRM):
        owner = factories.make_pool()
        if tier == Tier.RECLAIMABLE:
            factories.make_listing(owner=owner, tier=tier, reclaim_notice_seconds=3600)
        quote = factories.make_quote(
            tenant=self.tenant, tier=tier, window=factories.window_in(starts_in)
        )
        self.reservation = reservations.reserve(
            organization=self.tenant,
            quote_id=quote.pk,
            payment_method="card",
            details=ReservationDetails(),
            at=self.clock(),
            actor="test",
        )
        self.payment = payments.open_for_reservation(
            reservation=self.reservation, wishes=wishes, at=self.clock()
        )

    def cancel_reservation(self):
        who = {"organization": self.tenant, "reservation_id": self.reservation.pk}
        quote = cancellations.quote(**who, at=self.clock())
        changes.cancel(**who, quote_id=quote.pk, at=self.clock(), actor="test")

    def pay(self):
        doors.drive_payment(payment_id=self.payment.pk, at=self.clock())
        self.payment.refresh_from_db()
        self.stand_in.control(
            "/_control/confirm",
            {"id": self.payment.provider_id, "payment_method": "pm_card_bypassPending"},
        )
        doors.read_payment(
            payment_id=self.payment.pk, object_id=self.payment.provider_id, at=self.clock()
        )
        self.payment.refresh_from_db()

    # --- what is done about it -----------------------------------------------------------------

    def drive(self, **passed):
        """Let time pass, and let the beat come round until what one call began is through."""
        at = self.clock(**passed)
        Node.objects.update(last_report_at=at)
        for _ in range(3):
            reservations.expire_unpaid(at=at)
            payments.end_untaken(at=at)
            payments.give_up_due(at=at)
            payments.capture_due(at=at)
            payments.pay_invoices_due(at=at)
            card_refunds.send_due(at=at)
            refunds.open_due(at=at)
            reservation_refunds.ask_due(at=at)
            transfers.send_due(at=at)
            doors.drive_due(at=at)

    # --- what must be true ---------------------------------------------------------------------

    def check(self):
        assert set(Intent.objects.values_list("status", flat=True)) <= {
            IntentStatus.DONE,
            IntentStatus.REFUSED,
        }
        assert not Intent.objects.filter(
            kind=KINDS[self.kind], status=IntentStatus.REFUSED
        ).exists()
        getattr(self, f"check_{self.kind}")()
        made = {
            row["metadata"]["intent_id"]: row["id"]
            for row in self.stand_in.world.all(OBJECTS[KINDS[self.kind]])
        }
        assert len(made) == len(self.stand_in.world.all(OBJECTS[KINDS[self.kind]])), "made twice"
        told = [(e["type"], e["data"]["object"]["id"]) for e in self.stand_in.world.events]
        assert not [pair for pair in told if pair[0] in ONCE and told.count(pair) > 1]
        report = books.check(at=self.clock())
        assert report.ok, [check for check in report.checks if not check.ok]
        differences = reconcile.run(at=self.clock(hours=2))
        assert not differences, [(d.kind, d.detail) for d in differences]

    def check_customer(self):
        assert len(self.stand_in.world.all("customer")) == 1
        assert Payer.objects.get().organization == self.tenant
        # It was asked for once the customer was known; a day later nobody waits for it any more.
        assert Payment.objects.get().status in {"created", "open", "cancelled"}

    def check_payment(self):
        assert Payment.objects.get(pk=self.payment.pk).status == "succeeded"
        assert wallet.balance(organization=self.tenant).amount_minor == 5700
        assert len(self.stand_in.world.all("charge")) == 2

    def check_price(self):
        """It is bought, also when it was released meanwhile: then at the locked price."""
        assert Payment.objects.get(pk=self.payment.pk).status == "succeeded"
        reservation = Reservation.objects.get()
        assert reservation.status == "scheduled"
        assert self.balance(AccountKind.DEFERRED, reservation.pk) == reservation.total_minor
        assert wallet.balance(organization=self.tenant).amount_minor == 5000
        assert len(self.stand_in.world.all("charge")) == 2

    def check_capture(self):
        """It is taken before the start; what was taken for what is over by then went back whole."""
        payment, reservation = Payment.objects.get(), Reservation.objects.get()
        assert payment.status == "succeeded"
        (charge,) = self.stand_in.world.all("charge")
        assert charge["amount_captured"] == payment.amount_minor
        if reservation.status == "scheduled":
            assert self.balance(AccountKind.DEFERRED, reservation.pk) == reservation.total_minor
            assert charge["amount_refunded"] == 0
        else:
            assert reservation.status == "payment_failed"
            assert self.clock() >= reservation.starts_at
            assert charge["amount_refunded"] == charge["amount_captured"]
        assert wallet.balance(organization=self.tenant).amount_minor == 0

    def check_cancel(self):
        assert Payment.objects.get().status == "cancelled"
        assert [row["status"] for row in self.stand_in.world.all("payment_intent")] == ["canceled"]
        assert not self.stand_in.world.all("charge")

    def check_release(self):
        assert Payment.objects.get().status == "cancelled"
        assert [row["status"] for row in self.stand_in.world.all("payment_intent")] == ["canceled"]
        (charge,) = self.stand_in.world.all("charge")
        assert (charge["captured"], charge["refunded"]) == (False, True)
        assert Reservation.objects.get().status == "cancelled"

    def check_refund(self):
        assert CardRefund.objects.get().status == "succeeded"
        assert wallet.balance(organization=self.tenant).amount_minor == 4500

    def check_reservation_refund(self):
        refund, payment = Refund.objects.get(), Payment.objects.get()
        assert refund.status == "settled"
        assert payment.refunded_minor == refund.amount_minor > 0
        assert [row["amount"] for row in self.stand_in.world.all("refund")] == [refund.amount_minor]
        assert self.balance(AccountKind.REFUND_PAYABLE, self.reservation.pk) == 0
        assert wallet.balance(organization=self.tenant).amount_minor == 0

    def check_account(self):
        (made,) = self.stand_in.world.all("v2.core.account")
        assert PayoutAccount.objects.get().provider_id == made["id"]

    def check_transfer(self):
        assert Transfer.objects.get().status == "paid"
        assert [row["amount"] for row in self.stand_in.world.all("transfer")] == [400]

    def check_reversal(self):
        assert (Reversal.objects.get().status, Transfer.objects.get().reversed_minor) == (
            "done",
            150,
        )
        (made,) = self.stand_in.world.all("transfer")
        assert made["amount_reversed"] == 150

    def balance(self, kind, subject_id):
        return ledger.balance(account=ledger.AccountRef(kind, "usd", subject_id))
