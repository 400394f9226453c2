"""What changes do to the books, with the real scheduler beneath: to the minor unit and the GPU-second."""

import datetime as dt
from typing import Any

import pytest
from django.db import transaction

from agents.models import Node, Receipt
from agents.protocol import ReceiptKind
from billing import (
    bills,
    books,
    changes,
    checkout,
    disputes,
    fee_shares,
    ledger,
    parking,
    payouts,
    settlements,
    wallet,
)
from billing.ledger import InsufficientFunds
from billing.models import Entry, FeeShare, Payout, Reserve
from billing.payment_methods import PaymentMethodUnavailable
from billing.states import GPU_SECONDS, AccountKind, EntryKind
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler import (
    cancellations,
    change_rules,
    extensions,
    leases,
    rebookings,
    replacements,
    reservations,
)
from scheduler.change_rules import RuleWish
from scheduler.details import ReservationDetails
from scheduler.models import Allocation, Change, Lease, Reservation
from scheduler.rebookings import WindowWish
from tests.scheduler import factories
from tests.scheduler.factories import NOW, hours, make_pool, seconds, window_in

pytestmark = pytest.mark.django_db

FUNDS_MINOR = 1_000_000
LONG_AFTER = dt.timedelta(days=60)


def buy(*, at: dt.datetime = NOW, **wishes: object) -> Reservation:
    """Let a tenant with money buy what is wished, and return the reservation."""
    tenant = factories.make_organization()
    wallet.record_deposit(
        organization=tenant,
        amount=Money(FUNDS_MINOR, "usd"),
        idempotency_key="first",
        at=at,
        actor="test",
    )
    quote = factories.make_quote(tenant=tenant, at=at, **wishes)
    return checkout.purchase(
        organization=tenant,
        quote_id=quote.pk,
        payment_method="wallet",
        details=ReservationDetails(),
        at=at,
        actor="test",
    )


def leave(reservation: Reservation, *, at: dt.datetime = NOW) -> Change:
    organization = reservation.organization
    quote = cancellations.quote(organization=organization, reservation_id=reservation.pk, at=at)
    return changes.cancel(
        organization=organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        at=at,
        actor="test",
    )


def extend(reservation: Reservation, *, by: float = 2, at: dt.datetime = NOW) -> Change:
    Node.objects.update(last_report_at=at)
    quote = extensions.quote(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        ends_at=reservation.ends_at + hours(by),
        max_rate=None,
        at=at,
    )
    return changes.extend(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        payment_method="wallet",
        at=at,
        actor="test",
    )


def rebook(
    reservation: Reservation, *, starts: float, ends: float, at: dt.datetime = NOW
) -> Change:
    """Give a reservation a window by hours from NOW."""
    quote = rebookings.quote(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        wish=WindowWish(starts_at=NOW + hours(starts), ends_at=NOW + hours(ends)),
        at=at,
    )
    return changes.rebook(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        payment_method="wallet",
        at=at,
        actor="test",
    )


def balance(kind: AccountKind, *, of: Reservation, currency: str = "usd") -> int:
    return ledger.balance(account=ledger.AccountRef(kind, currency, of.pk))


def gpu_seconds(kind: AccountKind, *, of: Reservation) -> int:
    return balance(kind, of=of, currency=GPU_SECONDS)


def purse(organization: Organization) -> int:
    return wallet.balance(organization=organization).amount_minor


def breaches(*, at: dt.datetime) -> list[str]:
    return [f"{c.name}: {c.detail}" for c in books.check(at=at).checks if not c.ok]


def start(reservation: Reservation) -> list[Lease]:
    """Start a reservation and let its nodes hand over at the first second."""
    reservations.start_due(at=reservation.starts_at)
    found = list(Lease.objects.filter(reservation=reservation))
    for lease in found:
        factories.say_handed_over(lease, at=lease.starts_at)
    leases.advance(at=reservation.starts_at + seconds(1))
    return list(Lease.objects.filter(reservation=reservation))


def finish(reservation: Reservation, *, at: dt.datetime) -> None:
    """Let the nodes return what they have, and settle everything."""
    unsaid = Lease.objects.filter(reservation=reservation, closed_at__isnull=True).exclude(
        pk__in=Receipt.objects.filter(kind=ReceiptKind.RETURN).values("lease_id")
    )
    for lease in unsaid:
        factories.say_returned(lease, at=at - seconds(4))
    leases.advance(at=at)
    leases.advance(at=at)
    replacements.advance(at=at)
    reservations.finish_due(at=at)
    settlements.settle_ended(at=at + LONG_AFTER)


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
        assert balance(AccountKind.DEFERRED, of=reservation) == 0
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
        assert balance(AccountKind.DEFERRED, of=reservation) == 0
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
        change_rules.current(at=NOW)
        change_rules.publish(
            wish=RuleWish(
                ladder=[(0, 0)],
                extension_opens_seconds=7_200,
                extension_closes_seconds=3_600,
                move_closes_seconds=0,
            ),
            based_on=1,
            at=NOW,
            actor="test",
        )
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
        assert payouts.release_due(at=reserve.release_due_at) == 1
        assert Payout.objects.get(reserve=reserve).owner == owner
        assert breaches(at=reserve.release_due_at) == []


class TestExtension:
    def test_is_paid_from_the_wallet_and_settles_with_the_rest(self) -> None:
        make_pool()
        reservation = buy(gpus=2, window=window_in(1))
        start(reservation)
        at = reservation.starts_at + seconds(60)
        change = extend(reservation, by=1, at=at)
        now = Reservation.objects.get(pk=reservation.pk)
        assert now.total_minor == reservation.total_minor + change.charged_minor
        assert purse(reservation.organization) == FUNDS_MINOR - now.total_minor
        assert balance(AccountKind.DEFERRED, of=now) == now.total_minor
        assert gpu_seconds(AccountKind.U_BOUGHT, of=now) == 2 * 3 * 3600
        assert breaches(at=at) == []

        for lease in Lease.objects.filter(reservation=now):
            factories.say_returned(lease, at=lease.ends_at)
        for _ in range(2):
            leases.advance(at=now.ends_at)
        reservations.finish_due(at=now.ends_at)
        settlements.settle_ended(at=now.ends_at + LONG_AFTER)
        settlement = now.leases.get().settlement
        assert settlement.gpu_seconds_delivered == 2 * 3 * 3600
        assert settlement.bought_minor == now.total_minor
        assert balance(AccountKind.DEFERRED, of=now) == 0
        assert gpu_seconds(AccountKind.U_OPEN, of=now) == 0
        assert breaches(at=NOW + LONG_AFTER) == []

    def test_that_cannot_be_paid_leaves_the_old_end(self) -> None:
        make_pool()
        reservation = buy(gpus=2, window=window_in(24))
        tenant = reservation.organization
        spare = purse(tenant)
        ledger.post(
            idempotency_key="spent",
            kind=EntryKind.DEPOSIT,
            subject_id=tenant.pk,
            effective_at=NOW,
            legs=ledger.transfer(
                debited=wallet.account(organization=tenant, currency="usd"),
                credited=ledger.AccountRef(AccountKind.BANK, "usd"),
                amount=spare - 5,
            ),
        )
        with pytest.raises(InsufficientFunds) as refusal, transaction.atomic():
            extend(reservation)
        assert refusal.value.extra["balance"] == {"amount_minor": 5, "currency": "usd"}
        now = Reservation.objects.get(pk=reservation.pk)
        assert (now.window, now.total_minor) == (reservation.window, reservation.total_minor)
        place = Allocation.objects.get(reservation=reservation, live=True)
        assert place.period.upper == reservation.ends_at
        assert not Change.objects.exists()
        assert breaches(at=NOW) == []

    @pytest.mark.parametrize("payment_method", ["card", "bank_transfer"])
    def test_is_not_paid_by_other_means(self, payment_method: str) -> None:
        make_pool()
        reservation = buy(window=window_in(24))
        with pytest.raises(PaymentMethodUnavailable):
            changes.extend(
                organization=reservation.organization,
                reservation_id=reservation.pk,
                quote_id="qte_1",
                payment_method=payment_method,
                at=NOW,
                actor="test",
            )
        with pytest.raises(InvalidValue):
            changes.extend(
                organization=reservation.organization,
                reservation_id=reservation.pk,
                quote_id="qte_1",
                payment_method="shells",
                at=NOW,
                actor="test",
            )

    def test_then_cancelled_gives_back_both_parts(self) -> None:
        make_pool()
        reservation = buy(gpus=2, window=window_in(48))
        extend(reservation)
        change = leave(reservation)
        now = Reservation.objects.get(pk=reservation.pk)
        assert change.refunded_minor + change.fee_minor == now.total_minor
        assert change.gpu_seconds_released == 2 * 4 * 3600
        assert balance(AccountKind.DEFERRED, of=now) == 0
        assert gpu_seconds(AccountKind.U_OPEN, of=now) == 0
        assert breaches(at=NOW + LONG_AFTER) == []


class TestRebooking:
    def test_to_a_shorter_window_refunds_less_the_fee(self) -> None:
        owner = make_pool()
        reservation = buy(gpus=2, window=window_in(48, length=4))
        change = rebook(reservation, starts=48, ends=51)
        now = Reservation.objects.get(pk=reservation.pk)
        assert change.fee_minor > 0
        assert FeeShare.objects.get().owner == owner
        assert balance(AccountKind.DEFERRED, of=now) == now.total_minor
        assert purse(now.organization) == FUNDS_MINOR - now.total_minor - change.fee_minor
        assert gpu_seconds(AccountKind.U_OPEN, of=now) == 2 * 3 * 3600
        assert gpu_seconds(AccountKind.U_RELEASED, of=now) == 2 * 3600
        assert breaches(at=NOW) == []

    def test_to_a_longer_window_charges_the_difference(self) -> None:
        make_pool()
        reservation = buy(gpus=2, window=window_in(48, length=4))
        change = rebook(reservation, starts=47, ends=54)
        now = Reservation.objects.get(pk=reservation.pk)
        assert change.charged_minor == now.total_minor - reservation.total_minor > 0
        assert purse(now.organization) == FUNDS_MINOR - now.total_minor
        assert gpu_seconds(AccountKind.U_OPEN, of=now) == 2 * 7 * 3600
        assert breaches(at=NOW) == []

    def test_moves_no_money_where_the_price_is_the_same(self) -> None:
        make_pool()
        reservation = buy(gpus=2, window=window_in(48, length=4))
        rebook(reservation, starts=80, ends=84)
        entry = Entry.objects.get(kind=EntryKind.CHANGE)
        assert {p.account.kind for p in entry.postings.select_related("account")} == {
            AccountKind.U_BOUGHT,
            AccountKind.U_RELEASED,
        }
        assert breaches(at=NOW) == []

    def test_that_cannot_be_paid_leaves_the_old_window(self) -> None:
        make_pool()
        reservation = buy(gpus=8, window=window_in(48, length=4))
        with pytest.raises(InsufficientFunds), transaction.atomic():
            rebook(reservation, starts=48, ends=48 + 24 * 150)
        now = Reservation.objects.get(pk=reservation.pk)
        assert (now.window, now.total_minor) == (reservation.window, reservation.total_minor)
        place = Allocation.objects.get(reservation=reservation, live=True)
        assert place.period.upper == reservation.ends_at
        assert breaches(at=NOW) == []

    def test_is_stopped_while_the_tenants_money_is_parked(self) -> None:
        make_pool()
        reservation = buy(window=window_in(48, length=4))
        parking.park(breaches={reservation.organization.pk: "a check"}, at=NOW)
        for change in (
            lambda: rebook(reservation, starts=48, ends=51),
            lambda: extend(reservation),
            lambda: leave(reservation),
        ):
            with pytest.raises(parking.MoneyParked), transaction.atomic():
                change()
        assert not Change.objects.exists()


class TestEarlyReturn:
    def test_settles_what_was_used_and_keeps_the_rest_as_the_fee(self) -> None:
        owner = make_pool()
        reservation = buy(gpus=2, window=window_in(1))
        price = reservation.total_minor
        start(reservation)
        left_at = reservation.starts_at + hours(1) - seconds(1)
        change = leave(reservation, at=left_at)
        assert (change.refunded_minor, change.charged_minor) == (0, 0)
        reservation.refresh_from_db()
        assert reservation.total_minor + change.fee_minor == price
        finish(reservation, at=left_at + seconds(5))

        reservation.refresh_from_db()
        assert reservation.status == "completed"
        settlement = reservation.leases.get().settlement
        assert (settlement.bought_minor, settlement.refunded_minor) == (
            reservation.total_minor,
            0,
        )
        assert settlement.gpu_seconds_delivered == 2 * 3600
        assert gpu_seconds(AccountKind.U_RELEASED, of=reservation) == 2 * 3600
        assert gpu_seconds(AccountKind.U_OPEN, of=reservation) == 0
        assert balance(AccountKind.DEFERRED, of=reservation) == 0
        assert FeeShare.objects.get().owner == owner
        assert breaches(at=NOW + LONG_AFTER) == []

    def test_gives_back_what_the_ladder_says(self) -> None:
        make_pool()
        change_rules.current(at=NOW)
        change_rules.publish(
            wish=RuleWish(
                ladder=[(0, 2_500)],
                extension_opens_seconds=7_200,
                extension_closes_seconds=3_600,
                move_closes_seconds=0,
            ),
            based_on=1,
            at=NOW,
            actor="test",
        )
        reservation = buy(gpus=2, window=window_in(1))
        start(reservation)
        left_at = reservation.starts_at + seconds(1799)
        change = leave(reservation, at=left_at)
        given_back = change.refunded_minor + change.fee_minor
        assert change.fee_minor == round(given_back / 4)
        finish(reservation, at=left_at + seconds(5))
        assert purse(reservation.organization) == (
            FUNDS_MINOR - Reservation.objects.get(pk=reservation.pk).total_minor - change.fee_minor
        )
        assert breaches(at=NOW + LONG_AFTER) == []

    def test_of_a_block_that_lost_a_node_refunds_it_whole(self) -> None:
        make_pool(nodes=2)
        reservation = buy(gpus=16, window=window_in(1))
        reservations.start_due(at=reservation.starts_at)
        kept, lost = Lease.objects.filter(reservation=reservation).order_by("pk")
        factories.say_handed_over(kept, at=kept.starts_at)
        factories.say_failed(lost)
        leases.advance(at=reservation.starts_at + seconds(2))
        left_at = reservation.starts_at + hours(1) - seconds(1)
        change = leave(reservation, at=left_at)
        assert change.fee_minor == 0
        assert change.gpu_seconds_released == 16 * 3600
        finish(reservation, at=left_at + seconds(5))
        used = Lease.objects.get(pk=kept.pk).settlement
        assert used.gpu_seconds_delivered == 8 * 3600
        # The lost node's hour is refunded, with a credit of a tenth of it; what is given back has none.
        assert purse(reservation.organization) == FUNDS_MINOR - used.earned_minor + 188
        assert balance(AccountKind.DEFERRED, of=reservation) == 0
        assert gpu_seconds(AccountKind.U_OPEN, of=reservation) == 0
        assert breaches(at=NOW + LONG_AFTER) == []

    def test_after_a_lost_node_was_settled_still_closes_at_zero(self) -> None:
        make_pool(nodes=2)
        reservation = buy(gpus=16, window=window_in(1, length=3))
        reservations.start_due(at=reservation.starts_at)
        kept, lost = Lease.objects.filter(reservation=reservation).order_by("pk")
        factories.say_handed_over(kept, at=kept.starts_at)
        factories.say_failed(lost)
        leases.advance(at=reservation.starts_at + seconds(2))
        settlements.settle_ended(at=reservation.starts_at + LONG_AFTER)
        left_at = reservation.starts_at + hours(1) - seconds(1)
        leave(reservation, at=left_at)
        finish(reservation, at=left_at + seconds(5))
        used = Lease.objects.get(pk=kept.pk).settlement
        # The lost node's hour is refunded, with a credit of a tenth of it; what is given back has none.
        assert purse(reservation.organization) == FUNDS_MINOR - used.earned_minor + 188
        assert balance(AccountKind.DEFERRED, of=reservation) == 0
        assert gpu_seconds(AccountKind.U_OPEN, of=reservation) == 0
        assert breaches(at=NOW + LONG_AFTER) == []
        payouts.release_due(at=NOW + 2 * LONG_AFTER)
        assert breaches(at=NOW + 2 * LONG_AFTER) == []


class TestBill:
    def told(self, reservation: Reservation) -> bills.Bill:
        now = Reservation.objects.get(pk=reservation.pk)
        bill = bills.reservation_bill(reservation=now, at=NOW + LONG_AFTER)
        seconds = bill.gpu_seconds
        assert bill.bought == bill.earned + bill.refunded + bill.fees + bill.open
        assert bill.net == bill.bought - bill.refunded
        assert seconds.bought == (
            seconds.delivered + seconds.undelivered + seconds.released + seconds.open
        )
        return bill

    def test_of_what_was_cancelled_is_the_fee(self) -> None:
        make_pool()
        reservation = buy(gpus=2, window=window_in(48))
        change = leave(reservation)
        bill = self.told(reservation)
        assert bill.final
        assert bill.bought.amount_minor == reservation.total_minor
        assert bill.fees.amount_minor == bill.net.amount_minor == change.fee_minor
        assert bill.gpu_seconds.released == bill.gpu_seconds.bought == 2 * 2 * 3600

    def test_of_what_was_extended_shortened_and_returned_adds_up(self) -> None:
        make_pool()
        reservation = buy(gpus=2, window=window_in(48, length=4))
        added = extend(reservation, by=2)
        given = rebook(reservation, starts=48, ends=53)
        now = Reservation.objects.get(pk=reservation.pk)
        Node.objects.update(last_report_at=now.starts_at)
        start(now)
        left_at = now.starts_at + hours(1) - seconds(1)
        rest = leave(now, at=left_at)
        finish(now, at=left_at + seconds(5))
        bill = self.told(now)
        assert bill.final
        assert bill.bought.amount_minor == reservation.total_minor + added.charged_minor
        assert bill.fees.amount_minor == given.fee_minor + rest.fee_minor
        assert bill.gpu_seconds.delivered == 2 * 3600
        assert bill.gpu_seconds.released == 2 * 5 * 3600
        assert bill.net.amount_minor == FUNDS_MINOR - purse(now.organization)
