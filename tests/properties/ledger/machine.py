"""Every fate that money can have, in any order: what runs, settles, is paid out and is called off."""

import datetime as dt

from django.conf import settings
from django.db.models import Sum
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from agents.protocol import Cause
from billing import (
    approvals,
    corrections,
    disputes,
    earnings,
    fee_shares,
    invoices,
    ledger,
    payouts,
    promotions,
    receivables,
    refunds,
    settlements,
    tax_remittances,
)
from billing.invoices import movements
from billing.models import Dispute, Entry, InvoiceLine, Payout, Refund, Reserve, Settlement
from billing.states import ApprovalKind, DisputeStatus, EntryKind, PayoutStatus, RefundStatus
from billing.tax_remittances import NothingToRemit
from marketplace.core.money import Money
from scheduler.models import Lease, Reclaim, Reservation
from scheduler.states import LeaseStatus, ReservationStatus
from tests.billing import factories
from tests.properties.ledger.buying import WHO, Buying
from tests.properties.ledger.model import DURING, ENDS_AT_ZERO, FAR, FARTHER, SECONDS, balances

MONTH = dt.timedelta(days=31)
# The months in which money moves: tax of these is over and filed at FARTHER.
FILED = tuple(f"{at:%Y-%m}" for at in (factories.START, FAR))


class Market(Buying):
    """Tenants and an owner, whose reservations run through every fate that money can have."""

    @precondition(lambda self: self.bought)
    @rule(
        data=st.data(),
        nodes=st.integers(0, 2),
        handover=st.none() | st.integers(0, SECONDS - 1),
    )
    def start(self, data: st.DataObject, nodes: int, handover: int | None) -> None:
        row = self.bought.pop(data.draw(st.integers(0, len(self.bought) - 1)))
        left = row.gpus
        for _ in range(nodes):
            if not left:
                break
            gpus = data.draw(st.integers(1, left))
            left -= gpus
            lease = factories.lease(
                of=row,
                gpus=gpus,
                status=LeaseStatus.ACTIVE,
                handed_over_after_seconds=handover,
            )
            for gpu in range(gpus):
                factories.meter(
                    of=lease, gpu=gpu, seconds=SECONDS, busy=data.draw(st.integers(0, 900))
                )
            self.running.append(lease)
        if nodes == 0:
            self.set_status(row, ReservationStatus.FAILED)

    @precondition(lambda self: self.running)
    @rule(
        at=st.integers(0, SECONDS - 1), length=st.integers(1, SECONDS), cause=st.sampled_from(Cause)
    )
    def lose(self, at: int, length: int, cause: Cause) -> None:
        lease = self.running[-1]
        if not lease.gpu_uuids or lease.gpu_uuids[0] in self.lost():
            return
        factories.outage(of=lease, from_second=at, seconds=length, cause=cause)

    @rule()
    def close_hours(self) -> None:
        while earnings.close_due(at=DURING):
            pass

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        length=st.integers(0, SECONDS),
        reclaimed=st.booleans(),
    )
    def finish(self, *, data: st.DataObject, length: int, reclaimed: bool) -> None:
        lease = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        handed_over_at = lease.handed_over_at
        ended_at = lease.ends_at
        if handed_over_at is not None:
            ended_at = min(handed_over_at + dt.timedelta(seconds=length), lease.ends_at)
        Lease.objects.filter(pk=lease.pk).update(
            status=LeaseStatus.FAILED if handed_over_at is None else LeaseStatus.ENDED,
            returned_at=None if handed_over_at is None else ended_at,
            closed_at=lease.ends_at,
        )
        if reclaimed and handed_over_at is not None and lease.starts_at < ended_at < lease.ends_at:
            Reclaim.objects.create(
                lease=lease,
                notice_at=lease.starts_at,
                due_at=ended_at,
                promised_until=lease.ends_at,
                remaining_minor=400,
                compensation_minor=data.draw(st.integers(0, 100)),
                currency=settings.CURRENCY,
                actor="test",
            )
        row = lease.reservation
        if not any(other.reservation_id == row.pk for other in self.running):
            self.set_status(
                row, ReservationStatus.RECLAIMED if reclaimed else ReservationStatus.COMPLETED
            )

    @rule()
    def settle(self) -> None:
        settlements.settle_ended(at=FAR)

    @rule(seconds=st.integers(1, 3000))
    def learn_late(self, seconds: int) -> None:
        """Let evidence of an outage come after the settlement, and correct by it."""
        row = Settlement.objects.filter(review_due_at__isnull=False).first()
        if row is None or row.review_due_at is None or row.lease.gpu_uuids[0] in self.lost():
            return
        factories.outage(of=row.lease, seconds=seconds)
        corrections.review(settlement_id=row.pk, at=row.review_due_at)

    @rule()
    def release(self) -> None:
        payouts.release_due(at=FAR)
        fee_shares.release_due(at=FAR)

    @rule(fails=st.booleans())
    def pay_out(self, *, fails: bool) -> None:
        payout = Payout.objects.filter(status=PayoutStatus.DUE).first()
        if payout is None:
            return
        payouts.send(payout_id=payout.pk, at=FAR, actor="test")
        if fails:
            payouts.fail(payout_id=payout.pk, at=FAR, actor="test")
            payouts.retry(payout_id=payout.pk, at=FAR, actor="test")
        else:
            payouts.confirm(payout_id=payout.pk, at=FAR, actor="test")

    @rule(fails=st.booleans())
    def refund(self, *, fails: bool) -> None:
        refunds.open_due(at=FAR)
        row = Refund.objects.filter(status=RefundStatus.DUE).first()
        if row is None:
            return
        refunds.send(refund_id=row.pk, at=FAR, actor="test")
        (refunds.fail if fails else refunds.settle)(refund_id=row.pk, at=FAR, actor="test")

    @rule(amount=st.integers(1, 500), fee=st.integers(0, 20))
    def dispute(self, amount: int, fee: int) -> None:
        row = Settlement.objects.order_by("-pk").first()
        if row is None:
            return
        disputes.open_dispute(
            dispute_id=self.next_id("dp"),
            reservation=row.lease.reservation,
            amount_minor=amount,
            fee_minor=fee,
            currency=settings.CURRENCY,
            at=FAR,
            actor="test",
        )

    @rule(is_won=st.booleans(), of_owner=st.booleans())
    def decide(self, *, is_won: bool, of_owner: bool) -> None:
        row = Dispute.objects.filter(status=DisputeStatus.OPEN).first()
        if row is None:
            return
        if is_won:
            disputes.win(dispute_id=row.pk, at=FAR, actor="test")
            return
        disputes.lose(dispute_id=row.pk, at=FAR, actor="test")
        if of_owner:
            approval = approvals.request(
                kind=ApprovalKind.DISPUTE,
                organization=factories.owner(),
                subject_id=row.pk,
                amount=self.money(row.amount_minor),
                reason="the node was another one",
                at=FAR,
                actor="anna",
            )
            approvals.approve(approval_id=approval.pk, at=FAR, actor="bert")

    @rule(amount=st.integers(1, 20_000), who=WHO)
    def be_kind(self, amount: int, who: int) -> None:
        approval = approvals.request(
            kind=ApprovalKind.REFUND,
            organization=self.tenants[who],
            subject_id=self.next_id("case"),
            amount=self.money(amount),
            reason="a bad day",
            at=FAR,
            actor="anna",
        )
        if approval.decided_at is None:
            approvals.approve(approval_id=approval.id, at=FAR, actor="bert")

    @rule(data=st.data(), month=st.sampled_from(FILED), comes_back=st.booleans())
    def remit_tax(self, *, data: st.DataObject, month: str, comes_back: bool) -> None:
        """Pay a tax office something of what it is owed of a month; some transfers come back."""
        owed = [each for each in tax_remittances.periods(month=month) if each.open > 0]
        if not owed:
            return
        office = data.draw(st.sampled_from(owed))
        amount = self.money(data.draw(st.integers(1, office.open)))
        subject = tax_remittances.subject_of(jurisdiction=office.jurisdiction, month=month)
        try:
            remitted = self.by_two(ApprovalKind.TAX_REMITTANCE, subject_id=subject, amount=amount)
        except NothingToRemit:  # an earlier month gave back more than it took
            return
        if comes_back:
            self.by_two(ApprovalKind.REMITTANCE_REVERSAL, subject_id=remitted, amount=amount)

    def by_two(self, kind: ApprovalKind, *, subject_id: str, amount: Money) -> str:
        """Ask for what concerns the market alone, and let somebody else approve; return the approval's id."""
        asked = approvals.request(
            kind=kind,
            organization=None,
            subject_id=subject_id,
            amount=amount,
            reason="filed",
            at=FARTHER,
            actor="anna",
        )
        return approvals.approve(approval_id=asked.pk, at=FARTHER, actor="bert").pk

    @precondition(lambda self: Entry.objects.filter(kind=EntryKind.DEPOSIT).exists())
    @rule(data=st.data())
    def take_a_deposit_back(self, data: st.DataObject) -> None:
        deposits = Entry.objects.filter(kind=EntryKind.DEPOSIT, reversed_by=None).order_by("pk")
        if not deposits:
            return
        entry = deposits[data.draw(st.integers(0, len(deposits) - 1))]
        self.attempt(
            lambda: ledger.reverse(entry=entry, idempotency_key=f"undo:{entry.pk}", at=FAR)
        )

    @rule()
    def close_everything(self) -> None:
        """After everything is over and everybody was paid, nothing is left open anywhere."""
        while self.held:
            self.resolve(is_captured=False)
        for row in (*self.bought, *self.in_parts):
            self.set_status(row, ReservationStatus.FAILED)
        self.bought.clear()
        self.in_parts.clear()
        while self.running:
            lease = self.running.pop()
            Lease.objects.filter(pk=lease.pk).update(
                status=LeaseStatus.FAILED if lease.handed_over_at is None else LeaseStatus.ENDED,
                returned_at=lease.handed_over_at and lease.ends_at,
                closed_at=lease.ends_at,
            )
            self.set_status(lease.reservation, ReservationStatus.COMPLETED)
        for _ in range(2):
            settlements.settle_ended(at=FAR)
        while Dispute.objects.filter(status=DisputeStatus.OPEN).exists():
            self.decide(is_won=True, of_owner=False)
        for invoice, tenant in self.invoices.items():
            if owed := self.owed(invoice):
                receivables.write_off(
                    organization=tenant,
                    invoice_id=invoice,
                    amount_minor=owed,
                    currency=settings.CURRENCY,
                    decision_id=self.next_id("apr"),
                    at=FAR,
                )
        self.invoices.clear()
        while self.clearing:
            self.match(fee=1)
        while refunds.open_due(at=FAR) or Refund.objects.filter(status=RefundStatus.DUE).exists():
            self.refund(fails=False)
        self.release()
        while Reserve.objects.filter(released_at=None).exists():
            assert payouts.release_due(at=FARTHER)
        while Payout.objects.filter(status=PayoutStatus.DUE).exists():
            self.pay_out(fails=False)
        self.check_gifts()
        while promotions.expire_due(at=FARTHER):
            pass
        assert balances(*ENDS_AT_ZERO) == {}
        self.check()
        self.tell_everything()
        self.check()

    def check_gifts(self) -> None:
        """Whatever a promotion paid and nobody kept went back to it, and is nobody's money."""
        given = Entry.objects.filter(kind=EntryKind.PROMOTION_SPENT).values("subject_id")
        for row in Reservation.objects.filter(pk__in=given):
            assert promotions.surplus_minor(reservation=row) == 0

    @rule()
    def close_month(self) -> None:
        self.months += 1
        invoices.run_due(at=factories.START + self.months * MONTH)

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
