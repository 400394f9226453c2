"""While an organization's money is parked the provider is asked for none of it, and afterwards for all."""

import pytest

from billing import (
    card_refunds,
    intents,
    ledger,
    parking,
    payments,
    provider,
    receivables,
    refunds,
    tasks,
)
from billing.models import Intent, Payment, Refund, Transfer
from billing.provider_states import (
    CardRefundStatus,
    IntentKind,
    IntentStatus,
    PaymentMeans,
    PaymentPurpose,
    PaymentStatus,
)
from billing.states import AccountKind, EntryKind
from marketplace.core.money import Money
from tests.billing import factories
from tests.billing.card_market import CARD
from tests.billing.owner_market import OwnerWorld
from tests.billing.parking.verbs import park, to_be_refunded
from tests.billing.payments.market import Undelivering

pytestmark = pytest.mark.django_db


class TestCalls:
    @pytest.fixture
    def world(self, provider, clock):
        return Undelivering(provider, clock)

    def intent(self, world, kind: IntentKind) -> Intent:
        return intents.write(
            kind=kind, subject_id="x", organization=world.tenant, params={}, at=world.clock()
        )

    @pytest.mark.parametrize("kind", IntentKind)
    def test_that_move_money_are_not_made_first_while_it_is_parked(self, world, kind):
        intent = self.intent(world, kind)
        park(world.tenant)
        waits = kind in intents.MOVES_MONEY
        assert intents.due(at=world.clock()) == ([] if waits else [intent.pk])
        if waits:
            assert not intents.drive(
                intent_id=intent.pk, handlers=provider.HANDLERS, at=world.clock()
            )
        parking.end(organization=world.tenant, at=world.clock(), actor="two people")
        assert intents.due(at=world.clock()) == [intent.pk]

    @pytest.mark.parametrize("kind", intents.MOVES_MONEY)
    def test_that_were_made_before_are_followed_to_their_end(self, world, kind):
        intent = self.intent(world, kind)
        Intent.objects.filter(pk=intent.pk).update(
            status=IntentStatus.SENT, attempts=1, sent_at=world.clock()
        )
        park(world.tenant)
        assert intents.due(at=world.clock()) == [intent.pk]

    def test_for_new_money_are_refused(self, world):
        park(world.tenant)
        with pytest.raises(parking.MoneyParked):
            world.top_up()
        with pytest.raises(parking.MoneyParked):
            world.reserve()
        assert not Payment.objects.exists()

    def test_that_return_money_wait_and_then_go(self, world):
        payment = world.paid()
        park(world.tenant)
        refund = card_refunds.write(
            payment=payment, amount_minor=2000, reason="asked", at=world.clock()
        )
        world.turn()
        assert (world.balance(), world.stand_in.world.all("refund")) == (5000, [])
        world.sound()
        parking.end(organization=world.tenant, at=world.clock(), actor="two people")
        world.turn()
        refund.refresh_from_db()
        assert (refund.status, world.balance()) == ("succeeded", 3000)
        assert [row["amount"] for row in world.stand_in.world.all("refund")] == [2000]
        world.sound()

    def test_that_return_what_was_spent_meanwhile_go_nowhere(self, world):
        payment = world.paid()
        park(world.tenant)
        refund = card_refunds.write(
            payment=payment, amount_minor=5000, reason="asked", at=world.clock()
        )
        parking.end(organization=world.tenant, at=world.clock(), actor="two people")
        tenant = world.tenant
        ledger.post(
            idempotency_key="spent",
            kind=EntryKind.PURCHASE,
            subject_id="x",
            effective_at=world.clock(),
            legs=ledger.transfer(
                debited=ledger.AccountRef(AccountKind.WALLET, "usd", tenant.pk, tenant),
                credited=ledger.AccountRef(AccountKind.BANK, "usd"),
                amount=1,
            ),
        )
        world.turn()
        refund.refresh_from_db()
        payment.refresh_from_db()
        assert (refund.status, refund.failure_code) == (CardRefundStatus.FAILED, "spent")
        assert (world.balance(), payment.refunded_minor) == (4999, 0)
        assert world.told()[-1] == "refund.failed"
        world.sound()

    def test_for_an_invoice_bring_money_that_pays_it_afterwards(self, world):
        row = factories.reservation(buyer=world.tenant, paid=False)
        invoice_id = factories.bought_on_account(row)
        payment = payments.open_for_invoice(
            organization=world.tenant,
            invoice_id=invoice_id,
            amount=Money(471, "usd"),
            wishes=CARD,
            at=world.clock(),
        )
        provider.drive_payment(payment_id=payment.pk, at=world.clock())
        payment.refresh_from_db()
        parking.park(breaches={world.tenant.pk: "looked into"}, at=world.clock())
        owed = receivables.account(organization=world.tenant, invoice_id=invoice_id, currency="usd")
        world.pays(payment)
        world.turn()
        assert (world.balance(), ledger.kept_balance(account=owed)) == (471, 471)
        parking.end(organization=world.tenant, at=world.clock(minutes=1), actor="two people")
        for _ in range(2):
            world.turn()
        assert (world.balance(), ledger.kept_balance(account=owed)) == (0, 0)

    @pytest.fixture
    def queued(self, world):
        """Return a refund that stands before one of another tenant in the queue."""
        reservation = to_be_refunded()
        Payment.objects.create(
            organization=reservation.organization,
            purpose=PaymentPurpose.RESERVATION,
            means=PaymentMeans.CARD,
            status=PaymentStatus.SUCCEEDED,
            reservation=reservation,
            amount_minor=471,
            received_minor=471,
            currency="usd",
            read_due_at=world.clock(),
            due_at=world.clock(),
            created_at=world.clock(),
        )
        (first,) = refunds.open_for(reservation_id=reservation.pk, at=world.clock())
        world.owing()
        assert first == Refund.objects.order_by("pk").first()
        return first

    def asked(self, world):
        tasks.drive_intents()
        return [row["amount"] for row in world.stand_in.world.all("refund")]

    def test_for_one_tenant_are_made_while_another_is_parked(self, world, queued):
        park(queued.reservation.organization)
        assert len(self.asked(world)) == 1
        queued.refresh_from_db()
        assert queued.status == "due"

    def test_for_one_tenant_are_made_while_another_ones_cannot(self, world, queued, unguarded):
        with unguarded():
            Refund.objects.filter(pk=queued.pk).update(amount_minor=472)  # more than there is
        assert len(self.asked(world)) == 1
        queued.refresh_from_db()
        assert queued.status == "due"

    def test_that_take_back_from_an_owner_wait(self, provider, clock):
        clock(days=60)
        world = OwnerWorld(provider, clock)
        payout = world.owing(150)
        park(payout.owner)
        world.ask(payout, 150)
        for is_parked in (True, False):
            world.turn()
            taken = Transfer.objects.get().reversed_minor
            assert taken == (0 if is_parked else 150)
            assert ledger.balance(account=world.owed(payout)) == 150 - taken
            parking.end(organization=payout.owner, at=clock(), actor="two people")
