"""Another window that is paid by card: kept beside the old one, taken, given back, and taken again late."""

import datetime as dt

import pytest

from agents.models import Node
from billing import (
    added_hours,
    approval_limits,
    budgets,
    changes,
    provider,
    purchase_requests,
)
from billing.models import CardRefund, Payer, Payment, PurchaseRequest
from billing.payment_methods import PaymentMethodUnavailable
from billing.promised import Promise
from billing.states import BudgetMode, BudgetPeriod
from marketplace.core.errors import NotFound, StateConflict
from marketplace.models import Event
from scheduler import (
    checks,
    extension_holds,
    extensions,
    held_moves,
    quotas,
    quotes,
    rebookings,
    reservations,
)
from scheduler.calendar import CapacityTaken
from scheduler.models import Allocation, Change, ExtensionHold, Quote, TenantLimit
from scheduler.quotas import LimitExceeded
from scheduler.quotes import NotEnoughCapacity
from scheduler.rebookings import MoveTooLate
from tests.billing.card_market import SAVING, Booked
from tests.scheduler import factories
from tests.scheduler.factories import hours

pytestmark = pytest.mark.django_db

AWAY, OVERLAPPING = (24, 27), (1, 4)  # by how many hours start and end move: three more are bought


class Moving(Booked):
    """A tenant with two of eight GPUs for two hours, three days ahead and paid by card."""

    def __init__(self, stand_in, clock):
        super().__init__(stand_in, clock)
        self.reservation, paid = self.reserve(SAVING, starts_in=72)
        self.pays(paid)
        self.turn()
        self.reservation.refresh_from_db()
        self.old = self.reservation.window

    def quote(self, by=AWAY):
        return rebookings.quote(
            organization=self.tenant,
            reservation_id=self.reservation.pk,
            wish=rebookings.WindowWish(
                starts_at=self.old.starts_at + hours(by[0]), ends_at=self.old.ends_at + hours(by[1])
            ),
            at=self.clock(),
        )

    def order(self, quote=None, *, by=AWAY, with_saved_card=False):
        held = self.rebook(quote or self.quote(by), with_saved_card=with_saved_card)
        return self.asked_for(held)

    def rebook(self, quote, *, with_saved_card=False):
        return added_hours.rebook(
            **self.of(quote), with_saved_card=with_saved_card, saves_card=False
        )

    def window(self):
        self.reservation.refresh_from_db()
        return self.reservation.window

    def places(self):
        """Return where the reservation stands."""
        found = Allocation.objects.filter(reservation=self.reservation, live=True)
        return set(found.values_list("pk", flat=True))

    def kept(self):
        """Return what is held beside it."""
        found = Allocation.objects.filter(quote__kept_for__isnull=False, live=True)
        return set(found.values_list("pk", flat=True))

    def drops(self):
        told = Event.objects.filter(kind="reservation.extension_dropped").order_by("at")
        return [(event.data["kind"], event.data["reason"]) for event in told]

    def stands(self, payment, *, status):
        """Check that the old window stands, and that nothing is kept or moved for another."""
        payment.refresh_from_db()
        assert payment.status == status
        assert (self.window(), self.kept()) == (self.old, set())
        assert self.deferred() == self.reservation.total_minor
        assert not Change.objects.exists()


@pytest.fixture
def world(provider, clock):
    return Moving(provider, clock)


class TestOrder:
    def test_is_held_by_a_quote_that_nobody_reads_or_counts(self, world, monkeypatch):
        held, _ = world.order()
        with pytest.raises(NotFound):
            quotes.get(organization=world.tenant, quote_id=held.kept_id)
        with pytest.raises(NotFound):
            quotes.get_for_use(organization=world.tenant, quote_id=held.kept_id)
        monkeypatch.setattr(quotes, "OPEN_HOLDS_MAX", 1)
        assert factories.make_quote(tenant=world.tenant, gpus=1, hold=True).hold

    def test_is_held_by_a_quote_that_no_second_person_is_asked_about(self, world):
        held, _ = world.order()
        approval_limits.set_limit(
            organization=world.tenant, amount_minor=1, at=world.clock(), actor="test"
        )
        purchase_requests.ask_for_quote(
            organization=world.tenant,
            quote_id=held.kept_id,
            project="",
            payment_method="wallet",
            at=world.clock(),
            actor="test",
        )
        assert not PurchaseRequest.objects.exists()

    @pytest.mark.parametrize("by", [AWAY, OVERLAPPING])
    def test_keeps_the_new_window_beside_the_old_one(self, world, by):
        before = world.places()
        held, payment = world.order(by=by)
        assert (world.window(), world.places()) == (world.old, before)
        (place,) = Allocation.objects.filter(pk__in=world.kept())
        assert (place.period.lower, place.period.upper) == (
            world.old.starts_at + hours(by[0]),
            world.old.ends_at + hours(by[1]),
        )
        assert (payment.status, payment.purpose) == ("open", "added_hours")
        assert payment.amount_minor == held.quote.charge_minor > 0
        assert payment.due_at == held.held_until == world.clock() + dt.timedelta(minutes=15)
        assert not Change.objects.exists()
        world.sound()

    @pytest.mark.parametrize("by", [AWAY, OVERLAPPING])
    def test_is_made_by_its_payment_on_what_was_kept(self, world, by):
        held, payment = world.order(by=by)
        kept, price = world.kept(), world.reservation.total_minor
        world.pays(payment)
        world.turn()
        change = Change.objects.get()
        assert (change.pk, change.kind) == (held.pk, "move")
        assert change.charged_minor == payment.amount_minor
        assert (world.window(), world.places(), world.kept()) == (held.window, kept, set())
        assert world.reservation.total_minor == price + payment.amount_minor == world.deferred()
        assert (world.balance(), CardRefund.objects.count()) == (0, 0)
        assert Event.objects.filter(kind="reservation.changed").count() == 1
        world.sound()

    def test_with_the_saved_card_is_made_at_once(self, world):
        held, payment = world.order(with_saved_card=True)
        assert (payment.status, payment.is_off_session) == ("succeeded", True)
        assert world.window() == held.window
        world.sound()

    def test_that_costs_nothing_more_is_made_at_once(self, world):
        change = world.rebook(world.quote((24, 23)))
        assert (change.kind, change.charged_minor) == ("move", 0)
        assert world.window() == change.quote.window
        assert not Payment.objects.filter(purpose="added_hours").exists()
        world.sound()

    def test_where_both_overlap_needs_other_gpus_which_one_from_the_wallet_does_not(self, world):
        quote = world.quote(OVERLAPPING)
        taken = factories.make_reservation(
            window=factories.window_in(72, length=10), gpus=6, at=world.clock()
        )
        with pytest.raises(CapacityTaken):
            world.order(quote)
        assert (world.window(), world.kept(), taken.status) == (world.old, set(), "scheduled")
        quote.refresh_from_db()
        assert quote.used_at is None
        world.pays(world.top_up())
        world.turn()
        changes.rebook(**world.of(quote), payment_method="wallet")
        assert world.window() == quote.window
        world.capacity_is_sound()  # the rival has paid for nothing

    def test_where_they_do_not_overlap_may_keep_the_same_gpus(self, world):
        factories.make_reservation(
            window=factories.window_in(72, length=40), gpus=6, at=world.clock()
        )
        held, payment = world.order()
        world.pays(payment)
        world.turn()
        assert world.window() == held.window
        world.capacity_is_sound()

    def test_is_refused_while_something_else_waits(self, world):
        longer = extensions.quote(
            organization=world.tenant,
            reservation_id=world.reservation.pk,
            ends_at=world.old.ends_at + hours(1),
            max_rate=None,
            at=world.clock(),
        )
        second = world.quote()
        world.order()
        for verb, quote in ((added_hours.rebook, second), (added_hours.extend, longer)):
            with pytest.raises(StateConflict, match="waits for its payment"):
                verb(**world.of(quote), with_saved_card=False, saves_card=False)

    def test_is_refused_where_a_window_begins_too_soon_for_a_payment(self, world):
        world.turn(minutes=56)
        quote = world.quote((-71, 0))
        with pytest.raises(MoveTooLate):
            world.order(quote)
        assert world.kept() == set()

    def test_holds_no_later_than_five_minutes_before_the_first_start(self, world):
        world.turn(minutes=50)
        held, _ = world.order(by=(-71, 0))
        assert held.held_until == world.old.starts_at - hours(71) - dt.timedelta(minutes=5)

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
        TenantLimit.objects.create(organization=world.tenant, gpu_hours_max=13)
        wish = {"organization": world.tenant, "gpus": 2, "at": world.clock()}
        quotas.check(**wish, window=factories.window_in(48))
        world.order()
        with pytest.raises(LimitExceeded):
            quotas.check(**wish, window=factories.window_in(48))


class TestUnpaid:
    def test_window_is_given_back_when_its_time_is_up(self, world):
        held, payment = world.order()
        world.turn(minutes=16)
        world.stands(payment, status="cancelled")
        world.sound()
        assert world.drops() == [("move", "payment_window_closed")]
        told = Event.objects.get(kind="reservation.extension_dropped").data
        assert told["asked_starts_at"] > told["starts_at"]
        assert Quote.objects.get(pk=held.kept_id).status == "expired"

    def test_window_is_given_back_at_once_when_the_saved_card_is_declined(self, world):
        card = world.stand_in.world.get(Payer.objects.get().saved_card_id, "payment_method")
        card["_behaves"] = "insufficient_funds"
        _, payment = world.order(with_saved_card=True)
        assert (world.drops(), world.kept()) == ([("move", "payment_declined")], set())
        world.turn()
        world.stands(payment, status="failed")
        world.sound()

    def test_window_can_be_ordered_again(self, world):
        world.order()
        world.turn(minutes=16)
        held, payment = world.order()
        world.pays(payment)
        world.turn()
        assert world.window() == held.window
        world.sound()

    def test_others_can_have_it_after_that_and_not_before(self, world):
        world.order()
        there = factories.window_in(72 + 25, length=1)
        with pytest.raises(NotEnoughCapacity):
            factories.make_quote(gpus=8, window=there, at=world.clock())
        world.turn(minutes=16)
        assert factories.make_quote(gpus=8, window=there, at=world.clock())

    def test_window_is_dropped_once_however_often_it_is_due(self, world):
        world.order()
        late = world.clock(hours=3)
        assert [extension_holds.drop_due(at=late) for _ in range(2)] == [1, 0]

    def test_window_is_given_back_when_the_reservation_is_left(self, world):
        _, payment = world.order()
        world.leave()
        assert (world.drops(), world.kept()) == ([("move", "reservation_changed")], set())
        world.pays(payment)
        world.turn()
        assert CardRefund.objects.get().payment_id == payment.pk
        world.sound()

    def test_window_that_stays_held_is_found(self, world):
        held, _ = world.order()
        ExtensionHold.objects.filter(pk=held.pk).update(
            dropped_at=world.clock(), drop_reason="payment_declined"
        )
        broken = [c.name for c in checks.check(at=world.clock()).checks if not c.ok]
        assert broken == ["kept_hours_are_held"]


class TestLate:
    @pytest.mark.parametrize("is_dropped", [True, False])
    def test_money_takes_the_window_again_at_the_promised_price(self, world, is_dropped):
        held, payment = world.order(by=OVERLAPPING)
        late = world.clock(minutes=16)
        Node.objects.update(last_report_at=late)
        if is_dropped:
            extension_holds.drop_due(at=late)
        else:  # what holds it was swept, and the hold itself not yet
            quotes.expire_due(at=late)
        price = held.quote.total_minor
        world.pays(payment)
        Payment.objects.update(read_due_at=late)
        provider.read_due(at=late)
        assert (world.window(), world.deferred()) == (held.window, price)
        assert CardRefund.objects.count() == 0
        world.sound()

    def test_money_goes_back_when_there_is_no_room_any_more(self, world):
        _, payment = world.order()
        extension_holds.drop_due(at=world.clock(minutes=16))
        Node.objects.update(last_report_at=world.clock())
        factories.make_reservation(
            window=factories.window_in(72 + 26, length=1), gpus=8, at=world.clock()
        )
        world.completes(payment)
        refund = CardRefund.objects.get()
        assert (refund.payment_id, refund.amount_minor) == (payment.pk, payment.amount_minor)
        assert (refund.status, world.balance()) == ("succeeded", 0)
        assert Event.objects.filter(kind="payment.returned").count() == 1
        world.stands(payment, status="succeeded")
        world.capacity_is_sound()

    def test_money_goes_back_when_another_change_came_first(self, world):
        _, payment = world.order()
        extension_holds.drop_due(at=world.clock(minutes=16))
        Node.objects.update(last_report_at=world.clock())
        changes.rebook(**world.of(world.quote((0, -1))), payment_method="wallet")
        world.pays(payment)
        world.turn()
        assert CardRefund.objects.filter(payment=payment).count() == 1
        assert world.window().ends_at == world.old.ends_at - hours(1)
        world.sound()

    def test_money_goes_back_while_another_change_waits(self, world):
        _, first = world.order()
        extension_holds.drop_due(at=world.clock(minutes=16))
        Node.objects.update(last_report_at=world.clock())
        world.order(by=OVERLAPPING)
        world.pays(first)
        world.turn()
        assert CardRefund.objects.get().payment_id == first.pk
        assert world.window() == world.old
        world.sound()

    def test_money_goes_back_when_it_has_begun(self, world):
        _, payment = world.order()
        extension_holds.drop_due(at=world.clock(minutes=16))
        reservations.start_due(at=world.clock(hours=72))
        world.pays(payment)
        world.turn()
        assert CardRefund.objects.get().payment_id == payment.pk
        assert world.window() == world.old

    def test_money_is_read_twice_and_counts_once(self, world):
        held, payment = world.order()
        world.pays(payment)
        for _ in range(3):
            world.turn()
        assert Change.objects.get().pk == held.pk
        with pytest.raises(StateConflict):
            held_moves.make(hold_id=held.pk, at=world.clock())
