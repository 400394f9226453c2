"""What was sold again, as operators see it: who left it, by which terms, who bought it, and who got what."""

import datetime as dt
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.test import Client
from django.urls import reverse

from billing import owner_statements, pdf
from billing.admin.resales import FeeShareAdmin
from billing.models import FeeShare, Resale
from marketplace.models import Organization
from scheduler.models import Reservation
from tests.billing.bookings import LONG_AFTER
from tests.billing.pdf.test_pdf import drawn  # noqa: F401 - a fixture
from tests.billing.resales.market import buy, deliver, release
from tests.scheduler.factories import NOW

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def plain_static_files(settings: Any) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }


@pytest.fixture
def sold(left: Reservation) -> Reservation:
    reservation = buy()
    deliver(reservation)
    release()
    return reservation


def page(client: Client, name: str, *args: str) -> str:
    answer = client.get(reverse(f"admin:billing_{name}", args=args))
    assert answer.status_code == 200
    return " ".join(answer.content.decode().split())


def links_to(row: Any) -> str:
    options = row._meta
    name = f"admin:{options.app_label}_{options.model_name}_change"
    return f'href="{reverse(name, args=[quote(row.pk)])}"'


def test_a_resale_says_who_left_what_who_bought_it_and_who_got_what(
    admin_client: Client, owner: Organization, left: Reservation, sold: Reservation
) -> None:
    resale = Resale.objects.get()
    shown = page(admin_client, "resale_change", resale.pk)
    change, lease = resale.fee_share.change, resale.settlement.lease
    for row in (left.organization, change, resale.fee_share, lease, sold, sold.organization, owner):
        assert links_to(row) in shown
    for said in (
        *("GPUs 0 to 7 of", "2026-11-25 12:00:00 to 2026-11-25 14:00:00 UTC"),
        *("80 % of what the owner gets twice, to who left", "16.00"),
        *("37.65 USD", "32.00 USD", "16.00 USD", "12.80 USD", "3.20 USD"),
    ):
        assert said in shown


def test_the_list_has_what_was_taken_and_what_was_paid_back(
    admin_client: Client, left: Reservation, sold: Reservation
) -> None:
    shown = page(admin_client, "resale_changelist")
    for said in (Resale.objects.get().pk, "16.00 USD", "12.80 USD", left.organization.name):
        assert said in shown
    found = reverse("admin:billing_resale_changelist")
    assert Resale.objects.get().pk in admin_client.get(found, {"q": left.pk}).content.decode()
    assert Resale.objects.get().pk not in admin_client.get(found, {"q": "nobody"}).content.decode()


def test_the_statement_of_the_owner_says_why_money_went_back(
    owner: Organization,
    sold: Reservation,
    drawn: list[str],  # noqa: F811 - the fixture
) -> None:
    at = NOW + LONG_AFTER + dt.timedelta(days=30)
    month = f"{NOW + LONG_AFTER:%Y-%m}"
    found = owner_statements.statement(owner=owner, month=month, at=at)
    pdf.owner_statement(statement=found, owner=owner, at=at)
    text = "".join(drawn)
    assert text.count("Given back for time sold again") == 3  # in the sums, the note and the line
    assert "−16.00" in text
    # An id is not broken in two, wherever it stands.
    assert drawn.count(Resale.objects.get().settlement.lease_id) == 2


def test_nobody_edits_a_resale_or_a_part_of_a_fee(admin_client: Client, sold: Reservation) -> None:
    for model, row in (("resale", Resale.objects.get()), ("feeshare", FeeShare.objects.get())):
        assert admin_client.get(reverse(f"admin:billing_{model}_add")).status_code == 403
        address = reverse(f"admin:billing_{model}_change", args=[row.pk])
        assert admin_client.post(address, {}).status_code == 403


def test_a_part_of_a_fee_leads_to_what_was_drawn_of_it(
    admin_client: Client, sold: Reservation
) -> None:
    share, resale = FeeShare.objects.get(), Resale.objects.get()
    shown = page(admin_client, "feeshare_change", share.pk)
    assert links_to(resale) in shown
    assert "16.00 USD" in page(admin_client, "feeshare_changelist")


def test_a_part_of_a_fee_of_which_nothing_was_sold_again_says_so(
    admin_client: Client, left: Reservation
) -> None:
    share = FeeShare.objects.get()
    assert "nothing was sold again yet" in page(admin_client, "feeshare_change", share.pk)
    room = FeeShareAdmin(FeeShare, admin.site)
    assert room.terms(FeeShare(resale_basis_points=0)) == "nothing goes back to who left"
