"""Of what an owner was paid twice, a share comes back to who left: to the cent, and out of what was paid.

The node has 8 GPUs at 2.352942 an hour. Two hours of it cost 3765; with two days' notice half of that is
kept, 1882, of which the owner gets 1600 at once. Whoever buys it next pays 3765 again, and of it the owner
earns 3200.
"""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from billing import changes, disputes, ledger, receivables
from billing.models import Entry, FeeShare, Payout, Posting, Promotion, Resale, Settlement
from billing.states import AccountKind, EntryKind
from marketplace.models import Event, Organization
from marketplace.states import EventKind
from scheduler import cancellations
from scheduler.models import Reservation
from tests.billing import bookings, debtors
from tests.billing import factories as rows
from tests.billing.bookings import FUNDS_MINOR, leave
from tests.billing.readings import purse
from tests.billing.resales import market as resold
from tests.billing.resales.market import KEPT, buy, deliver, holds, release, slices
from tests.scheduler import factories
from tests.scheduler.factories import NOW, window_in

pytestmark = pytest.mark.django_db


def margin() -> int:
    return resold.shared(AccountKind.RESALE_MARGIN)


class TestTheWorkedExample:
    def test_comes_to_the_cent(self, owner: Organization, left: Reservation) -> None:
        assert FeeShare.objects.get().amount_minor == 1600
        sold = buy()
        settled = deliver(sold)
        assert settled.owner_minor == 3200
        assert purse(left.organization) == KEPT
        release()
        assert slices() == [(3200, 1600, 1600, 1280)]
        assert purse(left.organization) == KEPT + 1280
        assert margin() == 320
        assert Payout.objects.get(settlement=settled).amount_minor == 3200 - 1600
        assert purse(sold.organization) == FUNDS_MINOR - 3765
        holds()

    def test_is_one_entry_out_of_what_the_lease_earned(self, left: Reservation) -> None:
        settled = deliver(buy())
        release()
        change = left.changes.get()
        entry = Entry.objects.get(kind=EntryKind.RESALE)
        assert entry.idempotency_key == f"resale:{change.pk}:{settled.lease_id}"
        assert entry.subject_id == change.pk
        legs = Posting.objects.filter(entry=entry).values_list("account__code", "side", "amount")
        assert set(legs) == {
            (f"owner_accrued:{settled.lease_id}", "debit", 1600),
            (f"wallet:{left.organization_id}", "credit", 1280),
            ("resale_margin", "credit", 320),
        }

    def test_waits_for_the_release(self, left: Reservation) -> None:
        settled = deliver(buy())
        release(at=settled.release_due_at - dt.timedelta(seconds=1))
        assert slices() == []
        release(at=settled.release_due_at)
        assert len(slices()) == 1

    def test_is_told_to_who_left_without_a_word_of_who_bought(self, left: Reservation) -> None:
        settled = deliver(buy())
        release()
        event = Event.objects.get(kind=EventKind.RESALE_CREDITED)
        assert (event.organization, event.object_id) == (left.organization, left.pk)
        assert event.data == {
            "change_id": left.changes.get().pk,
            "resale_id": Resale.objects.get().pk,
            "gpu_seconds": 8 * 7200,
            "share_minor": 1280,
            "set_off_minor": 0,
            "currency": "usd",
        }
        assert settled.lease_id not in str(event.data)

    def test_keeps_the_terms_of_the_day_on_which_it_left(
        self, left: Reservation, settings: Any
    ) -> None:
        settings.RESALE_SHARE_BASIS_POINTS = 0
        deliver(buy())
        release()
        assert slices() == [(3200, 1600, 1600, 1280)]

    def test_leaves_both_with_the_owner_where_the_market_shares_nothing(
        self, owner: Organization, settings: Any
    ) -> None:
        settings.RESALE_SHARE_BASIS_POINTS = 0
        leave(buy())
        settled = deliver(buy())
        release()
        assert slices() == []
        assert Payout.objects.get(settlement=settled).amount_minor == 3200

    def test_takes_no_more_than_the_lease_earned(self, owner: Organization) -> None:
        reservation = buy(window=window_in(12))
        leave(reservation)
        assert FeeShare.objects.get().amount_minor == 3200  # all of it, on the last day
        sold = buy(window=window_in(12))
        (lease,) = resold.start(sold)
        resold.lose_a_gpu(lease, seconds=3600)
        resold.finish(sold)
        settled = Settlement.objects.get()
        assert (settled.owner_minor, settled.credit_of_owner_minor) == (3000, 24)
        release()
        assert slices() == [(2976, 3000, 2976, 2381)]
        assert not Payout.objects.filter(settlement=settled).exists()
        holds()

    @pytest.mark.parametrize(
        ("currency", "price", "fee_share", "share"),
        [("jpy", 38, 16, 13), ("kwd", 37647, 16000, 12800)],
    )
    def test_is_in_minor_units_of_any_currency(
        self, settings: Any, currency: str, price: int, fee_share: int, share: int
    ) -> None:
        settings.CURRENCY = currency
        resold.a_node(currency=currency)
        first, second = (bookings.a_tenant(currency=currency) for _ in range(2))
        reservation = buy(by=first)
        assert reservation.total_minor == price
        leave(reservation)
        assert FeeShare.objects.get().amount_minor == fee_share
        deliver(buy(by=second))
        release()
        assert [each[2:] for each in slices()] == [(fee_share, share)]
        assert resold.shared(AccountKind.RESALE_MARGIN, currency=currency) == fee_share - share
        holds()


class TestWhatWasPaid:
    def test_is_nothing_where_leaving_was_free(self, owner: Organization) -> None:
        reservation = buy()
        organization = reservation.organization
        quote = cancellations.quote(
            organization=organization, reservation_id=reservation.pk, at=NOW, fee_basis_points=0
        )
        change = changes.cancel(
            organization=organization,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            at=NOW,
            actor="test",
        )
        assert (change.from_lots, change.released_places.count()) == ([], 0)
        deliver(buy())
        release()
        assert slices() == []

    def test_lowers_what_is_still_owed_for_it_on_account(self, owner: Organization) -> None:
        quote = factories.make_quote(tenant=debtors.a_debtor(), gpus=8, window=window_in(48))
        reservation = debtors.buy(quote)
        leave(reservation)
        sale = debtors.sale_of(reservation)
        assert debtors.owed(sale) == 1882
        deliver(buy())
        release()
        assert debtors.owed(sale) == 1882 - 1280
        assert purse(reservation.organization) == 0
        assert Event.objects.get(kind=EventKind.RESALE_CREDITED).data["set_off_minor"] == 1280
        holds()

    def test_reaches_the_wallet_of_who_has_paid_its_invoice(self, owner: Organization) -> None:
        quote = factories.make_quote(tenant=debtors.a_debtor(), gpus=8, window=window_in(48))
        reservation = debtors.buy(quote)
        leave(reservation)
        debtors.pay_by_bank(debtors.sale_of(reservation), 1882)
        deliver(buy())
        release()
        assert purse(reservation.organization) == 1280

    def test_is_nothing_where_the_fee_was_written_off(self, owner: Organization) -> None:
        quote = factories.make_quote(tenant=debtors.a_debtor(), gpus=8, window=window_in(48))
        reservation = debtors.buy(quote)
        leave(reservation)
        sale = debtors.sale_of(reservation)
        receivables.write_off(
            organization=reservation.organization,
            invoice_id=sale.invoice_id,
            amount_minor=1882,
            currency="usd",
            decision_id="apr_1",
            at=NOW,
        )
        deliver(buy())
        release()
        assert slices() == []
        assert purse(reservation.organization) == 0

    @pytest.mark.parametrize(("end", "count"), [(None, 0), (disputes.lose, 0), (disputes.win, 1)])
    def test_is_nothing_while_its_bank_may_take_the_fee_back(
        self, left: Reservation, end: Callable[..., object] | None, count: int
    ) -> None:
        disputes.open_dispute(
            dispute_id="dp_1",
            reservation=left,
            amount_minor=1882,
            fee_minor=15,
            currency="usd",
            at=NOW,
            actor="test",
        )
        if end is not None:
            end(dispute_id="dp_1", at=NOW, actor="test")
        deliver(buy())
        release()
        assert len(slices()) == count

    def test_by_a_promotion_goes_back_to_the_promotion(self, owner: Organization) -> None:
        tenant = bookings.a_tenant(funds_minor=0)
        rows.promotion(buyer=tenant, minor=3765, at=NOW)
        reservation = buy(by=tenant)
        leave(reservation)
        grant = ledger.AccountRef(AccountKind.PROMO, "usd", Promotion.objects.get().pk)
        assert ledger.balance(account=grant) == 1883
        deliver(buy())
        release()
        assert purse(tenant) == 0
        assert ledger.balance(account=grant) == 1883 + 1280
        holds()

    def test_partly_by_a_promotion_comes_back_as_own_money_first(self, owner: Organization) -> None:
        tenant = bookings.a_tenant(funds_minor=3765 - 1000)
        rows.promotion(buyer=tenant, minor=1000, at=NOW)
        leave(buy(by=tenant))
        assert purse(tenant) == 1883
        deliver(buy())
        release()
        # Of the fee of 1882 its own money was 882.
        assert purse(tenant) == 1883 + 882
        holds()
