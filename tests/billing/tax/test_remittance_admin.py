"""Staff see what tax offices are owed, ask to remit it, and let somebody else decide."""

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from billing import approvals
from billing.models import Approval, TaxRemittance
from marketplace.models import User
from tests.billing.tax import test_remittances as money

pytestmark = [pytest.mark.django_db, pytest.mark.time_machine(money.FILED_AT, tick=False)]

OFFICES = reverse("admin:billing_tax_offices")
WISH = {"office": "DE:usd", "amount_minor": "89", "reason": "filing 4711"}


@pytest.fixture(autouse=True)
def sold() -> None:
    money.sell()


@pytest.fixture
def staff(settings: Any) -> Client:
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    client = Client()
    client.force_login(User.objects.create_superuser("anna", password="x"))
    return client


def text_of(answer: Any) -> str:
    return " ".join(answer.content.decode().split())


def test_the_month_that_is_filed_next_is_shown(staff: Client) -> None:
    text = text_of(staff.get(OFFICES))
    assert "Tax offices, 2026-11" in text
    assert "<strong>0.89 USD</strong>" in text
    assert "Nothing was sold with tax in 2026-10" in text_of(staff.get(f"{OFFICES}?month=2026-10"))


@pytest.mark.parametrize("month", ["2027-01", "november", "2026-13"])
def test_a_month_that_is_none_or_has_not_begun_is_refused(staff: Client, month: str) -> None:
    answer = staff.get(f"{OFFICES}?month={month}")
    assert answer.status_code == 200
    assert "as YYYY-MM" in text_of(answer) or "has not begun" in text_of(answer)
    assert staff.post(f"{OFFICES}?month={month}", WISH).status_code == 403


def test_what_is_asked_for_waits_for_somebody_else(staff: Client) -> None:
    answer = staff.post(f"{OFFICES}?month=2026-11", WISH)
    asked = Approval.objects.get()
    assert answer["Location"] == reverse("admin:billing_approval_change", args=[asked.pk])
    assert staff.get(answer["Location"]).status_code == 200
    assert "asked for by anna" in text_of(staff.get(OFFICES))
    decide = reverse("admin:billing_decide", args=[asked.pk])
    assert "the market itself" in text_of(staff.get(decide))
    assert "somebody else decides it" in text_of(staff.post(decide, {"decision": "approve"}))
    other = Client()
    other.force_login(User.objects.create_superuser("bert", password="x"))
    assert other.post(decide, {"decision": "approve"}).status_code == 302
    assert TaxRemittance.objects.get().amount_minor == 89
    listed = text_of(staff.get(reverse("admin:billing_taxremittance_changelist")))
    assert all(word in listed for word in ("0.89 USD", "anna", "bert", "What tax offices are owed"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"amount_minor": "90"}, "DE is owed 0.89 USD of 2026-11."),
        ({"amount_minor": "0"}, "greater than or equal to 1"),
        ({"office": "FR:usd"}, "Select a valid choice"),
        ({"reason": " "}, "required"),
    ],
)
def test_what_is_not_owed_is_refused_beside_its_field(
    staff: Client, changes: dict[str, str], words: str
) -> None:
    answer = staff.post(f"{OFFICES}?month=2026-11", {**WISH, **changes})
    assert answer.status_code == 200
    assert words in text_of(answer)
    assert not Approval.objects.exists()


def test_a_transfer_that_came_back_is_asked_for_and_decided(staff: Client) -> None:
    remitted = money.approve(money.ask())
    page = reverse("admin:billing_taxremittance_change", args=[remitted.pk])
    back = reverse("admin:billing_tax_back", args=[remitted.pk])
    assert back in staff.get(page).content.decode()
    assert "0.89 USD of 2026-11 came back" in text_of(staff.get(back))
    assert staff.post(back, {"reason": "returned"}).status_code == 302
    asked = Approval.objects.get(kind="remittance_reversal")
    approvals.approve(approval_id=asked.pk, at=money.FILED_AT, actor="bert")
    assert back not in staff.get(page).content.decode()
    assert "was taken back before" in text_of(staff.post(back, {"reason": "again"}))
    assert staff.get(reverse("admin:billing_tax_back", args=["apr_none"])).status_code == 404


def test_who_may_only_look_cannot_ask(settings: Any, staff: Client) -> None:
    del staff
    looker = User.objects.create_user("carl", password="x", is_staff=True)
    client = Client()
    client.force_login(looker)
    assert client.get(OFFICES).status_code == 403
    looker.user_permissions.add(Permission.objects.get(codename="view_taxremittance"))
    assert "Ask to remit" not in text_of(client.get(OFFICES))
    assert client.post(f"{OFFICES}?month=2026-11", WISH).status_code == 403
    remitted = money.approve(money.ask(at=money.FILED_AT + dt.timedelta(hours=1)))
    assert client.get(reverse("admin:billing_tax_back", args=[remitted.pk])).status_code == 403
