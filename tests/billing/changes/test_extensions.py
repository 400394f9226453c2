"""Hours that are added and paid from the wallet."""

import pytest
from django.db import transaction

from billing import changes, ledger, settlements, wallet
from billing.ledger import InsufficientFunds
from billing.payment_methods import PaymentMethodUnavailable
from billing.states import AccountKind, EntryKind
from marketplace.core.errors import InvalidValue
from scheduler import leases, reservations
from scheduler.models import Allocation, Change, Lease, Reservation
from tests.billing.bookings import FUNDS_MINOR, LONG_AFTER, buy, extend, gpu_seconds, leave, start
from tests.billing.readings import balance, breaches, purse
from tests.scheduler import factories
from tests.scheduler.factories import NOW, make_pool, seconds, window_in

pytestmark = pytest.mark.django_db


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
        assert balance(AccountKind.DEFERRED, now.pk) == now.total_minor
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
        assert balance(AccountKind.DEFERRED, now.pk) == 0
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
        assert balance(AccountKind.DEFERRED, now.pk) == 0
        assert gpu_seconds(AccountKind.U_OPEN, of=now) == 0
        assert breaches(at=NOW + LONG_AFTER) == []
