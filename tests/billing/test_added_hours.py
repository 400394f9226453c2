"""Added hours that are paid by card: kept while they are paid for, made, given back, and taken again late."""

import datetime as dt

import pytest
from django.db import IntegrityError, transaction

from agents.models import Node
from billing import (
    added_hours,
    budgets,
    changes,
    checkout,
    ledger,
    promotions,
    provider,
    refunds,
    reservation_refunds,
)
from billing.models import CardRefund, Intent, Payer, Payment, Refund
from billing.payment_methods import PaymentMethodUnavailable
from billing.promised import Promise
from billing.provider_states import IntentKind
from billing.states import BudgetMode, BudgetPeriod
from marketplace.core.errors import StateConflict
from marketplace.models import Event
from scheduler import extension_holds, extensions, quotas, rebookings, reservations
from scheduler.details import ReservationDetails
from scheduler.models import Allocation, Change, ExtensionHold, TenantLimit
from scheduler.quotas import LimitExceeded
from scheduler.quotes import NotEnoughCapacity
from tests.billing.card_market import SAVING, Booked
from tests.billing.dying import STEPS, dies
from tests.billing.factories import fund, promotion
from tests.scheduler import factories

pytestmark = pytest.mark.django_db


class Extending(Booked):
    """A tenant with a reservation of two GPUs, a day ahead and paid by card, that wants two hours more."""

    def __init__(self, stand_in, clock, *, wishes=SAVING):
        super().__init__(stand_in, clock)
        self.book(wishes)
        self.reservation.refresh_from_db()
        self.old_end = self.reservation.ends_at

    def book(self, wishes):
        self.reservation, self.paid = self.reserve(wishes)
        self.pays(self.paid)
        self.turn()

    def quote(self, hours=2):
        return extensions.quote(
            organization=self.tenant,
            reservation_id=self.reservation.pk,
            ends_at=self.old_end + factories.hours(hours),
            max_rate=None,
            at=self.clock(),
        )

    def order(self, quote=None, *, with_saved_card=False):
        held = added_hours.extend(
            **self.of(quote or self.quote()), with_saved_card=with_saved_card, saves_card=False
        )
        return self.asked_for(held)

    def end(self):
        self.reservation.refresh_from_db()
        return self.reservation.ends_at

    def kept_until(self):
        return {
            a.period.upper
            for a in Allocation.objects.filter(reservation=self.reservation, live=True)
        }

    def drops(self):
        told = Event.objects.filter(kind="reservation.extension_dropped").order_by("at")
        return [event.data["reason"] for event in told]


class ExtendingFromTheWallet(Extending):
    """The same, its first hours paid with the whole of a wallet."""

    def book(self, wishes):
        factories.make_pool()
        quote = factories.make_quote(tenant=self.tenant, gpus=2, window=factories.window_in(24))
        fund(self.tenant, minor=quote.total_minor)
        self.reservation = checkout.purchase(
            organization=self.tenant,
            quote_id=quote.pk,
            payment_method="wallet",
            details=ReservationDetails(),
            at=self.clock(),
            actor="test",
        )


@pytest.fixture
def world(provider, clock):
    return Extending(provider, clock)


class TestOrder:
    def test_keeps_the_hours_and_leaves_the_reservation_as_it_is(self, world):
        held, payment = world.order()
        assert world.end() == world.old_end
        assert world.kept_until() == {held.ends_at} == {world.old_end + factories.hours(2)}
        assert (payment.status, payment.purpose) == ("open", "added_hours")
        assert payment.amount_minor == held.quote.charge_minor
        assert payment.due_at == held.held_until == world.clock() + dt.timedelta(minutes=15)
        assert not Change.objects.exists()
        world.sound()

    def test_is_made_by_its_payment(self, world):
        held, payment = world.order()
        world.pays(payment)
        world.turn()
        change = Change.objects.get()
        assert (change.pk, change.charged_minor) == (held.pk, payment.amount_minor)
        assert world.end() == held.ends_at
        assert world.deferred() == world.reservation.total_minor == held.quote.total_minor
        assert (world.balance(), CardRefund.objects.count()) == (0, 0)
        assert extension_holds.open_of(reservation=world.reservation) is None
        world.sound()

    def test_with_the_saved_card_is_made_at_once(self, world):
        held, payment = world.order(with_saved_card=True)
        assert (payment.status, payment.is_off_session) == ("succeeded", True)
        assert world.end() == held.ends_at
        world.sound()

    def test_of_what_the_wallet_paid_spends_no_promotion_on_what_the_card_pays(
        self, provider, clock
    ):
        world = ExtendingFromTheWallet(provider, clock)
        given = promotion(buyer=world.tenant, minor=100, at=clock())
        held, payment = world.order()
        world.pays(payment)
        world.turn()
        assert world.end() == held.ends_at
        assert payment.amount_minor == held.quote.charge_minor
        assert ledger.kept_balance(account=promotions.account(given)) == 100
        assert world.balance() == 0
        world.sound()

    def test_prolongs_a_lease_that_runs(self, world):
        reservations.start_due(at=world.clock(hours=24))
        lease = world.reservation.leases.get()
        factories.say_handed_over(lease)
        world.turn()
        held, payment = world.order()
        lease.refresh_from_db()
        assert lease.ends_at == world.old_end
        world.pays(payment)
        world.turn()
        lease.refresh_from_db()
        assert lease.ends_at == held.ends_at == world.end()
        world.sound()

    def test_holds_no_later_than_35_minutes_before_the_end(self, world):
        quote_at = world.old_end - dt.timedelta(minutes=60)
        reservations.start_due(at=world.clock(hours=24))
        factories.say_handed_over(world.reservation.leases.get())
        world.turn(minutes=60)
        assert world.clock() == quote_at
        quote = world.quote()
        world.turn(minutes=9)
        held, _ = world.order(quote)
        assert held.held_until == world.clock() + dt.timedelta(minutes=15)
        world.turn(minutes=16)
        assert world.end() == world.old_end

    def test_is_refused_where_the_end_is_too_near_for_a_payment(self, world, monkeypatch):
        monkeypatch.setattr(extension_holds, "CLOSES_BEFORE_END_SECONDS", 27 * 3600)
        with pytest.raises(extensions.ExtensionTooLate):
            world.order()
        assert world.kept_until() == {world.old_end}

    def test_is_refused_while_another_waits(self, world):
        first = world.quote()
        second = world.quote(hours=3)
        world.order(first)
        with pytest.raises(StateConflict, match="waits for its payment"):
            world.order(second)
        with pytest.raises(IntegrityError, match="held_once"), transaction.atomic():
            ExtensionHold.objects.create(
                reservation=world.reservation,
                quote=second,
                held_until=world.clock(),
                actor="test",
                created_at=world.clock(),
            )

    def test_needs_a_provider(self, world, settings):
        quote = world.quote()
        settings.STRIPE_SECRET_KEY = ""
        with pytest.raises(PaymentMethodUnavailable):
            world.order(quote)

    def test_counts_in_a_budget_while_it_waits(self, world):
        quote = world.quote()
        budgets.put(
            organization=world.tenant,
            wishes=[
                budgets.BudgetWish(
                    project="",
                    period=BudgetPeriod.TOTAL,
                    mode=BudgetMode.HARD,
                    amount_minor=quote.total_minor + 100,
                )
            ],
            only_if=None,
            at=world.clock(),
            actor="test",
        )
        world.order(quote)
        other = factories.make_quote(tenant=world.tenant, at=world.clock())
        with pytest.raises(budgets.BudgetExceeded):
            budgets.require(
                organization=world.tenant,
                project="",
                promise=Promise.of(other),
                at=world.clock(),
            )

    def test_counts_in_the_quota_while_it_waits(self, world):
        TenantLimit.objects.create(organization=world.tenant, gpu_hours_max=9)
        world.order()
        with pytest.raises(LimitExceeded):
            quotas.check(
                organization=world.tenant, gpus=2, window=factories.window_in(48), at=world.clock()
            )


class TestUnpaid:
    def ended(self, world, payment, *, status, reason):
        payment.refresh_from_db()
        assert payment.status == status
        assert world.end() == world.old_end
        assert world.kept_until() == {world.old_end}
        assert world.drops() == [reason]
        assert world.reservation.status == "scheduled"
        assert world.deferred() == world.reservation.total_minor
        world.sound()

    def test_hours_are_given_back_when_the_window_closes(self, world):
        _, payment = world.order()
        world.turn(minutes=16)
        self.ended(world, payment, status="cancelled", reason="payment_window_closed")

    def test_hours_are_given_back_when_three_d_secure_is_abandoned(self, world):
        _, payment = world.order()
        world.pays(payment, "pm_card_threeDSecure2Required")
        world.turn(minutes=16)
        self.ended(world, payment, status="cancelled", reason="payment_window_closed")

    def test_hours_are_given_back_at_once_when_the_saved_card_is_declined(self, world):
        card = world.stand_in.world.get(Payer.objects.get().saved_card_id, "payment_method")
        card["_behaves"] = "insufficient_funds"
        _, payment = world.order(with_saved_card=True)
        assert world.drops() == ["payment_declined"]
        world.turn()
        self.ended(world, payment, status="failed", reason="payment_declined")

    def test_a_saved_card_that_asks_a_question_waits_for_the_tenant(self, world):
        card = world.stand_in.world.get(Payer.objects.get().saved_card_id, "payment_method")
        card["_behaves"] = "asks"
        held, payment = world.order(with_saved_card=True)
        assert (payment.status, world.drops()) == ("open", [])
        world.pays(payment)
        world.turn()
        assert world.end() == held.ends_at

    def test_hours_can_be_ordered_again(self, world):
        world.order()
        world.turn(minutes=16)
        held, payment = world.order()
        world.pays(payment)
        world.turn()
        assert world.end() == held.ends_at
        world.sound()

    def test_others_can_have_the_hours_after_that_and_not_before(self, world):
        world.order()
        behind = factories.window_in(26)
        with pytest.raises(NotEnoughCapacity):
            factories.make_quote(gpus=8, window=behind, at=world.clock())
        world.turn(minutes=16)
        assert factories.make_quote(gpus=8, window=behind, at=world.clock())

    def test_a_task_that_runs_twice_or_late_drops_once(self, world):
        world.order()
        late = world.clock(hours=3)
        assert [extension_holds.drop_due(at=late) for _ in range(2)] == [1, 0]
        assert world.drops() == ["payment_window_closed"]


class TestLate:
    def test_money_takes_the_hours_again_at_the_promised_price(self, world):
        held, payment = world.order()
        extension_holds.drop_due(at=world.clock(minutes=16))
        world.pays(payment)
        world.turn()
        assert world.end() == held.ends_at
        assert world.deferred() == held.quote.total_minor
        assert CardRefund.objects.count() == 0
        world.sound()

    def test_money_goes_back_when_somebody_else_has_the_hours(self, world):
        held, payment = world.order()
        extension_holds.drop_due(at=world.clock(minutes=16))
        Node.objects.update(last_report_at=world.clock())
        window = factories.window_in(26, length=1)
        other = factories.make_reservation(window=window, gpus=8, at=world.clock())
        world.completes(payment)
        refund = CardRefund.objects.get()
        assert (refund.payment_id, refund.amount_minor) == (payment.pk, payment.amount_minor)
        assert (refund.status, payment.refunded_minor) == ("succeeded", payment.amount_minor)
        assert world.end() == world.old_end
        assert (world.balance(), world.deferred()) == (0, world.reservation.total_minor)
        world.paid.refresh_from_db()
        assert world.paid.refunded_minor == 0
        returned = Event.objects.get(kind="payment.returned")
        assert "booked" in returned.data["detail"]
        assert (held.made_at, other.status) == (None, "scheduled")

    def test_money_goes_back_when_the_reservation_was_cancelled_meanwhile(self, world):
        _, payment = world.order()
        world.leave()
        assert world.drops() == ["reservation_changed"]
        world.pays(payment)
        world.turn()
        assert CardRefund.objects.get().payment_id == payment.pk
        world.sound()

    def test_money_goes_back_when_a_budget_was_spent_meanwhile(self, world):
        _, payment = world.order()
        extension_holds.drop_due(at=world.clock(minutes=16))
        budgets.freeze(
            organization=world.tenant, project="", reason="", at=world.clock(), actor="test"
        )
        world.pays(payment)
        world.turn()
        assert CardRefund.objects.get().payment_id == payment.pk
        assert world.end() == world.old_end

    def test_money_is_read_twice_and_counts_once(self, world):
        held, payment = world.order()
        world.pays(payment)
        for _ in range(3):
            world.turn()
        assert Change.objects.get().pk == held.pk
        with pytest.raises(StateConflict):
            extensions.make_held(hold_id=held.pk, at=world.clock())


class TestOtherChanges:
    def test_a_window_that_is_shortened_gives_the_kept_hours_back(self, world):
        _, payment = world.order()
        wish = rebookings.WindowWish(
            starts_at=None, ends_at=world.old_end - factories.hours(1), max_rate=None
        )
        quote = rebookings.quote(
            organization=world.tenant,
            reservation_id=world.reservation.pk,
            wish=wish,
            at=world.clock(),
        )
        changes.rebook(**world.of(quote), payment_method="wallet")
        assert world.kept_until() == {world.end()}
        world.turn()
        payment.refresh_from_db()
        assert (payment.status, world.drops()) == ("cancelled", ["reservation_changed"])
        world.sound()

    def test_what_goes_back_is_split_over_both_charges(self, world):
        held, payment = world.order()
        world.pays(payment)
        world.turn()
        quote = world.leave()
        refunds.open_due(at=world.clock())
        reservation_refunds.ask_due(at=world.clock())
        world.turn()
        parts = {r.payment_id: (r.amount_minor, r.status) for r in Refund.objects.all()}
        first = min(payment.amount_minor, quote.refund_minor)
        assert parts[payment.pk] == (first, "settled")
        assert sum(amount for amount, _ in parts.values()) == quote.refund_minor
        assert held.quote.charge_minor == payment.amount_minor
        world.sound()


class TestDeath:
    @pytest.mark.parametrize("step", STEPS)
    def test_at_any_step_of_the_call_leaves_one_charge_and_one_extension(self, world, step):
        held = added_hours.extend(**world.of(world.quote()), with_saved_card=True, saves_card=False)
        with dies(at=step, kind=IntentKind.PAYMENT):
            provider.drive_due(at=world.clock())
        world.turn(seconds=61)
        assert world.end() == held.ends_at
        assert Payment.objects.filter(status="succeeded").count() == 2
        assert len(world.stand_in.world.all("charge")) == 2
        assert not Intent.objects.filter(closed_at__isnull=True).exists()
        world.sound()

    def test_after_the_hold_and_before_the_call_is_made_good_by_the_beat(self, world):
        held = added_hours.extend(
            **world.of(world.quote()), with_saved_card=False, saves_card=False
        )
        world.turn(seconds=5)
        payment = Payment.objects.get(extension=held)
        assert payment.status == "open"
        world.pays(payment)
        world.turn()
        assert world.end() == held.ends_at
