"""What an operator of the books is called for, and what the admin lets one do about it."""

import datetime as dt

import pytest
from django.urls import reverse

from billing import card_refunds, parking, provider, watch
from billing.models import Difference, Intent
from marketplace.models import AuditEvent
from tests.billing import factories
from tests.billing.card_market import World

pytestmark = pytest.mark.django_db

AT = factories.START


def waiting(rows):
    return {row.kind: (row.count, row.oldest_seconds) for row in rows}


def test_open_differences_are_counted_by_kind_and_age():
    for number, hours in enumerate((5, 2)):
        Difference.objects.create(
            kind="booking_unmatched",
            object_id=f"txn_{number}",
            detail="",
            first_seen_at=AT - dt.timedelta(hours=hours),
            last_seen_at=AT,
        )
    told = waiting(watch.differences(at=AT))
    assert told["booking_unmatched"] == (2, 5 * 3600)
    assert told["payment_differs"] == (0, 0)


def test_what_is_resolved_is_not_counted():
    Difference.objects.create(
        kind="payment_differs",
        object_id="pi_1",
        detail="",
        first_seen_at=AT,
        last_seen_at=AT,
        resolved_at=AT,
    )
    assert waiting(watch.differences(at=AT))["payment_differs"] == (0, 0)


def test_parked_organizations_are_counted():
    parking.park(breaches={factories.tenant().pk: "looked into"}, at=AT - dt.timedelta(hours=3))
    assert waiting(watch.people(at=AT))["parked_organization"] == (1, 3 * 3600)


class TestUnknownCalls:
    @pytest.fixture(autouse=True)
    def plain_static_files(self, settings):
        settings.STORAGES = {
            **settings.STORAGES,
            "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
        }

    @pytest.fixture
    def call(self, provider, clock):
        self.world = World(provider, clock)
        payment = self.world.top_up()
        self.world.pays(payment)
        self.world.turn()
        payment.refresh_from_db()
        self.refund = card_refunds.write(
            payment=payment, amount_minor=2000, reason="asked", at=clock()
        )
        provider.fail("server_error_stored", "POST /v1/refunds")
        self.drive(clock())
        intent = Intent.objects.get(subject_id=self.refund.pk)
        Intent.objects.filter(pk=intent.pk).update(status="unknown")
        return intent

    def drive(self, at):
        provider.drive_due(at=at)

    def act(self, client, intent, action, found):
        return client.post(
            reverse("admin:billing_intent_changelist"),
            {"action": action, "_selected_action": [intent.pk], "found": found},
            follow=True,
        ).content.decode()

    def test_are_counted(self, call, clock):
        sent_at = Intent.objects.get(pk=call.pk).sent_at
        at = sent_at + dt.timedelta(hours=30)
        assert waiting(watch.people(at=at))["unknown_call"] == (1, 30 * 3600)

    def test_are_given_up_by_an_operator_who_says_why(self, call, admin_client):
        assert "Say how you know" in self.act(admin_client, call, "did_not_happen", "")
        assert "is done" in self.act(admin_client, call, "did_not_happen", "I asked them")
        self.refund.refresh_from_db()
        assert self.refund.status == "failed"
        assert AuditEvent.objects.filter(action="intent.did_not_happen").exists()

    def test_are_given_no_object_that_is_not_there(self, call, admin_client):
        assert "re_nobody" in self.act(admin_client, call, "is_object", "re_nobody")
        call.refresh_from_db()
        assert call.status == "unknown"

    def test_are_not_for_those_who_may_only_look(self, call, client, django_user_model):
        client.force_login(django_user_model.objects.create_user("anna", is_staff=True))
        self.act(client, call, "did_not_happen", "I asked them")
        call.refresh_from_db()
        assert call.status == "unknown"

    def test_stand_on_a_page_that_can_be_opened(self, call, admin_client):
        page = admin_client.get(reverse("admin:billing_intent_changelist")).content.decode()
        assert "how you know" in page
