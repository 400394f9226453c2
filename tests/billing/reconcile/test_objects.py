"""Refunds, transfers and disputes of which the two sides tell differently."""

import pytest
import stripe

from billing import card_refunds, reconcile, transfers
from billing import provider as doors
from billing.models import TopUpDispute, Transfer
from marketplace.core.errors import StateConflict
from tests.billing.owner_market import OwnerWorld
from tests.billing.reconcile.market import Owners, adopt

pytestmark = pytest.mark.django_db


class TestRefunds:
    def given_back(self, world):
        return world.gives_back(world.paid(), 2000)

    def test_of_which_the_answer_was_lost_are_shown_and_adopted(self, world):
        payment = world.paid()
        world.stand_in.fail("timeout_after", "POST /v1/refunds")
        refund = card_refunds.write(
            payment=payment, amount_minor=2000, reason="asked", at=world.clock()
        )
        doors.drive_due(at=world.clock())
        (made,) = world.stand_in.world.all("refund")
        assert ("refund_without_row", made["id"]) in world.differences(hours=1)
        adopt("refund_without_row", world.clock())
        refund.refresh_from_db()
        assert (refund.status, refund.provider_id) == ("succeeded", made["id"])
        assert world.differences() == []

    def test_that_are_not_there_are_shown(self, world):
        refund = self.given_back(world)
        del world.stand_in.world.objects[refund.provider_id]
        assert ("refund_without_object", refund.pk) in world.differences(minutes=30)
        with pytest.raises(StateConflict):
            adopt("refund_without_object", world.clock())

    def test_of_another_state_are_shown_and_adopted(self, world):
        refund = self.given_back(world)
        world.stand_in.control("/_control/fail-refund", {"id": refund.provider_id})
        assert ("refund_differs", refund.provider_id) in world.differences(hours=1)
        adopt("refund_differs", world.clock())
        refund.refresh_from_db()
        assert refund.status == "failed"
        assert world.differences() == []

    def test_of_another_amount_are_shown(self, world):
        refund = self.given_back(world)
        world.stand_in.world.get(refund.provider_id, "refund")["amount"] = 1999
        assert ("refund_differs", refund.provider_id) in world.differences(hours=1)


class TestTransfers:
    @pytest.fixture
    def owners(self, provider, clock):
        return Owners(provider, clock)

    def test_of_which_the_answer_was_lost_are_shown_and_adopted(self, provider, clock):
        clock(days=60)
        owners = OwnerWorld(provider, clock)
        owners.onboard()
        owners.earn()
        provider.fail("timeout_after", "POST /v1/transfers")
        owners.turn()
        (made,) = provider.world.all("transfer")
        kinds = {d.kind: d.object_id for d in reconcile.run(at=clock(hours=1))}
        assert kinds["transfer_without_row"] == made["id"]
        adopt("transfer_without_row", clock())
        assert Transfer.objects.get().status == "paid"

    def test_that_are_not_there_are_shown(self, owners):
        del owners.stand_in.world.objects[owners.transfer.provider_id]
        assert owners.kinds(minutes=30)["transfer_without_object"] == owners.transfer.pk
        with pytest.raises(StateConflict):
            adopt("transfer_without_object", owners.clock())

    def test_of_another_amount_are_shown(self, owners):
        owners.object["amount"] += 1
        assert owners.kinds(minutes=30)["transfer_differs"] == owners.object["id"]

    def test_whose_reversal_lost_its_answer_are_shown_and_adopted(self, owners):
        owner = owners.transfer.owner
        owners.stand_in.fail("timeout_after", "POST /v1/transfers/")
        transfers.take_back(owner=owner, currency="usd", amount_minor=100, at=owners.clock())
        doors.drive_due(at=owners.clock())
        assert owners.kinds(minutes=30)["transfer_differs"] == owners.object["id"]
        adopt("transfer_differs", owners.clock())
        owners.transfer.refresh_from_db()
        assert owners.transfer.reversed_minor == 100
        assert "transfer_differs" not in owners.kinds()

    def test_that_somebody_else_reversed_are_for_a_person(self, owners):
        client = stripe.StripeClient("sk_test_x", base_addresses={"api": owners.stand_in.base_url})
        client.v1.transfers.reversals.create(owners.object["id"], {"amount": 100})
        assert owners.kinds(minutes=30)["transfer_differs"] == owners.object["id"]
        with pytest.raises(StateConflict):
            adopt("transfer_differs", owners.clock())


class TestDisputes:
    def disputed(self, world):
        payment = world.paid()
        return world.stand_in.control("/_control/dispute", {"id": payment.charge_id})

    def test_that_no_event_told_of_are_shown_and_adopted(self, world):
        made = self.disputed(world)
        assert ("dispute_without_row", made["id"]) in world.differences(hours=1)
        adopt("dispute_without_row", world.clock())
        assert TopUpDispute.objects.get().status == "open"
        assert world.differences() == []

    def test_that_were_decided_meanwhile_are_shown_and_adopted(self, world):
        made = self.disputed(world)
        doors.READERS["dispute"](made["id"], world.clock())
        world.stand_in.control("/_control/close-dispute", {"id": made["id"], "won": True})
        assert ("dispute_differs", made["id"]) in world.differences(hours=1)
        adopt("dispute_differs", world.clock())
        assert TopUpDispute.objects.get().status == "won"
        assert world.differences() == []

    def test_that_are_not_there_are_shown(self, world):
        made = self.disputed(world)
        doors.READERS["dispute"](made["id"], world.clock())
        del world.stand_in.world.objects[made["id"]]
        assert ("dispute_without_object", made["id"]) in world.differences(hours=1)
        with pytest.raises(StateConflict):
            adopt("dispute_without_object", world.clock())
