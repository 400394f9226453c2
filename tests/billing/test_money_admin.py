"""Statements, promotions and withdrawals as operators see them."""

import datetime as dt

import pytest
from django.urls import reverse
from django.utils import timezone

from billing import approvals, wallet, withdrawals
from billing.models import Approval, Promotion, Withdrawal
from marketplace.core.money import Money
from tests.billing import factories
from tests.billing.owner_market import released_settlement

pytestmark = pytest.mark.django_db

STATEMENT = "admin:billing_statement"


@pytest.fixture(autouse=True)
def plain_static_files(settings):
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }


class TestAStatement:
    def test_is_a_file_that_the_list_of_payouts_leads_to(self, admin_client):
        released_settlement()
        listing = admin_client.get(reverse("admin:billing_payout_changelist")).content.decode()
        assert reverse(STATEMENT) in listing
        assert admin_client.get(reverse(STATEMENT)).status_code == 200
        form = {"owner": factories.owner().pk, "month": "2026-11"}
        answer = admin_client.post(reverse(STATEMENT), form)
        assert answer.content.startswith(b"%PDF-")

    @pytest.mark.parametrize("month", ["2026-13", "0000-01", "november"])
    def test_is_of_a_month(self, admin_client, month):
        answer = admin_client.post(
            reverse(STATEMENT), {"owner": factories.owner().pk, "month": month}
        )
        assert answer.status_code == 200
        assert "text/html" in answer.headers["Content-Type"]

    def test_is_for_who_may_see_payouts(self, client, django_user_model):
        client.force_login(
            django_user_model.objects.create_user("eve", "eve@example.test", "x", is_staff=True)
        )
        assert client.get(reverse(STATEMENT)).status_code == 403


class TestAPromotion:
    def ask(self, admin_client, **changes):
        until = timezone.now() + dt.timedelta(days=30)
        form = {
            "kind": "promotion",
            "organization": factories.tenant().pk,
            "subject_id": "welcome",
            "amount_minor": "500",
            "expires_at": f"{until:%Y-%m-%d %H:%M:%S}",
            "reason": "a new customer",
            **changes,
        }
        return admin_client.post(reverse("admin:billing_request"), form)

    def test_is_granted_in_the_form(self, admin_client):
        assert self.ask(admin_client).status_code == 302
        assert Promotion.objects.get().amount_minor == 500

    def test_that_never_expires_says_why_not(self, admin_client):
        assert "expires within" in self.ask(admin_client, expires_at="").content.decode()
        assert not Approval.objects.exists()


class TestAWithdrawal:
    def test_that_waits_leads_to_the_form_that_asks_for_it(self, admin_client):
        tenant = factories.tenant(funds_minor=500)
        at = timezone.now()
        row = withdrawals.request(
            organization=tenant, amount=Money(500, "usd"), at=at, actor="key_cfo"
        )
        listing = reverse("admin:billing_withdrawal_changelist")
        page = admin_client.get(listing).content.decode()
        assert f"subject_id={row.pk}" in page
        form = {
            "kind": "withdrawal",
            "organization": tenant.pk,
            "subject_id": row.pk,
            "amount_minor": "500",
            "reason": "the customer leaves",
        }
        admin_client.post(reverse("admin:billing_request"), form)
        approvals.approve(approval_id=Approval.objects.get().pk, at=at, actor="bert")
        assert wallet.balance(organization=tenant) == Money(0, "usd")
        assert Withdrawal.objects.get().carried_out_at == at
        assert "carried out" in admin_client.get(listing).content.decode()
