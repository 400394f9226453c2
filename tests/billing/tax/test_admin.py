"""Staff say who is taxed how, a version at a time, and see what was sold on which terms."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from billing.models import TaxRule, TaxStatus
from marketplace.models import AuditEvent, User
from tests.billing import factories

pytestmark = pytest.mark.django_db
ADD_RULE = reverse("admin:billing_taxrule_add")
ADD_STATUS = reverse("admin:billing_taxstatus_add")
RULE = {"jurisdiction": "DE", "name": "VAT", "rate_basis_points": "1900"}


@pytest.fixture
def staff(settings: Any) -> Client:
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    client = Client()
    client.force_login(User.objects.create_superuser("root", password="x"))
    return client


def status(**changes: str) -> dict[str, str]:
    return {
        "organization": factories.tenant().pk,
        "jurisdiction": "DE",
        "treatment": "standard",
        "tax_id": "",
        **changes,
    }


def test_a_rule_is_published_as_the_next_version_and_never_edited(staff: Client) -> None:
    for rate in ("1900", "1600"):
        answer = staff.post(ADD_RULE, {**RULE, "rate_basis_points": rate})
        assert answer.status_code == 302
    newest = TaxRule.objects.get(version=2)
    assert (newest.rate_basis_points, newest.created_by) == (1600, "admin:root")
    assert AuditEvent.objects.filter(action="tax_rule.published").count() == 2
    page = reverse("admin:billing_taxrule_change", args=[newest.pk])
    assert staff.get(page).status_code == 200
    assert staff.post(page, {**RULE, "rate_basis_points": "1"}).status_code == 403
    assert "16 %" in staff.get(reverse("admin:billing_taxrule_changelist")).content.decode()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"jurisdiction": "de"}, "ISO 3166"),
        ({"rate_basis_points": "10001"}, "must be 0 to 10000"),
        ({"name": ""}, "required"),
        ({"valid_from_0": "2020-01-01", "valid_from_1": "00:00"}, "not before now"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_the_reason(
    staff: Client, changes: dict[str, str], words: str
) -> None:
    answer = staff.post(ADD_RULE, {**RULE, **changes})
    assert answer.status_code == 200
    assert words in answer.content.decode()
    assert not TaxRule.objects.exists()
    assert not AuditEvent.objects.exists()


def test_a_status_is_written_and_named_in_the_trail(staff: Client) -> None:
    staff.post(ADD_RULE, RULE)
    answer = staff.post(ADD_STATUS, status(treatment="reverse_charge", tax_id="DE123456789"))
    assert answer.status_code == 302
    row = TaxStatus.objects.get()
    assert (row.version, row.treatment, row.tax_id) == (1, "reverse_charge", "DE123456789")
    assert AuditEvent.objects.get(action="tax_status.set").organization == row.organization


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, "Publish a rule for DE first"), ({"treatment": "reverse_charge"}, "tax id")],
)
def test_a_status_that_would_tax_by_mistake_is_refused(
    staff: Client, changes: dict[str, str], words: str
) -> None:
    answer = staff.post(ADD_STATUS, status(**changes))
    assert words in answer.content.decode()
    assert not TaxStatus.objects.exists()


def test_only_who_may_add_them_writes_versions(staff: Client) -> None:
    viewer = User.objects.create_user("eva", password="x", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_taxrule"))
    client = Client()
    client.force_login(viewer)
    assert client.post(ADD_RULE, RULE).status_code == 403
    assert client.get(reverse("admin:billing_taxrule_changelist")).status_code == 200
    assert not TaxRule.objects.exists()


def test_a_taxed_sale_shows_its_terms_and_its_lines(staff: Client) -> None:
    row = factories.reservation(
        buyer=factories.taxed(buyer=factories.tenant(funds_minor=1000), basis_points=2550)
    )
    page = staff.get(reverse("admin:billing_reservationtax_change", args=[row.pk]))
    assert page.status_code == 200
    listed = staff.get(reverse("admin:billing_reservationtax_changelist")).content.decode()
    assert "25.5 %" in listed
