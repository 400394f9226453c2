"""The operator's pages: what the verbs allow, and histories that nobody can edit."""

from html import unescape
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission
from django.test import Client
from django.test.utils import override_settings
from django.urls import reverse

from marketplace import deliveries, events, organizations
from marketplace.console import admin_menu
from marketplace.models import (
    ApiKey,
    AuditEvent,
    Listing,
    ListingTransition,
    WebhookCall,
    WebhookDelivery,
)
from marketplace.states import DeliveryState, EventKind, ListingStatus
from tests.marketplace.factories import NOON, a_published_listing, a_tenant

pytestmark = pytest.mark.django_db
PLAIN_FILES = override_settings(
    STORAGES={
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
)


@pytest.fixture(autouse=True)
def _plain_files():
    with PLAIN_FILES:
        yield


class TestIndex:
    def test_counts_and_links(self, admin_client: Client) -> None:
        a_published_listing()
        text = admin_client.get("/admin/").content.decode()
        assert "Listings on offer" in text
        assert "/admin/marketplace/listing/" in text
        assert "Simulated hardware and payments" in text

    def test_leads_from_what_waits_for_people_to_those_rows(self, admin_client: Client) -> None:
        text = admin_client.get("/admin/").content.decode()
        for waiting in (
            "/admin/billing/approval/?status__exact=requested",
            "/admin/billing/dispute/?status__exact=open",
            "/admin/billing/difference/?resolved_at__isempty=1&amp;dismissal__isempty=1",
            "/admin/billing/topupdispute/?status__exact=open",
            "/admin/billing/parking/?ended_at__isempty=1",
        ):
            assert f'href="{waiting}"' in text
            assert admin_client.get(unescape(waiting)).status_code == 200

    def test_sends_a_stranger_to_the_login(self, client: Client) -> None:
        assert client.get("/admin/").status_code == 302


# Tables that are read where their objects stand, and replayed answers, which nobody looks for.
OFF_THE_MENU = {
    "marketplace.ListingTransition",
    "marketplace.IdempotencyRecord",
    "agents.NodeTransition",
}


class TestMenu:
    def test_has_every_table_that_has_a_page(self, rf, admin_user) -> None:
        request = rf.get("/admin/")
        request.user = admin_user
        listed = {
            item["link"] for group in admin_menu.navigation(request) for item in group["items"]
        }
        missing = {
            model._meta.label
            for model in admin.site._registry
            if reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
            not in listed
        }
        assert missing == OFF_THE_MENU

    def test_leads_to_pages_that_answer(self, admin_client: Client, rf, admin_user) -> None:
        request = rf.get("/admin/")
        request.user = admin_user
        links = [
            item["link"] for group in admin_menu.navigation(request) for item in group["items"]
        ]
        assert len(links) > 10
        assert {link: admin_client.get(link).status_code for link in links} == dict.fromkeys(
            links, 200
        )


class TestListingAdmin:
    def test_pauses_through_the_verb(self, admin_client: Client) -> None:
        listing = a_published_listing()
        action = {"action": "pause", "_selected_action": [listing.pk]}
        admin_client.post("/admin/marketplace/listing/", action)
        assert Listing.objects.get().status == ListingStatus.PAUSED
        assert ListingTransition.objects.latest("id").actor == "admin:admin"

    def test_shows_the_refusal_of_a_move_that_is_none(self, admin_client: Client) -> None:
        listing = a_published_listing()
        action = {"action": "publish", "_selected_action": [listing.pk]}
        response = admin_client.post("/admin/marketplace/listing/", action, follow=True)
        assert "cannot become published" in response.content.decode()


class TestApiKeyAdmin:
    def test_shows_the_secret_once_and_keeps_the_hash(self, admin_client: Client) -> None:
        tenant = a_tenant()
        body = {"organization": tenant.pk, "name": "ci", "scopes": ["market:read"]}
        response = admin_client.post("/admin/marketplace/apikey/add/", body, follow=True)
        (message,) = [str(m) for m in response.context["messages"] if "secret" in str(m)]
        secret = message.rpartition(" ")[2]
        assert organizations.authenticate(secret=secret, at=NOON).organization == tenant
        again = admin_client.get(f"/admin/marketplace/apikey/{ApiKey.objects.get().pk}/change/")
        assert secret not in again.content.decode()


class TestWebhookAdmin:
    @pytest.fixture
    def delivery(self) -> WebhookDelivery:
        tenant = a_tenant()
        deliveries.add(
            organization=tenant, url="https://hooks.example/a", kinds=[], at=NOON, actor="test"
        )
        events.record(
            organization=tenant,
            kind=EventKind.MONEY_PARKED,
            object_id="org_1",
            data={},
            at=NOON,
            key="once",
        )
        WebhookDelivery.objects.update(due_at=None, attempts=10, last_status=500)
        delivery = WebhookDelivery.objects.get()
        WebhookCall.objects.create(
            delivery=delivery, at=NOON, response_status=500, error="out of order"
        )
        return delivery

    def test_shows_deliveries_by_status_with_their_calls(
        self, admin_client: Client, delivery: WebhookDelivery
    ) -> None:
        page = "/admin/marketplace/webhookdelivery/"
        assert "money.parked" in admin_client.get(f"{page}?status=given_up").content.decode()
        assert "money.parked" not in page_rows(admin_client.get(f"{page}?status=delivered"))
        shown = admin_client.get(f"{page}{delivery.pk}/change/").content.decode()
        assert "out of order" in shown
        assert delivery.endpoint.organization.name in shown
        event = reverse("admin:marketplace_event_change", args=[quote(delivery.event_id)])
        assert f'href="{event}"' in shown
        assert "Given Up" in shown
        assert "&#x27;given_up" not in shown

    def test_shows_an_event_with_its_deliveries(
        self, admin_client: Client, delivery: WebhookDelivery
    ) -> None:
        page = reverse("admin:marketplace_event_change", args=[delivery.event_id])
        shown = admin_client.get(page).content.decode()
        to = reverse("admin:marketplace_webhookdelivery_change", args=[delivery.pk])
        assert f'href="{to}">{delivery.endpoint.url}</a>, given up' in shown
        WebhookDelivery.objects.all().delete()
        assert "nobody wants it" in admin_client.get(page).content.decode()
        assert admin_client.post(page, {}).status_code == 403

    def test_sends_one_again(self, admin_client: Client, delivery: WebhookDelivery) -> None:
        action = {"action": "resend", "_selected_action": [delivery.pk]}
        admin_client.post("/admin/marketplace/webhookdelivery/", action)
        delivery.refresh_from_db()
        assert delivery.state == DeliveryState.WAITING
        assert AuditEvent.objects.latest("id").actor == "admin:admin"

    def test_shows_an_endpoint_without_its_secrets_and_stops_it_once(
        self, admin_client: Client, delivery: WebhookDelivery
    ) -> None:
        endpoint = delivery.endpoint
        page = "/admin/marketplace/webhookendpoint/"
        shown = admin_client.get(f"{page}{endpoint.pk}/change/").content.decode()
        assert endpoint.url in shown
        assert endpoint.sealed_secret not in shown
        action = {"action": "disable", "_selected_action": [endpoint.pk]}
        admin_client.post(page, action)
        endpoint.refresh_from_db()
        assert endpoint.disabled_because == "operator"
        again = admin_client.post(page, action, follow=True)
        assert "is disabled" in again.content.decode()

    def test_refuses_to_send_again_while_the_endpoint_is_disabled(
        self, admin_client: Client, delivery: WebhookDelivery
    ) -> None:
        deliveries.stop(endpoint=delivery.endpoint, at=NOON, actor="test")
        action = {"action": "resend", "_selected_action": [delivery.pk]}
        page = admin_client.post("/admin/marketplace/webhookdelivery/", action, follow=True)
        assert "enable it first" in page.content.decode()

    def test_lets_a_reader_do_nothing(
        self, client: Client, delivery: WebhookDelivery, django_user_model: Any
    ) -> None:
        reader = django_user_model.objects.create_user("reader", password="x", is_staff=True)
        reader.user_permissions.set(Permission.objects.filter(codename__startswith="view_webhook"))
        client.force_login(reader)
        for model, action, key in (
            ("webhookendpoint", "disable", delivery.endpoint_id),
            ("webhookdelivery", "resend", delivery.pk),
        ):
            page = f"/admin/marketplace/{model}/"
            assert client.get(page).status_code == 200
            client.post(page, {"action": action, "_selected_action": [key]})
        delivery.refresh_from_db()
        assert (delivery.due_at, delivery.endpoint.disabled_at) == (None, None)


def page_rows(response: Any) -> str:
    """Return the table of a list alone: its filters name what it does not hold."""
    return str(response.content.decode().partition("<table")[2].partition("</table>")[0])


class TestHistory:
    @pytest.mark.parametrize("model", [AuditEvent, ListingTransition])
    def test_can_be_read_and_nothing_else(self, model: type, rf, admin_user) -> None:
        request = rf.get("/admin/")
        request.user = admin_user
        model_admin: Any = admin.site.get_model_admin(model)
        assert model_admin.has_view_permission(request)
        assert not model_admin.has_add_permission(request)
        assert not model_admin.has_change_permission(request)
        assert not model_admin.has_delete_permission(request)
