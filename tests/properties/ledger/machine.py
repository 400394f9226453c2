"""Every fate that money can have, in any order, and the end of all of it: nothing is left open anywhere."""

from django.conf import settings
from django.db.models import Q, Sum
from hypothesis.stateful import rule

from billing import (
    card_refunds,
    credit,
    disputes,
    invoices,
    promotions,
    refunds,
    releases,
    reservation_refunds,
    settlements,
    top_up_disputes,
    transfers,
    wallet,
)
from billing.invoices import movements
from billing.models import (
    CardRefund,
    Dispute,
    Entry,
    InvoiceLine,
    Refund,
    Reserve,
    TopUpDispute,
)
from billing.provider_states import CardRefundStatus
from billing.states import ApprovalKind, DisputeStatus, EntryKind, RefundStatus
from scheduler.models import Reservation
from scheduler.states import ReservationStatus
from tests.billing import factories
from tests.properties.ledger import replay
from tests.properties.ledger.controls import MONTH
from tests.properties.ledger.events import event
from tests.properties.ledger.model import DAY, ENDS_AT_ZERO, FAR, FARTHER, balances
from tests.properties.ledger.stories import Stories

# An end is reached in few rounds: what one answer makes due the next one closes.
ROUNDS_MAX = 12
RESERVED = 100 * DAY  # longer than anything is kept back


class Market(Stories):
    """Tenants and an owner, whose money runs through every fate that it can have."""

    @rule()
    @event()
    def replay_so_far(self) -> None:
        """Post the journal again in the middle of everything."""
        replay.require_same()

    def close_everything(self) -> None:
        """After everything is over and everybody was paid, nothing is left open anywhere."""
        self.is_within = True
        self.look_at_sizes()
        for row in self.parked():
            self.let_move(row)
        self.end_what_waits()
        self.end_what_runs()
        for _ in range(2):
            settlements.settle_ended(at=FAR)
        self.end_disputes()
        for sale in self.owed_sales():
            self.give_up(sale, amount=self.owed(sale))
        assert not credit.still_open().exists()
        self.send_all_back()
        self.pay_owners()
        for place in sorted(self.unbooked):
            self.book_one(place)
        self.take_over_bookings(at=FAR)
        for item in self.aside():
            self.explain(item, ApprovalKind.SUSPENSE_MARKET, amount=abs(item.left_minor))
        self.check_gifts()
        while promotions.expire_due(at=FARTHER):
            pass
        left = balances(*ENDS_AT_ZERO)
        assert left == {}, left
        self.tell_everything()
        self.check()
        replay.require_same()

    def end_what_waits(self) -> None:
        """Answer what is asked for, and give up what nobody has paid."""
        for payment in self.open_payments():
            self.hear(payment, state="canceled")
        self.release_holds()
        unpaid = (ReservationStatus.PAYMENT_PENDING, ReservationStatus.EXPIRED)
        for row in self.reservations(status__in=unpaid):
            self.set_status(row, ReservationStatus.EXPIRED)

    def end_what_runs(self) -> None:
        for row in (*self.bought(), *self.in_parts()):
            self.set_status(row, ReservationStatus.FAILED)
        for lease in self.running():
            self.end(lease, at=lease.ends_at)
            self.set_status(lease.reservation, ReservationStatus.COMPLETED)

    def end_disputes(self) -> None:
        for of_top_up in TopUpDispute.objects.filter(status=DisputeStatus.OPEN):
            self.close_top_up_dispute(of_top_up, is_won=True)
        for dispute in Dispute.objects.filter(status=DisputeStatus.OPEN):
            disputes.win(dispute_id=dispute.pk, at=FAR, actor="test")
        self.pay_what_disputes_left()

    def pay_what_disputes_left(self) -> None:
        """Let every tenant pay in what its lost disputes left owed, beyond what is in its wallet."""
        top_up_disputes.square_due(at=FAR)
        for tenant in self.tenants:
            debt = top_up_disputes.owed_minor(organization=tenant, currency=settings.CURRENCY)
            if debt:
                wallet.record_deposit(
                    organization=tenant,
                    amount=self.money(debt),
                    idempotency_key=self.next_id("deposit"),
                    at=FAR,
                    actor="test",
                )
        top_up_disputes.square_due(at=FAR)

    def send_all_back(self) -> None:
        """Open, ask for and settle every refund, until none is owed or on its way."""
        on_its_way = Q(status__in=(RefundStatus.DUE, RefundStatus.SENT))
        waits = Q(status__in=(CardRefundStatus.DUE, CardRefundStatus.PENDING))
        for _ in range(ROUNDS_MAX):
            opened = refunds.open_due(at=FARTHER)
            reservation_refunds.ask_due(at=FARTHER)
            for row in Refund.objects.filter(on_its_way, payment__isnull=False):
                self.hear_of(row, state="succeeded")
            card_refunds.send_due(at=FARTHER)
            for to_card in CardRefund.objects.filter(waits):
                self.hear_of_refund_to_card(to_card, state="succeeded")
            if not opened and not Refund.objects.filter(on_its_way).exists():
                break
        assert not Refund.objects.filter(on_its_way).exists()
        assert not CardRefund.objects.filter(waits).exists()

    def pay_owners(self) -> None:
        self.release(is_late=True)
        for reversal in self.asked_back():
            self.hear_of_reversal(reversal, is_there=False)
        while Reserve.objects.filter(released_at=None).exists():
            assert releases.release_due(at=FARTHER + RESERVED)
        for row in self.sending():
            self.hear_of_transfer(row, is_paid=True)
        for payout in self.payable():
            assert transfers.send(payout_id=payout.pk, at=FARTHER)
        for row in self.sending():
            self.hear_of_transfer(row, is_paid=True)

    def check_gifts(self) -> None:
        """Whatever a promotion paid and nobody kept went back to it, and is nobody's money."""
        given = Entry.objects.filter(kind=EntryKind.PROMOTION_SPENT).values("subject_id")
        for row in Reservation.objects.filter(pk__in=given):
            assert promotions.surplus_minor(reservation=row) == 0

    def tell_everything(self) -> None:
        """After one more month is closed, each charge is on an invoice, and each return on a credit note."""
        # A month is closed once: what was posted since the last time is told in the next one.
        self.months = max(self.months, (FARTHER - factories.START) // MONTH + 1) + 1
        invoices.run_due(at=factories.START + self.months * MONTH)
        for tenant in self.tenants:
            left = movements.untold(organization=tenant, before=FARTHER)
            assert left.charges == []
            # What is given back beyond all that was ever invoiced is a gift, and on no credit note.
            for each in left.returns:
                lines = InvoiceLine.objects.filter(reservation=each.reservation)
                charged, credited = (
                    lines.filter(corrects_line__isnull=is_charge).aggregate(sum=Sum("net_minor"))
                    for is_charge in (True, False)
                )
                assert charged == credited
