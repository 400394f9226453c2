"""Each invariant of payments, refunds to cards, transfers and disputes of top-ups finds its own breach."""

import pytest
from django.db import connection
from django.db.models import F

from billing import books, ledger, payouts, transfers
from billing.models import CardRefund, Intent, Payment, Payout, Refund, TopUpDispute, Transfer
from billing.states import AccountKind, EntryKind
from tests.billing.card_market import World
from tests.billing.owner_market import OwnerWorld
from tests.billing.payments.market import Undelivering

pytestmark = pytest.mark.django_db


def alter(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)


def broken(at):
    """Return the names of the invariants that do not hold, and whose money would be parked."""
    report = books.check(at=at)
    return [check.name for check in report.checks if not check.ok], set(books.breaches_of(report))


@pytest.fixture
def paid(provider, clock):
    """Return a tenant's world with a top-up of 5000, of which 2000 went back to the card."""
    world = World(provider, clock)
    world.payment = world.paid()
    world.gives_back(world.payment, 2000)
    assert broken(world.clock()) == ([], set())
    return world


@pytest.fixture
def sent(provider, clock):
    """Return an owner's world with a payout of 400 that was transferred, and 150 of it taken back."""
    clock(days=60)
    world = OwnerWorld(provider, clock)
    payout = world.owing(150)
    transfers.take_back(owner=payout.owner, currency="usd", amount_minor=150, at=clock())
    world.turn()
    assert Transfer.objects.get().reversed_minor == 150
    assert broken(clock()) == ([], set())
    return world


class TestPayments:
    def finds(self, world, *names):
        assert broken(world.clock()) == (list(names), {world.tenant.pk})

    def test_brought_what_they_say(self, paid, unguarded):
        with unguarded():
            Payment.objects.update(received_minor=4999)
        self.finds(paid, "payments_equal_their_entries")

    def test_brought_nothing_before_they_succeeded(self, paid, unguarded):
        with unguarded():
            Payment.objects.update(status="failed")
        self.finds(paid, "payments_equal_their_entries")

    def test_bring_no_more_than_was_authorised(self, paid, unguarded):
        with unguarded():
            alter("ALTER TABLE billing_payment DROP CONSTRAINT payment_returns_at_most_what_came")
            Payment.objects.update(amount_minor=4000)
        self.finds(paid, "payments_equal_their_entries")

    def test_return_what_their_refunds_say(self, paid, unguarded):
        with unguarded():
            Payment.objects.update(refunded_minor=1999)
        self.finds(paid, "payments_return_at_most_what_came")

    def test_return_no_more_than_they_brought(self, paid, unguarded):
        with unguarded():
            alter("ALTER TABLE billing_payment DROP CONSTRAINT payment_returns_at_most_what_came")
            Payment.objects.update(refunded_minor=5001)
            CardRefund.objects.update(amount_minor=5001)
        self.finds(paid, "payments_return_at_most_what_came", "card_refunds_equal_their_entries")

    def test_count_refunds_of_reservations_too(self, provider, clock, unguarded):
        world = Undelivering(provider, clock)
        world.owing()
        world.sent()
        assert broken(world.clock())[0] == []
        with unguarded():
            Refund.objects.update(amount_minor=F("amount_minor") - 1)
        assert "payments_return_at_most_what_came" in broken(world.clock())[0]


class TestRefundsToCards:
    def finds(self, world, *names):
        assert broken(world.clock()) == (list(names), {world.tenant.pk})

    @pytest.mark.parametrize(
        ("status", "also"), [("due", ("refunds_to_cards_are_in_one_place",)), ("failed", ())]
    )
    def test_are_as_far_as_their_entries(self, paid, unguarded, status, also):
        with unguarded():
            CardRefund.objects.update(status=status)
            Payment.objects.update(refunded_minor=0 if status == "failed" else 2000)
        self.finds(paid, "card_refunds_equal_their_entries", *also)

    def test_left_the_wallet_once_they_were_asked_for(self, paid, unguarded):
        refund = CardRefund.objects.get()
        with unguarded():
            refund.pk, refund.status = "crf_other", "due"
            refund.save(force_insert=True)
            Payment.objects.update(refunded_minor=4000)
        assert broken(paid.clock()) == ([], set())  # promised of parked money, and not asked for
        with unguarded():
            intent = Intent.objects.get(kind="refund")
            intent.pk, intent.subject_id = "int_other", "crf_other"
            intent.save(force_insert=True)
        self.finds(paid, "card_refunds_equal_their_entries", "refunds_to_cards_are_in_one_place")


class TestTransfers:
    def finds(self, world, *names):
        assert broken(world.clock()) == (list(names), {world.payout.owner_id})

    @pytest.mark.parametrize("status", ["sending", "reversed"])
    def test_are_as_far_as_their_payouts(self, sent, unguarded, status):
        with unguarded():
            Transfer.objects.update(status=status)
        self.finds(sent, "transfers_equal_their_payouts")

    def test_are_of_the_amount_of_their_payouts(self, sent, unguarded):
        with unguarded():
            Transfer.objects.update(amount_minor=F("amount_minor") + 1)
        self.finds(sent, "transfers_equal_their_payouts")

    def test_are_one_per_payout(self, sent, unguarded):
        with unguarded():
            alter("DROP INDEX payout_is_sent_once")
            twin = Transfer.objects.get()
            twin.pk, twin.provider_id, twin.reversed_minor = "trf_twin", "tr_twin", 0
            twin.save(force_insert=True)
        self.finds(sent, "transfers_equal_their_payouts")

    def test_send_no_more_than_was_earned(self, sent, unguarded):
        with unguarded():
            Payout.objects.update(amount_minor=F("amount_minor") + 151)
        names, parked = broken(sent.clock())
        assert "owners_got_at_most_what_they_earned" in names
        assert parked == {sent.payout.owner_id}

    def test_count_what_came_back(self, sent):
        payouts.record_reversal(
            owner=sent.payout.owner,
            reversal_id="trr_other",
            amount_minor=1,
            currency="usd",
            at=sent.clock(),
        )
        self.finds(sent, "what_was_taken_back_is_owed_no_more")


class TestDisputesOfTopUps:
    @pytest.fixture
    def disputed(self, provider, clock):
        world = World(provider, clock)
        world.payment = world.paid()
        TopUpDispute.objects.create(
            id="dp_1",
            payment=world.payment,
            amount_minor=5000,
            fee_minor=0,
            currency="usd",
            opened_at=world.clock(),
        )
        ledger.post(
            idempotency_key="dispute:dp_1:opened",
            kind=EntryKind.DISPUTE_OPENED,
            subject_id=world.payment.pk,
            effective_at=world.clock(),
            legs=ledger.transfer(
                debited=ledger.AccountRef(AccountKind.DISPUTE_HOLD, "usd", "dp_1", world.tenant),
                credited=ledger.AccountRef(AccountKind.STRIPE_AVAILABLE, "usd"),
                amount=5000,
            ),
        )
        assert broken(world.clock()) == ([], set())
        return world

    @pytest.mark.parametrize("changed", [{"status": "won"}, {"amount_minor": 4999}])
    def test_hold_what_is_open(self, disputed, unguarded, changed):
        with unguarded():
            TopUpDispute.objects.update(**changed)
        assert broken(disputed.clock()) == (
            ["disputes_of_top_ups_hold_what_is_open"],
            {disputed.tenant.pk},
        )
