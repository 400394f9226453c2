"""Refunds, payouts with their reserve, disputes: what leaves, comes back, or never arrives."""

import datetime as dt
from typing import Any

import pytest

from billing import (
    books,
    disputes,
    parking,
    payouts,
    refunds,
    releases,
    settlements,
    wallet,
)
from billing.models import Dispute, Payout, Refund, Reserve
from billing.states import AccountKind, PayoutStatus, RefundStatus
from marketplace.core.errors import StateConflict
from marketplace.core.money import Money
from scheduler.models import Lease, Reclaim, Reservation
from scheduler.states import PaymentMethod, ReservationStatus
from tests.billing import factories
from tests.billing.readings import balance

pytestmark = pytest.mark.django_db

AT = factories.START + dt.timedelta(hours=2)
MUCH_LATER = AT + dt.timedelta(days=200)


def settled(*, returned_after_seconds: int | None = None) -> Any:
    row = factories.reservation(buyer=factories.tenant(funds_minor=471))
    lease = factories.lease(of=row, returned_after_seconds=returned_after_seconds)
    return settlements.settle(lease_id=lease.id, at=AT)


def due_refund() -> Refund:
    """Return the refund of a reservation that was paid by card and of which nothing was delivered."""
    row = factories.reservation(
        buyer=factories.tenant(), paid=False, status=ReservationStatus.FAILED
    )
    Reservation.objects.filter(pk=row.pk).update(payment_method=PaymentMethod.CARD)
    row = Reservation.objects.get(pk=row.pk)
    factories.paid_by_card(row, at=AT)
    assert settlements.refund_rest(reservation_id=row.id, at=AT)
    assert refunds.open_due(at=AT) == 1
    return Refund.objects.get()


class TestRefund:
    def test_waits_for_the_way_it_came_where_the_wallet_did_not_pay(self):
        refund = due_refund()
        tenant = refund.reservation.organization
        assert (refund.status, refund.amount_minor) == (RefundStatus.DUE, 471)
        # The credit beyond the refund was never on the card.
        assert wallet.balance(organization=tenant) == Money(47, "usd")
        assert refunds.open_due(at=AT) == 0
        assert books.check(at=AT).ok

    def test_clears_when_the_provider_has_given_it_back(self):
        refund = due_refund()
        refunds.send(refund_id=refund.id, at=AT, actor="test")
        assert balance(AccountKind.REFUND_PAYABLE, refund.reservation_id) == 0
        assert balance(AccountKind.PSP_CLEARING, refund.id) == -471
        assert books.check(at=AT).ok
        refunds.settle(refund_id=refund.id, at=AT, actor="test")
        assert balance(AccountKind.PSP_CLEARING, refund.id) == 0
        assert balance(AccountKind.STRIPE_AVAILABLE) == -471
        assert books.check(at=AT).ok

    def test_that_fails_goes_to_the_wallet(self):
        refund = due_refund()
        refunds.send(refund_id=refund.id, at=AT, actor="test")
        refunds.fail(refund_id=refund.id, at=AT, actor="test")
        tenant = refund.reservation.organization
        assert wallet.balance(organization=tenant) == Money(471 + 47, "usd")
        assert books.check(at=AT).ok

    def test_that_fails_after_it_was_settled_comes_back_and_goes_to_the_wallet(self):
        refund = due_refund()
        for verb in (refunds.send, refunds.settle, refunds.fail):
            verb(refund_id=refund.id, at=AT, actor="test")
        assert balance(AccountKind.STRIPE_AVAILABLE) == 0
        tenant = refund.reservation.organization
        assert wallet.balance(organization=tenant) == Money(471 + 47, "usd")
        assert books.check(at=AT).ok

    def test_takes_each_arrow_once(self):
        refund = due_refund()
        with pytest.raises(StateConflict):
            refunds.settle(refund_id=refund.id, at=AT, actor="test")
        refunds.send(refund_id=refund.id, at=AT, actor="test")
        with pytest.raises(StateConflict):
            refunds.send(refund_id=refund.id, at=AT, actor="test")
        refunds.settle(refund_id=refund.id, at=AT, actor="test")
        with pytest.raises(StateConflict):
            refunds.settle(refund_id=refund.id, at=AT, actor="test")

    def test_is_not_sent_while_the_tenants_money_is_parked(self):
        refund = due_refund()
        parking.park(breaches={refund.reservation.organization_id: "why"}, at=AT)
        with pytest.raises(parking.MoneyParked):
            refunds.send(refund_id=refund.id, at=AT, actor="test")


class TestPayout:
    def due(self) -> Payout:
        settled()
        assert releases.release_due(at=MUCH_LATER) == 1
        return Payout.objects.get()

    def test_is_payable_then_on_its_way_then_paid(self):
        payout = self.due()
        assert balance(AccountKind.OWNER_PAYABLE, payout.owner_id) == 400
        payouts.send(payout_id=payout.id, at=MUCH_LATER, actor="test")
        assert balance(AccountKind.OWNER_PAYABLE, payout.owner_id) == 0
        assert balance(AccountKind.PAYOUT_IN_TRANSIT, payout.id) == 400
        assert books.check(at=MUCH_LATER).ok
        payouts.confirm(payout_id=payout.id, at=MUCH_LATER, actor="test")
        assert balance(AccountKind.PAYOUT_IN_TRANSIT, payout.id) == 0
        assert balance(AccountKind.STRIPE_AVAILABLE) == -400
        assert books.check(at=MUCH_LATER).ok

    def test_that_fails_is_payable_again_and_can_be_sent_again(self):
        payout = self.due()
        for _ in range(3):
            payouts.send(payout_id=payout.id, at=MUCH_LATER, actor="test")
            payouts.fail(payout_id=payout.id, at=MUCH_LATER, actor="test")
            assert balance(AccountKind.OWNER_PAYABLE, payout.owner_id) == 400
            payouts.retry(payout_id=payout.id, at=MUCH_LATER, actor="test")
        payouts.send(payout_id=payout.id, at=MUCH_LATER, actor="test")
        payouts.confirm(payout_id=payout.id, at=MUCH_LATER, actor="test")
        assert books.check(at=MUCH_LATER).ok

    def test_takes_no_arrow_that_does_not_exist(self):
        payout = self.due()
        for verb in (payouts.confirm, payouts.fail, payouts.retry):
            with pytest.raises(StateConflict):
                verb(payout_id=payout.id, at=MUCH_LATER, actor="test")
        assert Payout.objects.get().status == PayoutStatus.DUE

    def test_is_neither_released_nor_sent_while_the_owners_money_is_parked(self):
        row = settled()
        parking.park(breaches={row.owner_id: "why"}, at=AT)
        assert releases.release_due(at=MUCH_LATER) == 0
        parking.end(organization=row.owner, at=AT, actor="test")
        assert releases.release_due(at=MUCH_LATER) == 1
        parking.park(breaches={row.owner_id: "why"}, at=AT)
        with pytest.raises(parking.MoneyParked):
            payouts.send(payout_id=Payout.objects.get().id, at=MUCH_LATER, actor="test")

    def test_comes_in_two_parts_where_a_reserve_is_kept(self, settings):
        settings.OWNER_RESERVE_BASIS_POINTS = 1000
        row = settled()
        assert releases.release_due(at=row.release_due_at) == 1
        reserve = Reserve.objects.get()
        assert (Payout.objects.get().amount_minor, reserve.amount_minor) == (360, 40)
        assert balance(AccountKind.OWNER_RESERVE, row.owner_id) == 40
        assert books.check(at=row.release_due_at).ok
        just_before = reserve.release_due_at - dt.timedelta(seconds=1)
        assert releases.release_due(at=just_before) == 0
        assert releases.release_due(at=reserve.release_due_at) == 1
        assert Payout.objects.get(reserve=reserve).amount_minor == 40
        assert balance(AccountKind.OWNER_RESERVE, row.owner_id) == 0
        assert books.check(at=reserve.release_due_at).ok


class TestDispute:
    def opened(self) -> Any:
        row = settled()
        for _ in range(2):
            disputes.open_dispute(
                dispute_id="dp_1",
                reservation=row.lease.reservation,
                amount_minor=471,
                fee_minor=15,
                currency="usd",
                at=AT,
                actor="test",
            )
        return row

    def test_freezes_what_the_owner_earned(self):
        self.opened()
        assert releases.release_due(at=MUCH_LATER) == 0
        assert balance(AccountKind.DISPUTE_HOLD, "dp_1") == 471
        assert balance(AccountKind.DISPUTE_FEES) == 15
        assert books.check(at=AT).ok

    def test_that_is_won_brings_the_money_back_but_for_its_fee(self):
        self.opened()
        disputes.win(dispute_id="dp_1", at=AT, actor="test")
        assert balance(AccountKind.DISPUTE_HOLD, "dp_1") == 0
        assert balance(AccountKind.STRIPE_AVAILABLE) == -15
        assert releases.release_due(at=MUCH_LATER) == 1
        assert books.check(at=MUCH_LATER).ok

    def test_that_is_lost_costs_the_market_where_no_owner_bears_it(self):
        self.opened()
        disputes.lose(dispute_id="dp_1", at=AT, actor="test")
        assert balance(AccountKind.DISPUTE_LOSSES) == 471
        assert books.check(at=AT).ok

    def test_ends_once(self):
        self.opened()
        disputes.win(dispute_id="dp_1", at=AT, actor="test")
        with pytest.raises(StateConflict):
            disputes.lose(dispute_id="dp_1", at=AT, actor="test")
        assert Dispute.objects.get().transitions.count() == 2


class TestReclaim:
    def reclaimed(self, *, returned_after_seconds: int, compensation: int) -> Any:
        """Return the settlement of a lease that its owner took back, with what the notice promised."""
        row = factories.reservation(
            buyer=factories.tenant(funds_minor=471), status=ReservationStatus.RECLAIMED
        )
        lease = factories.lease(of=row, returned_after_seconds=returned_after_seconds)
        ended_at = lease.starts_at + dt.timedelta(seconds=returned_after_seconds)
        Reclaim.objects.create(
            lease=lease,
            notice_at=lease.starts_at,
            due_at=ended_at,
            promised_until=lease.ends_at,
            remaining_minor=4 * compensation,
            compensation_minor=compensation,
            currency="usd",
            actor="test",
        )
        Lease.objects.filter(pk=lease.pk).update(ends_at=ended_at)
        return settlements.settle(lease_id=lease.id, at=AT)

    def test_compensates_the_tenant_out_of_what_the_lease_earned(self):
        result = self.reclaimed(returned_after_seconds=1800, compensation=59)
        assert (result.credit_minor, result.credit_of_owner_minor) == (59, 59)
        row = result.lease.reservation
        assert settlements.refund_rest(reservation_id=row.id, at=AT)
        back = wallet.balance(organization=row.organization).amount_minor
        assert back == 471 - result.earned_minor + 59
        assert books.check(at=AT).ok

    def test_is_owed_by_the_owner_where_the_lease_earned_less(self):
        result = self.reclaimed(returned_after_seconds=60, compensation=115)
        owed = result.credit_minor - result.owner_minor
        assert owed > 0
        assert balance(AccountKind.OWNER_CLAWBACK, result.owner_id) == owed
        assert settlements.refund_rest(reservation_id=result.lease.reservation_id, at=AT)
        assert books.check(at=AT).ok
