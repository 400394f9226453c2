"""The operator's pages: what the verbs allow, and histories that nobody can edit."""

from typing import Any

import pytest
from django.contrib import admin
from django.test import Client
from django.test.utils import override_settings

from marketplace import organizations
from marketplace.console import admin_menu
from marketplace.models import ApiKey, AuditEvent, Listing, ListingTransition
from marketplace.states import ListingStatus
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

    def test_sends_a_stranger_to_the_login(self, client: Client) -> None:
        assert client.get("/admin/").status_code == 302


class TestMenu:
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
