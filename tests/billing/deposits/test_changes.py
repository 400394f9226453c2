"""Leaving and moving what is paid in two parts."""

import pytest

from billing import bills
from billing.models import Refund
from scheduler import extensions, rebookings
from scheduler.changes import BalanceOpen
from tests.scheduler import factories

pytestmark = pytest.mark.django_db


class TestChanges:
    def test_leaving_early_costs_the_ladder_of_the_whole_price_out_of_the_deposit(self, world):
        world.booked()
        quote = world.leave()
        total, paid = world.reservation.total_minor, world.plan.net_minor
        assert (quote.fee_basis_points, quote.from_total_minor) == (1_000, paid)
        assert quote.unpaid_minor == total - paid
        assert quote.fee_minor == round(total / 10)
        assert quote.refund_minor == paid - quote.fee_minor
        world.tick()
        world.first.refresh_from_db()
        assert world.first.refunded_minor == quote.refund_minor
        bill = bills.reservation_bill(reservation=world.reservation, at=world.clock())
        assert (bill.bought.amount_minor, bill.fees.amount_minor) == (paid, quote.fee_minor)
        world.ends_empty()

    def test_leaving_late_costs_no_more_than_was_paid(self, world):
        world.booked()
        world.behave("insufficient_funds")
        world.until_due()
        world.tick(hours=70)
        # Half of the price would be more than the deposit.
        factories.publish_ladder((0, 5_000), at=world.clock())
        quote = world.leave()
        assert (quote.fee_minor, quote.refund_minor) == (world.plan.net_minor, 0)
        world.tick()
        world.ends_empty()

    def test_leaving_after_the_balance_sends_back_over_both_charges(self, world):
        world.booked()
        world.until_due()
        second = world.second
        quote = world.leave()
        total = world.reservation.total_minor
        assert quote.fee_minor == total // 4
        world.tick()
        parts = {r.payment_id: (r.amount_minor, r.status) for r in Refund.objects.all()}
        assert parts == {second.pk: (second.amount_minor, "settled")}
        world.ends_empty()

    def test_of_the_window_and_the_end_wait_for_the_balance(self, world):
        world.booked()
        with pytest.raises(BalanceOpen):
            extensions.quote(
                organization=world.tenant,
                reservation_id=world.reservation.pk,
                ends_at=world.reservation.ends_at + factories.hours(1),
                max_rate=None,
                at=world.clock(),
            )
        with pytest.raises(BalanceOpen):
            rebookings.quote(
                organization=world.tenant,
                reservation_id=world.reservation.pk,
                wish=rebookings.WindowWish(
                    starts_at=None,
                    ends_at=world.reservation.ends_at - factories.hours(1),
                    max_rate=None,
                ),
                at=world.clock(),
            )
