"""Leaving before the start: what the tenant gets back, and what owners get of the fee, in time."""

from typing import Any

import pytest

from billing import disputes, fee_shares, ledger, releases, settlements
from billing.models import Entry, FeeShare, Payout, Reserve
from billing.states import AccountKind, EntryKind
from tests.billing.bookings import FUNDS_MINOR, LONG_AFTER, buy, gpu_seconds, leave
from tests.billing.readings import balance, breaches, purse
from tests.scheduler import factories
from tests.scheduler.factories import NOW, make_pool, seconds, window_in

pytestmark = pytest.mark.django_db


class TestCancellation:
    def test_divides_the_price_between_tenant_owner_and_market(self) -> None:
        owner = make_pool()
        reservation = buy(gpus=8, window=window_in(48))
        price = reservation.total_minor
        change = leave(reservation)
        # Two days before: half of it is the fee, and of that 15 % are the market's.
        assert change.fee_minor == price // 2
        market = round(change.fee_minor * 15 / 100)
        fees = ledger.AccountRef(AccountKind.CANCELLATION_FEE, "usd")
        assert ledger.balance(account=fees) == market
        share = FeeShare.objects.get()
        assert (share.owner, share.amount_minor) == (owner, change.fee_minor - market)
        accrued = ledger.AccountRef(AccountKind.OWNER_ACCRUED, "usd", share.pk)
        assert ledger.balance(account=accrued) == share.amount_minor
        assert purse(reservation.organization) == FUNDS_MINOR - change.fee_minor
        assert breaches(at=NOW + LONG_AFTER) == []

    def test_leaves_every_account_of_the_reservation_at_zero(self) -> None:
        make_pool()
        reservation = buy(gpus=8, window=window_in(48))
        leave(reservation)
        assert balance(AccountKind.DEFERRED, reservation.pk) == 0
        assert gpu_seconds(AccountKind.U_OPEN, of=reservation) == 0
        promised = 8 * 2 * 3600
        assert gpu_seconds(AccountKind.U_BOUGHT, of=reservation) == promised
        assert gpu_seconds(AccountKind.U_RELEASED, of=reservation) == promised
        settlements.settle_ended(at=NOW + LONG_AFTER)
        assert not Entry.objects.filter(kind=EntryKind.REFUND).exists()

    def test_shares_the_fee_by_gpus_to_the_last_minor_unit(self) -> None:
        owners = [make_pool(gpus=count) for count in (1, 2, 4)]
        reservation = buy(gpus=7, spread="any", window=window_in(24 * 8))
        change = leave(reservation)
        shares = {s.owner: s.amount_minor for s in FeeShare.objects.select_related("owner")}
        assert set(shares) == set(owners)
        assert shares[owners[0]] < shares[owners[1]] < shares[owners[2]]
        market = round(change.fee_minor * 15 / 100)
        assert sum(shares.values()) == change.fee_minor - market
        assert balance(AccountKind.DEFERRED, reservation.pk) == 0
        assert breaches(at=NOW + LONG_AFTER) == []

    def test_moves_no_money_where_none_was_paid(self) -> None:
        make_pool()
        reservation = factories.reserve(factories.make_quote())
        leave(reservation)
        assert not Entry.objects.exists()

    def test_that_costs_everything_pays_the_owner_like_a_delivery(self) -> None:
        make_pool()
        reservation = buy(gpus=2, window=window_in(3))
        change = leave(reservation)
        assert (change.refunded_minor, change.fee_minor) == (0, reservation.total_minor)
        assert purse(reservation.organization) == FUNDS_MINOR - reservation.total_minor
        assert breaches(at=NOW + LONG_AFTER) == []

    def test_that_is_free_leaves_no_fee(self) -> None:
        make_pool()
        factories.publish_ladder((0, 0))
        reservation = buy(gpus=2)
        leave(reservation)
        assert purse(reservation.organization) == FUNDS_MINOR
        assert not FeeShare.objects.exists()
        assert breaches(at=NOW + LONG_AFTER) == []


class TestRelease:
    def test_pays_the_owner_once_when_the_dispute_window_is_over(self) -> None:
        owner = make_pool()
        leave(buy(gpus=2, window=window_in(3)))
        share = FeeShare.objects.get()
        assert fee_shares.release_due(at=share.release_due_at - seconds(1)) == 0
        assert fee_shares.release_due(at=share.release_due_at) == 1
        assert fee_shares.release_due(at=share.release_due_at) == 0
        payout = Payout.objects.get()
        assert (payout.owner, payout.fee_share, payout.settlement) == (owner, share, None)
        assert payout.amount_minor == share.amount_minor
        payable = ledger.AccountRef(AccountKind.OWNER_PAYABLE, "usd", owner.pk)
        assert ledger.balance(account=payable) == share.amount_minor
        accrued = ledger.AccountRef(AccountKind.OWNER_ACCRUED, "usd", share.pk)
        assert ledger.balance(account=accrued) == 0
        assert breaches(at=share.release_due_at) == []

    def test_waits_while_a_payment_is_disputed_and_keeps_a_reserve(self, settings: Any) -> None:
        settings.OWNER_RESERVE_BASIS_POINTS = 1000
        owner = make_pool()
        reservation = buy(gpus=2, window=window_in(3))
        leave(reservation)
        share = FeeShare.objects.get()
        due_at = share.release_due_at
        disputes.open_dispute(
            dispute_id="dp_1",
            reservation=reservation,
            amount_minor=100,
            fee_minor=15,
            currency="usd",
            at=NOW,
            actor="test",
        )
        assert fee_shares.release_due(at=due_at) == 0
        disputes.win(dispute_id="dp_1", at=due_at, actor="test")
        assert fee_shares.release_due(at=due_at) == 1
        reserve = Reserve.objects.get(fee_share=share)
        assert reserve.amount_minor == share.amount_minor // 10
        assert Payout.objects.get().amount_minor == share.amount_minor - reserve.amount_minor
        assert breaches(at=due_at) == []
        assert releases.release_due(at=reserve.release_due_at) == 1
        assert Payout.objects.get(reserve=reserve).owner == owner
        assert breaches(at=reserve.release_due_at) == []
