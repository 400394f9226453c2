"""What a bank only asks about has taken nothing: it is told and listed, and posted once it is a dispute."""

import pytest

from billing import findings, provider, top_up_disputes
from billing import stripe_gateway as gateway
from billing.models import CardInquiry, Dispute, Entry, TopUpDispute
from marketplace.models import Event
from tests.billing.card_market import World
from tests.fakes.stripe import balance

pytestmark = pytest.mark.django_db


@pytest.fixture
def world(provider, clock):
    return World(provider, clock)


def charge_of(world, payment):
    return world.stand_in.world.get(payment.provider_id, "payment_intent")["latest_charge"]


def prevented(world, payment, *, refunded):
    """Let a dispute of a payment end before it is filed, and the market hear of it twice."""
    made = balance.prevent_dispute(
        world.stand_in.world, charge_of(world, payment), refunded=refunded
    )
    heard(world, made["id"])
    heard(world, made["id"])
    return made["id"]


def asked_about(world, payment, *, is_heard=True):
    """Let the bank ask about a payment, and by default the market hear of it."""
    inquiry = balance.open_inquiry(world.stand_in.world, charge_of(world, payment))["id"]
    if is_heard:
        heard(world, inquiry)
    return inquiry


def heard(world, inquiry):
    assert provider.READERS["dispute"](inquiry, world.clock())


def paid_top_up(world):
    return world.paid()


def paid_reservation(world):
    _, payment = world.reserve()
    return world.completes(payment)


def withheld(world):
    return top_up_disputes.withheld_minor(organization=world.tenant, currency="usd")


def posted():
    return Entry.objects.filter(kind__startswith="dispute").count()


def posted_kinds():
    return set(Entry.objects.values_list("kind", flat=True))


def told(kind):
    return [event.data["is_disputed"] for event in Event.objects.filter(kind=kind)]


def differences(world):
    """Return what a comparison two hours later finds of disputes, before anything is read anew."""
    at = world.clock(hours=2)
    found = findings.find(at=at)
    return [(one.kind, one.object_id) for one in found if one.kind.startswith("dispute")]


@pytest.mark.parametrize("paid", [paid_top_up, paid_reservation])
class TestAnInquiry:
    def test_takes_nothing_and_is_told_once(self, world, paid):
        payment = paid(world)
        before = world.balance()
        inquiry = asked_about(world, payment)
        heard(world, inquiry)
        assert (world.balance(), withheld(world), posted()) == (before, 0, 0)
        row = CardInquiry.objects.get()
        assert (row.pk, row.payment_id, row.state) == (
            inquiry,
            payment.pk,
            "warning_needs_response",
        )
        assert (told("inquiry.opened"), told("inquiry.closed")) == ([False], [])
        world.sound()

    def test_that_is_closed_takes_nothing(self, world, paid):
        inquiry = asked_about(world, paid(world))
        balance.close_inquiry(world.stand_in.world, inquiry)
        heard(world, inquiry)
        row = CardInquiry.objects.get()
        assert (row.closed_at is None, row.disputed_at, posted()) == (False, None, 0)
        assert told("inquiry.closed") == [False]
        world.sound()

    def test_that_becomes_a_dispute_is_posted_then(self, world, paid):
        payment = paid(world)
        inquiry = asked_about(world, payment)
        balance.escalate_inquiry(world.stand_in.world, inquiry)
        heard(world, inquiry)
        heard(world, inquiry)
        of_top_up = paid is paid_top_up
        row = TopUpDispute.objects.get() if of_top_up else Dispute.objects.get()
        assert Dispute.objects.count() + TopUpDispute.objects.count() == 1
        assert (row.pk, row.status, row.amount_minor) == (inquiry, "open", payment.received_minor)
        assert row.fee_minor == balance.DISPUTE_FEE_MINOR
        assert Entry.objects.filter(kind="dispute_opened").count() == 1
        assert withheld(world) == (payment.received_minor if of_top_up else 0)
        assert CardInquiry.objects.get().disputed_at is not None
        assert told("inquiry.closed") == [True]
        world.sound()

    def test_is_a_difference_only_as_long_as_nobody_has_heard_of_it(self, world, paid):
        inquiry = asked_about(world, paid(world), is_heard=False)
        assert differences(world) == [("dispute_without_row", inquiry)]
        heard(world, inquiry)
        assert differences(world) == []
        balance.escalate_inquiry(world.stand_in.world, inquiry)
        assert differences(world) == [("dispute_differs", inquiry)]
        heard(world, inquiry)
        assert differences(world) == []

    def test_keeps_nobody_from_giving_the_money_back(self, world, paid):
        payment = paid(world)
        asked_about(world, payment)
        charge = world.stand_in.world.get(charge_of(world, payment), "charge")
        assert charge["disputed"]
        assert not top_up_disputes.holds_back(payment=payment)
        assert (
            gateway.create_refund(
                key="back", payment_id=payment.provider_id, amount_minor=100, metadata={}
            ).amount_minor
            == 100
        )


@pytest.mark.parametrize("paid", [paid_top_up, paid_reservation])
class TestADisputeThatWasPrevented:
    def test_took_nothing_where_nothing_was_booked(self, world, paid):
        payment = paid(world)
        before = world.balance()
        dispute = prevented(world, payment, refunded=False)
        row = CardInquiry.objects.get()
        assert (row.pk, row.state, row.closed_at is None) == (dispute, "prevented", False)
        assert (world.balance(), withheld(world), posted()) == (before, 0, 0)
        assert differences(world) == []
        world.sound()

    def test_is_lost_where_the_cards_network_has_refunded_its_holder(self, world, paid):
        payment = paid(world)
        dispute = prevented(world, payment, refunded=True)
        row = TopUpDispute.objects.get() if paid is paid_top_up else Dispute.objects.get()
        assert (row.pk, row.status, row.fee_minor) == (dispute, "lost", 0)
        assert row.amount_minor == payment.received_minor
        assert not CardInquiry.objects.exists()
        assert posted_kinds() >= {"dispute_opened", "dispute_lost"}
        assert world.balance() == 0
        assert differences(world) == []
        world.sound()
