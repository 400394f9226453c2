"""Staff publish rules of changes and set limits of tenants; each leaves its trail."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace.models import AuditEvent, Organization, User
from scheduler import change_rules, quotas
from scheduler.models import ChangeRule, TenantLimit
from tests.scheduler.factories import make_organization

pytestmark = pytest.mark.django_db
ADD_RULE = reverse("admin:scheduler_changerule_add")
RULE = {
    "ladder": "14d 0%\n24h 30%\n0 80%",
    "extension_opens_seconds": "30d",
    "extension_closes_seconds": "2h",
    "move_closes_seconds": "0",
    "based_on": "1",
}


@pytest.fixture
def staff(settings: Any) -> Client:
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    client = Client()
    client.force_login(User.objects.create_superuser("root", password="x"))
    return client


@pytest.fixture
def tenant() -> Organization:
    return make_organization()


class TestChangeRule:
    def test_begins_with_the_version_in_force(self, staff: Client) -> None:
        page = staff.get(ADD_RULE).content.decode()
        assert "PT720H 10%" in page
        assert 'value="PT1344H"' in page

    def test_is_published_as_the_next_version(self, staff: Client) -> None:
        change_rules.current(at=timezone.now())
        assert staff.post(ADD_RULE, RULE).status_code == 302
        rule = change_rules.current(at=timezone.now())
        assert (rule.version, rule.created_by) == (2, "admin:root")
        assert rule.ladder == [[14 * 86_400, 0], [86_400, 3_000], [0, 8_000]]
        assert (rule.extension_closes_seconds, rule.move_closes_seconds) == (7_200, 0)
        shown = staff.get(reverse("admin:scheduler_changerule_changelist")).content.decode()
        assert "PT336H 0%, PT24H 30%, 0 80%" in shown
        one = staff.get(reverse("admin:scheduler_changerule_change", args=[rule.pk]))
        assert one.status_code == 200

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"ladder": "soon 10%"}, "must be a duration"),
            ({"ladder": "7d"}, "is not a notice and a fee"),
            ({"ladder": "7d 10%"}, "the last must be 0"),
            ({"ladder": "7d 50%\n0 10%"}, "fees must rise"),
            ({"extension_opens_seconds": "1h"}, "open before they close"),
        ],
    )
    def test_is_refused_with_the_reason(
        self, staff: Client, changes: dict[str, str], words: str
    ) -> None:
        answer = staff.post(ADD_RULE, {**RULE, **changes})
        assert answer.status_code == 200
        assert words in answer.content.decode()
        assert ChangeRule.objects.count() == 1

    def test_is_never_edited(self, staff: Client) -> None:
        rule = change_rules.current(at=timezone.now())
        page = reverse("admin:scheduler_changerule_change", args=[rule.pk])
        assert staff.post(page, RULE).status_code == 403
        assert (
            staff.post(reverse("admin:scheduler_changerule_delete", args=[rule.pk])).status_code
            == 403
        )


class TestTenantLimit:
    def test_is_set_changed_and_dropped(self, staff: Client, tenant: Organization) -> None:
        body = {"organization": tenant.pk, "gpu_hours_max": "72"}
        assert staff.post(reverse("admin:scheduler_tenantlimit_add"), body).status_code == 302
        limit = TenantLimit.objects.get()
        assert quotas.limits_of(organization=tenant).gpu_seconds == 72 * 3600
        shown = staff.get(reverse("admin:scheduler_tenantlimit_changelist")).content.decode()
        assert tenant.name in shown
        page = reverse("admin:scheduler_tenantlimit_change", args=[limit.pk])
        staff.post(page, {**body, "gpu_hours_max": "10", "is_duration_exempt": "on"})
        limit.refresh_from_db()
        assert (limit.gpu_hours_max, limit.is_duration_exempt) == (10, True)
        staff.post(reverse("admin:scheduler_tenantlimit_delete", args=[limit.pk]), {"post": "yes"})
        assert not TenantLimit.objects.exists()
        trail = AuditEvent.objects.filter(object_id=tenant.pk, action__startswith="tenant_limit")
        assert [event.action for event in trail.order_by("id")] == [
            "tenant_limit.set",
            "tenant_limit.set",
            "tenant_limit.dropped",
        ]

    def test_of_everybody_has_no_organization(self, staff: Client) -> None:
        add = reverse("admin:scheduler_tenantlimit_add")
        assert staff.post(add, {"duration_seconds_max": "3600"}).status_code == 302
        assert TenantLimit.objects.get().organization is None
        shown = staff.get(reverse("admin:scheduler_tenantlimit_changelist")).content.decode()
        assert "every other tenant" in shown
