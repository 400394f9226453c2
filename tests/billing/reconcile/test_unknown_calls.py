"""Calls of which nobody knows whether they happened, until a person says."""

import pytest
import time_machine
from django.core.management import CommandError, call_command

from billing import card_refunds, unknown_intents
from billing import provider as doors
from billing.models import Intent
from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.models import AuditEvent
from tests.billing.reconcile.market import adopt

pytestmark = pytest.mark.django_db


class TestUnknownCalls:
    def unknown(self, world, *, happened):
        """Return a refund of which the call's outcome was never known: the provider's own fault is stored."""
        self.payment = world.paid()
        fault = "timeout_after" if happened else "server_error_stored"
        refund = card_refunds.write(
            payment=self.payment, amount_minor=2000, reason="asked", at=world.clock()
        )
        world.stand_in.fail(fault, "POST /v1/refunds")
        doors.drive_due(at=world.clock())
        intent = Intent.objects.get(subject_id=refund.pk)
        Intent.objects.filter(pk=intent.pk).update(status="unknown")
        return refund, intent

    def test_that_did_not_happen_have_the_consequences_of_a_refusal(self, world):
        refund, intent = self.unknown(world, happened=False)
        assert ("intent_unknown", intent.pk) in world.differences()
        with pytest.raises(StateConflict):
            adopt("intent_unknown", world.clock())
        unknown_intents.did_not_happen(
            intent_id=intent.pk, reason="Stripe's support says so", at=world.clock(), actor="cfo"
        )
        refund.refresh_from_db()
        assert (refund.status, world.balance()) == ("failed", 5000)
        assert world.differences() == []
        trail = AuditEvent.objects.get(action="intent.did_not_happen")
        assert (trail.actor, trail.detail["reason"]) == ("cfo", "Stripe's support says so")
        world.sound()

    def test_that_did_happen_cannot_be_said_not_to_have(self, world):
        refund, intent = self.unknown(world, happened=True)
        with pytest.raises(StateConflict, match="did happen"):
            unknown_intents.did_not_happen(
                intent_id=intent.pk, reason="I think so", at=world.clock(), actor="cfo"
            )
        refund.refresh_from_db()
        assert (refund.status, world.balance()) == ("succeeded", 3000)

    def test_are_adopted_when_their_object_bears_our_mark(self, world):
        refund, intent = self.unknown(world, happened=True)
        assert ("intent_unknown", intent.pk) in world.differences()
        adopt("intent_unknown", world.clock())
        refund.refresh_from_db()
        assert refund.status == "succeeded"

    def test_are_given_an_object_that_a_person_names(self, world):
        refund, intent = self.unknown(world, happened=False)
        client = world.client()
        made = client.v1.refunds.create(
            {"payment_intent": self.payment.provider_id, "amount": 2000}
        )
        unknown_intents.is_object(
            intent_id=intent.pk, object_id=made.id, at=world.clock(), actor="cfo"
        )
        refund.refresh_from_db()
        assert (refund.status, refund.provider_id) == ("succeeded", made.id)
        assert AuditEvent.objects.filter(action="intent.is_object", actor="cfo").exists()

    def test_are_given_no_object_of_another_call_or_amount(self, world):
        _, intent = self.unknown(world, happened=False)
        other = world.client().v1.refunds.create(
            {"payment_intent": self.payment.provider_id, "amount": 1}
        )
        for object_id, refusal in (
            (other.id, unknown_intents.NotThisObject),
            ("re_nobody", StateConflict),
        ):
            with pytest.raises(refusal):
                unknown_intents.is_object(
                    intent_id=intent.pk, object_id=object_id, at=world.clock(), actor="cfo"
                )

    def test_that_are_known_are_left_alone(self, world):
        _, intent = self.unknown(world, happened=False)
        Intent.objects.filter(pk=intent.pk).update(status="sent")
        with pytest.raises(StateConflict):
            unknown_intents.did_not_happen(
                intent_id=intent.pk, reason="I think so", at=world.clock(), actor="cfo"
            )
        with pytest.raises(InvalidValue):
            unknown_intents.did_not_happen(
                intent_id=intent.pk, reason=" ", at=world.clock(), actor="cfo"
            )

    def test_are_settled_by_the_command(self, world, capsys):
        refund, intent = self.unknown(world, happened=False)
        with time_machine.travel(world.clock(), tick=False):
            with pytest.raises(CommandError, match="one of"):
                call_command("reconcile", "--call", intent.pk, "--as", "cfo")
            with pytest.raises(CommandError, match="who"):
                call_command("reconcile", "--call", intent.pk, "--object", "re_1")
            call_command(
                "reconcile", "--call", intent.pk, "--did-not-happen", "asked them", "--as", "cfo"
            )
        assert "refused" in capsys.readouterr().out
        refund.refresh_from_db()
        assert refund.status == "failed"
