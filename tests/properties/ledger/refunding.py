"""What goes back to tenants, and what their banks take back: refunds of reservations, and disputes."""

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from billing import disputes, refunds, reservation_refunds, top_up_disputes
from billing.disputes import REFUSED_AS_DISPUTED
from billing.models import Dispute, Payment, Refund, TopUpDispute
from billing.provider_states import IntentKind, PaymentStatus
from billing.provider_values import ProviderDispute
from billing.states import ApprovalKind, DisputeStatus, EntryKind, RefundStatus
from scheduler.models import Lease
from tests.billing import factories
from tests.properties.ledger.changing import RECOVERED
from tests.properties.ledger.events import event
from tests.properties.ledger.model import FAR
from tests.properties.ledger.running import Running
from tests.properties.ledger.wallets import SQUARED

OPENED = (
    EntryKind.OFFSET,
    *RECOVERED,
    EntryKind.DISPUTE_SET_OFF,
    EntryKind.DISPUTE_RETURNED,
    EntryKind.PROMOTION_RETURNED,
    EntryKind.PROMOTION_EXPIRY,
)


class Refunding(Running):
    """The rules of money that goes back the way it came."""

    @rule()
    @event(*OPENED, EntryKind.REFUND_SENT, EntryKind.REFUND_FAILED)
    def refund(self) -> None:
        """Open what is to go back, and ask the provider for what it took."""
        refunds.open_due(at=FAR)
        reservation_refunds.ask_due(at=FAR)

    @precondition(lambda self: Refund.objects.exists())
    @rule(
        data=st.data(),
        state=st.sampled_from(("pending", "succeeded", "failed", "refused", "disputed")),
    )
    @event(
        EntryKind.REFUND_SETTLED,
        EntryKind.REFUND_FAILED,
        EntryKind.PROMOTION_RETURNED,
        EntryKind.PROMOTION_EXPIRY,
    )
    def hear_of_a_refund(self, data: st.DataObject, state: str) -> None:
        known = Refund.objects.filter(
            status__in=(RefundStatus.SENT, RefundStatus.SETTLED), payment__isnull=False
        )
        self.hear_of(self.pick(data, self.read(known.select_related("payment"))), state=state)

    @precondition(lambda self: self.undisputed())
    @rule(data=st.data(), fee=st.integers(0, 20), percent=st.integers(1, 100))
    @event(EntryKind.DISPUTE_OPENED, *SQUARED)
    def dispute(self, data: st.DataObject, fee: int, percent: int) -> None:
        """Let a card holder's bank take back what a payment brought, or a part of it."""
        payment = self.pick(data, self.undisputed())
        amount = max(1, payment.received_minor * percent // 100)
        if payment.reservation is None or payment.refunds.exists():
            made = self.dispute_made(
                self.next_id("dp"), payment=payment, amount=amount, fee=fee, state="needs_response"
            )
            top_up_disputes.apply(payment=payment, made=made, at=FAR)
        else:
            disputes.open_dispute(
                dispute_id=self.next_id("dp"),
                reservation=payment.reservation,
                payment=payment,
                amount_minor=amount,
                fee_minor=fee,
                currency=payment.currency,
                at=FAR,
                actor="test",
            )

    @precondition(lambda self: TopUpDispute.objects.filter(status=DisputeStatus.OPEN).exists())
    @rule(data=st.data(), is_won=st.booleans())
    @event(EntryKind.DISPUTE_WON, EntryKind.DISPUTE_LOST, *SQUARED)
    def decide_of_a_top_up(self, data: st.DataObject, *, is_won: bool) -> None:
        known = self.read(TopUpDispute.objects.filter(status=DisputeStatus.OPEN))
        self.close_top_up_dispute(self.pick(data, known), is_won=is_won)

    @precondition(lambda self: TopUpDispute.objects.exists())
    @rule()
    @event(*SQUARED)
    def square_disputes(self) -> None:
        """Withhold, give back and collect what wallets make possible by now."""
        top_up_disputes.square_due(at=FAR)

    @precondition(lambda self: Dispute.objects.filter(status=DisputeStatus.OPEN).exists())
    @rule(data=st.data(), is_won=st.booleans(), percent_of_owner=st.integers(0, 100))
    @event(
        EntryKind.DISPUTE_WON,
        EntryKind.DISPUTE_LOST,
        EntryKind.DISPUTE_CHARGED,
        EntryKind.RESERVE_DRAWN,
    )
    def decide(self, data: st.DataObject, *, is_won: bool, percent_of_owner: int) -> None:
        """Let a bank decide; of what is lost the owner bears a part, where two people say so."""
        known = self.read(Dispute.objects.filter(status=DisputeStatus.OPEN))
        row = self.pick(data, known)
        if is_won:
            disputes.win(dispute_id=row.pk, at=FAR, actor="test")
            return
        disputes.lose(dispute_id=row.pk, at=FAR, actor="test")
        self.let_owner_bear(row, percent=percent_of_owner)

    @precondition(lambda self: self.borne_by_nobody())
    @rule(data=st.data(), percent=st.integers(1, 100))
    @event(EntryKind.DISPUTE_CHARGED, EntryKind.RESERVE_DRAWN)
    def charge(self, data: st.DataObject, percent: int) -> None:
        """Let the owner bear a part of what is left of a loss, whatever was set off by then."""
        self.let_owner_bear(self.pick(data, self.borne_by_nobody()), percent=percent)

    def let_owner_bear(self, row: Dispute, *, percent: int) -> None:
        borne = (row.amount_minor - row.set_off_minor) * percent // 100
        if borne and Lease.objects.filter(reservation=row.reservation_id).exists():
            self.by_two(
                ApprovalKind.DISPUTE,
                organization=factories.owner(),
                subject_id=row.pk,
                amount=self.money(borne),
            )

    def borne_by_nobody(self) -> list[Dispute]:
        return self.read(Dispute.objects.filter(status=DisputeStatus.LOST, charges__isnull=True))

    def hear_of(self, row: Refund, *, state: str) -> None:
        """Let the provider say what became of a refund; a closed card gives it back days later."""
        assert row.payment is not None
        outcome = "failed" if state == "disputed" else state
        made = self.refund_made(row.pk, payment=row.payment, amount=row.amount_minor, state=outcome)
        intent = self.call(IntentKind.REFUND, row.pk, at=FAR)
        if intent is not None and state in {"refused", "disputed"}:
            code = REFUSED_AS_DISPUTED if state == "disputed" else "charge_already_refunded"
            self.refuse(intent, code=code, at=FAR)
            return
        if intent is not None:
            self.will_book("refund", made.id, -row.amount_minor)
            self.answer(intent, made, at=FAR)
        elif outcome != "refused" and self.was_made(IntentKind.REFUND, row.pk):
            reservation_refunds.apply(refund_id=row.pk, made=made, at=FAR)
        row.refresh_from_db()
        if outcome == "failed" and row.status == RefundStatus.FAILED:
            self.will_book("refund_failure", made.id, row.amount_minor)

    def close_top_up_dispute(self, row: TopUpDispute, *, is_won: bool) -> None:
        made = self.dispute_made(
            row.pk,
            payment=row.payment,
            amount=row.amount_minor,
            fee=row.fee_minor,
            state="won" if is_won else "lost",
        )
        for _ in range(2):
            top_up_disputes.apply(payment=row.payment, made=made, at=FAR)

    def undisputed(self) -> list[Payment]:
        known = Payment.objects.filter(
            status=PaymentStatus.SUCCEEDED, disputes__isnull=True, top_up_disputes__isnull=True
        )
        return self.read(known.select_related("organization", "reservation"))

    def dispute_made(
        self, dispute_id: str, *, payment: Payment, amount: int, fee: int, state: str
    ) -> ProviderDispute:
        return ProviderDispute(
            id=dispute_id,
            state=state,
            amount_minor=amount,
            taken_minor=0 if state == "won" else amount,
            fee_minor=fee,
            currency=payment.currency,
            payment_id=payment.provider_id,
            created_at=FAR,
        )
