"""What somebody else did at the provider, and a person says is none of ours."""

import pytest
import time_machine
from django.core.management import call_command
from django.db import DatabaseError
from django.db import transaction as db_transaction
from django.urls import reverse

from billing import reconcile, watch
from billing.models import Difference, Dismissal
from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.models import AuditEvent

pytestmark = pytest.mark.django_db


class TestDismissal:
    @pytest.fixture
    def foreign(self, world):
        """Return the difference of a payment that somebody made by hand."""
        world.client().v1.payment_intents.create({"amount": 900, "currency": "usd"})
        ((kind, object_id),) = world.differences(hours=1)
        return Difference.objects.get(kind=kind, object_id=object_id)

    def dismiss(self, world, difference, reason="a trial by our accountant"):
        return reconcile.dismiss(
            difference=difference, reason=reason, at=world.clock(), actor="cfo"
        )

    def test_stays_listed_calls_nobody_and_stands_in_the_trail(self, world, foreign):
        assert reconcile.is_overdue(difference=foreign, at=world.clock())
        assert waiting_payments(world.clock()) == 1
        made = self.dismiss(world, foreign)
        assert (made.actor, made.reason) == ("cfo", "a trial by our accountant")
        assert not reconcile.is_overdue(difference=foreign, at=world.clock())
        assert waiting_payments(world.clock()) == 0
        assert world.differences(hours=9) == [(foreign.kind, foreign.object_id)]
        trail = AuditEvent.objects.get(action="difference.dismissed")
        assert (trail.actor, trail.detail["reason"]) == ("cfo", made.reason)

    def test_is_told_by_the_command(self, world, foreign, capsys):
        self.dismiss(world, foreign)
        with time_machine.travel(world.clock(hours=9), tick=False):
            call_command("reconcile")
        assert f"dismissed  {foreign.pk:>6}" in capsys.readouterr().out

    def test_needs_a_reason_and_happens_once(self, world, foreign):
        with pytest.raises(InvalidValue):
            self.dismiss(world, foreign, reason="  ")
        self.dismiss(world, foreign)
        with pytest.raises(StateConflict, match="decided before"):
            self.dismiss(world, foreign)

    def test_never_changes(self, world, foreign):
        self.dismiss(world, foreign)
        with pytest.raises(DatabaseError, match="append-only"), db_transaction.atomic():
            Dismissal.objects.update(reason="something else")
        with pytest.raises(DatabaseError, match="append-only"), db_transaction.atomic():
            Dismissal.objects.all().delete()

    def test_is_of_nothing_that_bears_our_mark(self, world):
        world.top_up()
        world.stand_in.fail("timeout_after", "POST /v1/payment_intents")
        lost = world.top_up()
        assert dict(world.differences(hours=1)).keys() == {"payment_without_row"}
        with pytest.raises(StateConflict, match="was taken over"):
            self.dismiss(world, Difference.objects.get())
        lost.refresh_from_db()
        assert lost.status == "open"
        assert not Dismissal.objects.exists()

    def test_is_of_nothing_that_is_for_us_to_end(self, world):
        payment = world.top_up()
        world.pays(payment)
        world.differences(hours=1)
        with pytest.raises(StateConflict, match="for us to end"):
            self.dismiss(world, Difference.objects.get(kind="payment_differs"))

    def test_waits_while_the_provider_is_away(self, world, foreign):
        world.stand_in.fail("server_error", "GET")
        with pytest.raises(StateConflict, match="the provider says"):
            self.dismiss(world, foreign)
        assert not Dismissal.objects.exists()

    def test_is_made_in_the_admin(self, world, foreign, admin_client, settings):
        settings.STORAGES = {
            **settings.STORAGES,
            "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
        }
        listing = reverse("admin:billing_difference_changelist")
        form = {"action": "dismiss", "_selected_action": [foreign.pk]}
        admin_client.post(listing, {**form, "reason": ""})
        assert not Dismissal.objects.exists()
        admin_client.post(listing, {**form, "reason": "a trial"})
        assert Dismissal.objects.get().actor == "admin"
        assert ">dismissed<" in "".join(admin_client.get(listing).content.decode().split())
        row = reverse("admin:billing_difference_change", args=[foreign.pk])
        page = admin_client.get(row).content.decode()
        assert "by admin, " in page
        assert ": a trial" in page


def waiting_payments(at):
    (row,) = (row for row in watch.differences(at=at) if row.kind == "payment_without_row")
    return row.count
