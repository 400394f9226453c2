"""Any order of events keeps the books, and when all is over every account that must be empty is."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import Sum
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agents.models import Outage
from agents.protocol import Cause
from billing import (
    approvals,
    books,
    corrections,
    disputes,
    earnings,
    invoices,
    ledger,
    payouts,
    promotions,
    provider_money,
    purchases,
    receivables,
    refunds,
    settlements,
    wallet,
)
from billing.invoices import movements
from billing.ledger import InsufficientFunds
from billing.models import (
    Account,
    Dispute,
    Entry,
    InvoiceLine,
    Payout,
    Posting,
    Refund,
    Reserve,
    Settlement,
)
from billing.states import (
    AccountKind,
    ApprovalKind,
    DisputeStatus,
    EntryKind,
    PayoutStatus,
    RefundStatus,
)
from marketplace.core.money import Money
from scheduler.models import Lease, Reclaim, Reservation
from scheduler.states import LeaseStatus, PaymentMethod, ReservationStatus
from tests.billing import factories

pytestmark = pytest.mark.django_db

HOURS = 3
SECONDS = HOURS * 3600
DURING = factories.START + dt.timedelta(hours=HOURS - 1) + dt.timedelta(hours=2)
FAR = factories.START + dt.timedelta(days=365)
FARTHER = FAR + dt.timedelta(days=100)
# What must hold nothing once everything that was bought is over and everybody has been paid.
ENDS_AT_ZERO = (
    AccountKind.HOLD,
    AccountKind.DEFERRED,
    AccountKind.REFUND_PAYABLE,
    AccountKind.PSP_CLEARING,
    AccountKind.RECEIVABLE,
    AccountKind.DISPUTE_HOLD,
    AccountKind.PROMO,
    AccountKind.OWNER_ACCRUED,
    AccountKind.OWNER_PAYABLE,
    AccountKind.OWNER_RESERVE,
    AccountKind.PAYOUT_IN_TRANSIT,
    AccountKind.U_OPEN,
)


def balances(*kinds: AccountKind) -> dict[str, int]:
    """Return what accounts of some kinds hold, derived from postings, those at zero left out."""
    sums: dict[str, int] = {}
    for posting in Posting.objects.filter(account__kind__in=kinds).select_related("account"):
        account = posting.account
        sign = 1 if posting.side == account.normal_side else -1
        place = f"{account.code} {account.currency}"
        sums[place] = sums.get(place, 0) + sign * posting.amount
    return {place: amount for place, amount in sums.items() if amount}


class Market(RuleBasedStateMachine):
    """One tenant and one owner, whose reservations run through every fate that money can have."""

    def __init__(self) -> None:
        super().__init__()
        self.savepoint = transaction.savepoint()
        self.tenant = factories.tenant()
        self.number = 0
        self.grants: list[str] = []
        self.running: list[Lease] = []
        self.bought: list[Reservation] = []
        self.held: list[Reservation] = []
        self.invoices: dict[str, int] = {}
        self.clearing: dict[str, int] = {}
        self.months = 0

    def teardown(self) -> None:
        """End every run with the closing of everything, and forget it."""
        try:
            self.close_everything()
        finally:
            transaction.savepoint_rollback(self.savepoint)

    def next_id(self, prefix: str) -> str:
        self.number += 1
        return f"{prefix}_{self.number}"

    def attempt(self, verb: Callable[[], Any]) -> Any:
        """Run a verb that the wallet may refuse; None when it did, and nothing of it is left."""
        inner = transaction.savepoint()
        try:
            return verb()
        except InsufficientFunds:
            transaction.savepoint_rollback(inner)
            return None

    # --- money in -------------------------------------------------------------------------------

    @rule(amount=st.integers(1, 20_000))
    def deposit(self, amount: int) -> None:
        key = self.next_id("deposit")
        for _ in range(2):
            wallet.record_deposit(
                organization=self.tenant,
                amount=Money(amount, "usd"),
                idempotency_key=key,
                at=factories.START,
                actor="test",
            )

    @rule(amount=st.integers(1, 20_000))
    def top_up(self, amount: int) -> None:
        payment = self.next_id("pi")
        for _ in range(2):
            provider_money.top_up(
                organization=self.tenant,
                object_id=payment,
                amount=Money(amount, "usd"),
                at=factories.START,
            )
        self.clearing[payment] = amount

    @rule(amount=st.integers(1, 5_000))
    def grant(self, amount: int) -> None:
        self.grants.append(self.next_id("promo"))
        promotions.grant(
            organization=self.tenant,
            grant_id=self.grants[-1],
            amount=Money(amount, "usd"),
            at=factories.START,
        )

    # --- purchases ------------------------------------------------------------------------------

    @rule(
        price=st.integers(0, 3000),
        gpus=st.integers(1, 4),
        fee=st.integers(0, 9000),
        method=st.sampled_from(PaymentMethod),
        is_promoted=st.booleans(),
    )
    def buy(
        self, *, price: int, gpus: int, fee: int, method: PaymentMethod, is_promoted: bool
    ) -> None:
        def purchase() -> Reservation:
            row = factories.reservation(
                buyer=self.tenant,
                gpus=gpus,
                hours=HOURS,
                total_minor=price,
                fee_basis_points=fee,
                paid=False,
            )
            row.payment_method = method
            row.save(update_fields=["payment_method"])
            if method == PaymentMethod.CARD:
                payment = self.next_id("pi")
                purchases.capture_payment(reservation=row, object_id=payment, at=factories.START)
                self.clearing[payment] = price
            elif method == PaymentMethod.INVOICE:
                self.invoices[factories.bought_on_account(row)] = price
            else:
                if is_promoted and self.grants:
                    promotions.spend(reservation=row, grant_id=self.grants[-1], at=factories.START)
                purchases.post(reservation=row, at=factories.START)
            return row

        row = self.attempt(purchase)
        if row is not None:
            self.bought.append(row)

    @rule(price=st.integers(1, 3000))
    def hold(self, price: int) -> None:
        def take() -> Reservation:
            row = factories.reservation(
                buyer=self.tenant,
                hours=HOURS,
                total_minor=price,
                status=ReservationStatus.PAYMENT_PENDING,
                paid=False,
            )
            Reservation.objects.filter(pk=row.pk).update(payment_due_at=FARTHER)
            purchases.hold(reservation=row, at=factories.START)
            return row

        row = self.attempt(take)
        if row is not None:
            self.held.append(row)

    @precondition(lambda self: self.held)
    @rule(is_captured=st.booleans())
    def resolve(self, *, is_captured: bool) -> None:
        row = self.held.pop()
        if is_captured:
            purchases.capture_hold(reservation=row, at=factories.START)
            self.bought.append(row)
        else:
            purchases.void_hold(reservation=row, at=factories.START)
        self._set_status(
            row, ReservationStatus.ACTIVE if is_captured else ReservationStatus.EXPIRED
        )

    @precondition(lambda self: self.invoices)
    @rule(data=st.data())
    def pay_invoice(self, data: st.DataObject) -> None:
        invoice, owed = self.invoices.popitem()
        paid = data.draw(st.integers(0, owed + 50))
        if paid:
            receivables.pay(
                organization=self.tenant,
                invoice_id=invoice,
                payment_id=self.next_id("pay"),
                amount_minor=paid,
                currency="usd",
                at=factories.START,
                is_by_bank=True,
            )
        if paid < owed:
            approval = approvals.request(
                kind=ApprovalKind.WRITE_OFF,
                organization=self.tenant,
                subject_id=invoice,
                amount=Money(owed - paid, "usd"),
                reason="nobody pays",
                at=factories.START,
                actor="anna",
            )
            approvals.approve(approval_id=approval.id, at=factories.START, actor="bert")

    @rule()
    def close_month(self) -> None:
        self.months += 1
        invoices.run_due(at=factories.START + self.months * dt.timedelta(days=31))

    # --- delivery -------------------------------------------------------------------------------

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
            self._set_status(row, ReservationStatus.FAILED)

    @precondition(lambda self: self.running)
    @rule(
        at=st.integers(0, SECONDS - 1), length=st.integers(1, SECONDS), cause=st.sampled_from(Cause)
    )
    def lose(self, at: int, length: int, cause: Cause) -> None:
        lease = self.running[-1]
        if not lease.gpu_uuids or lease.gpu_uuids[0] in self._lost():
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
                currency="usd",
                actor="test",
            )
        row = lease.reservation
        if not any(other.reservation_id == row.pk for other in self.running):
            self._set_status(
                row, ReservationStatus.RECLAIMED if reclaimed else ReservationStatus.COMPLETED
            )

    # --- settlement and money out ---------------------------------------------------------------

    @rule()
    def settle(self) -> None:
        settlements.settle_ended(at=FAR)

    @rule(seconds=st.integers(1, 3000))
    def learn_late(self, seconds: int) -> None:
        """Let evidence of an outage come after the settlement, and correct by it."""
        row = Settlement.objects.filter(review_due_at__isnull=False).first()
        if row is None or row.review_due_at is None or row.lease.gpu_uuids[0] in self._lost():
            return
        factories.outage(of=row.lease, seconds=seconds)
        corrections.review(settlement_id=row.pk, at=row.review_due_at)

    @rule()
    def release(self) -> None:
        payouts.release_due(at=FAR)

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
            currency="usd",
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
        else:
            bearer = factories.owner() if of_owner else None
            disputes.lose(dispute_id=row.pk, at=FAR, actor="test", borne_by=bearer)

    @rule(amount=st.integers(1, 20_000))
    def be_kind(self, amount: int) -> None:
        approval = approvals.request(
            kind=ApprovalKind.REFUND,
            organization=self.tenant,
            subject_id=self.next_id("case"),
            amount=Money(amount, "usd"),
            reason="a bad day",
            at=FAR,
            actor="anna",
        )
        if approval.decided_at is None:
            approvals.approve(approval_id=approval.id, at=FAR, actor="bert")

    @precondition(lambda self: self.clearing)
    @rule(fee=st.integers(0, 40))
    def match(self, fee: int) -> None:
        payment, amount = self.clearing.popitem()
        if not amount:
            return
        taken = min(fee, amount)
        transaction_id = self.next_id("txn")
        provider_money.match(
            object_id=payment,
            transaction_id=transaction_id,
            amount=Money(amount, "usd"),
            fee_minor=taken,
            at=FAR,
        )
        if amount > taken:
            provider_money.make_available(
                transaction_id=transaction_id, amount=Money(amount - taken, "usd"), at=FAR
            )

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

    # --- what must hold -------------------------------------------------------------------------

    @rule()
    def close_everything(self) -> None:
        """After everything is over and everybody was paid, nothing is left open anywhere."""
        while self.held:
            self.resolve(is_captured=False)
        while self.bought:
            self._set_status(self.bought.pop(), ReservationStatus.FAILED)
        while self.running:
            lease = self.running.pop()
            Lease.objects.filter(pk=lease.pk).update(
                status=LeaseStatus.FAILED if lease.handed_over_at is None else LeaseStatus.ENDED,
                returned_at=lease.handed_over_at and lease.ends_at,
                closed_at=lease.ends_at,
            )
            self._set_status(lease.reservation, ReservationStatus.COMPLETED)
        for _ in range(2):
            settlements.settle_ended(at=FAR)
        while Dispute.objects.filter(status=DisputeStatus.OPEN).exists():
            self.decide(is_won=True, of_owner=False)
        for invoice, owed in self.invoices.items():
            if owed:
                receivables.write_off(
                    organization=self.tenant,
                    invoice_id=invoice,
                    amount_minor=owed,
                    currency="usd",
                    at=FAR,
                )
        self.invoices.clear()
        for name in self.grants:
            promotions.expire(organization=self.tenant, grant_id=name, currency="usd", at=FAR)
        while self.clearing:
            self.match(fee=1)
        while refunds.open_due(at=FAR) or Refund.objects.filter(status=RefundStatus.DUE).exists():
            self.refund(fails=False)
        payouts.release_due(at=FAR)
        while Reserve.objects.filter(released_at=None).exists():
            assert payouts.release_due(at=FARTHER)
        while Payout.objects.filter(status=PayoutStatus.DUE).exists():
            self.pay_out(fails=False)
        assert balances(*ENDS_AT_ZERO) == {}
        self.check()
        self.tell_everything()

    def tell_everything(self) -> None:
        """After the last month is closed, each charge is on an invoice, and each return on a credit note."""
        self.months = max(self.months, (FARTHER - factories.START).days // 31 + 2)
        invoices.run_due(at=factories.START + self.months * dt.timedelta(days=31))
        left = movements.untold(organization=self.tenant, before=FARTHER)
        assert left.charges == []
        # What is given back beyond all that was ever invoiced is a gift, and on no credit note.
        for each in left.returns:
            lines = InvoiceLine.objects.filter(reservation=each.reservation)
            charged, credited = (
                lines.filter(corrects_line__isnull=is_charge).aggregate(sum=Sum("net_minor"))["sum"]
                for is_charge in (True, False)
            )
            assert charged == credited
        self.check()

    def check(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
        report = books.check(at=FARTHER)
        assert report.ok, [check for check in report.checks if not check.ok]

    @invariant()
    def nothing_is_made_or_lost(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
            cursor.execute(
                "SELECT sum(CASE WHEN p.side = 'debit' THEN p.amount ELSE -p.amount END)"
                " FROM billing_posting p JOIN billing_account a ON a.id = p.account_id"
                " GROUP BY a.currency"
            )
            assert all(total == 0 for (total,) in cursor.fetchall())
        assert not Account.objects.filter(balance__lt=0).exists()

    def _lost(self) -> set[str]:
        return set(Outage.objects.values_list("gpu__uuid", flat=True))

    def _set_status(self, row: Reservation, status: ReservationStatus) -> None:
        Reservation.objects.filter(pk=row.pk).update(status=status)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("examples", "steps"),
    [(5, 15), pytest.param(100, 50, marks=pytest.mark.slow, id="two hundred long runs")],
)
# Half of the runs keep a reserve back, half do not.
@pytest.mark.parametrize("reserve", [0, 1000])
def test_any_order_of_events_keeps_the_books(db, settings, examples, steps, reserve):
    settings.OWNER_RESERVE_BASIS_POINTS = reserve
    run_state_machine_as_test(
        Market,
        settings=hypothesis_settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_replay_of_the_journal_into_empty_books_gives_the_same_balances():
    """The same entries, in their order, through the same door, in a database whose books are empty."""
    buyer = factories.tenant(funds_minor=5000)
    for gpus in (1, 2, 3):
        row = factories.reservation(buyer=buyer, gpus=gpus, hours=2)
        lease = factories.lease(of=row, returned_after_seconds=5000)
        factories.meter_fully(of=lease)
    settlements.settle_ended(at=FAR)
    payouts.release_due(at=FAR)
    payouts.send(payout_id=Payout.objects.first().pk, at=FAR, actor="test")

    def kept() -> dict[tuple[str, str], int]:
        rows = Account.objects.filter(guarded=True).values_list("code", "currency", "balance")
        return {(code, currency): balance for code, currency, balance in rows}

    journal = [
        (
            entry,
            [
                ledger.Leg(
                    ledger.AccountRef(
                        AccountKind(p.account.kind),
                        p.account.currency,
                        p.account.subject_id,
                        p.account.organization,
                    ),
                    ledger.Side(p.side),
                    p.amount,
                )
                for p in entry.postings.select_related("account__organization").order_by("id")
            ],
        )
        for entry in Entry.objects.order_by("recorded_at", "pk")
    ]
    before, derived = kept(), balances(*AccountKind)
    assert before
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
        cursor.execute("SET LOCAL session_replication_role = replica")
        for table in (
            *("billing_payouttransition", "billing_payout", "billing_settlement"),
            *("billing_posting", "billing_entry", "billing_account"),
        ):
            cursor.execute(f"DELETE FROM {table}")
        cursor.execute("SET LOCAL session_replication_role = DEFAULT")
    assert kept() == {}
    for entry, legs in journal:
        ledger.post(
            idempotency_key=entry.idempotency_key,
            kind=EntryKind(entry.kind),
            subject_id=entry.subject_id,
            effective_at=entry.effective_at,
            legs=legs,
        )
    assert (kept(), balances(*AccountKind)) == (before, derived)
