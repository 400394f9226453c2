"""Extensions that wait for their money, as operators see them."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from agents.models import Node
from marketplace.core.money import Money, grouped
from scheduler import extensions
from scheduler.models import ExtensionHold
from scheduler.states import ExtensionDropReason
from tests.billing.factories import tenant
from tests.billing.focus import world
from tests.scheduler import factories

pytestmark = pytest.mark.django_db

LISTING = "admin:scheduler_extensionhold_changelist"


@pytest.fixture(autouse=True)
def plain_static_files(settings: Any) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }


@pytest.fixture
def hold() -> ExtensionHold:
    buyer = tenant(funds_minor=world.FUNDS_MINOR)
    factories.make_pool()
    reservation = world.bought(buyer)
    Node.objects.update(last_report_at=factories.NOW)
    quote = extensions.quote(
        organization=buyer,
        reservation_id=reservation.pk,
        ends_at=reservation.ends_at + factories.hours(2),
        max_rate=None,
        at=factories.NOW,
    )
    return ExtensionHold.objects.create(
        reservation=reservation,
        quote=quote,
        held_until=factories.NOW,
        actor="test",
        created_at=factories.NOW,
    )


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, ">held<"),
        ({"made_at": factories.NOW}, ">made<"),
        (
            {"dropped_at": factories.NOW, "drop_reason": ExtensionDropReason.values[0]},
            ">dropped: ",
        ),
        (
            {
                "dropped_at": factories.NOW,
                "made_at": factories.NOW,
                "drop_reason": ExtensionDropReason.values[0],
            },
            ">made, after it was dropped<",
        ),
    ],
)
def test_tell_what_became_of_them(
    admin_client: Client, hold: ExtensionHold, columns: dict[str, object], said: str
) -> None:
    ExtensionHold.objects.filter(pk=hold.pk).update(**columns)
    page = admin_client.get(reverse(LISTING), {"q": hold.reservation_id}).content.decode()
    assert said in page
    assert hold.pk in page
    assert "Perceptron AG" in page
    row = reverse("admin:scheduler_extensionhold_change", args=[hold.pk])
    shown = admin_client.get(row).content.decode()
    window = f"{hold.window.starts_at:%Y-%m-%d %H:%M} to {hold.window.ends_at:%Y-%m-%d %H:%M} UTC"
    for each in (page, shown):
        assert window in each
        assert "Extension" in each
        assert grouped(Money(hold.quote.charge_minor, "usd")) in each
    assert admin_client.get(reverse("admin:scheduler_extensionhold_add")).status_code == 403
