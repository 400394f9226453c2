"""Two hundred clients of one tenant spend a wallet that covers eight bookings: exactly eight.

All two hundred calls are outstanding at one instant, over HTTP, and there are GPUs for every one of them:
what a loser lacks is money, and it hears nothing else. The twin takes the guards of the wallet out.
"""

import datetime as dt
from collections import Counter
from collections.abc import Iterator

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from agents.models import Node
from billing import books, wallet
from marketplace.core.money import Money
from marketplace.core.windows import Window, grid_ceiling
from marketplace.models import Organization
from scheduler import checks, quotes
from scheduler.models import Allocation, Quote, Reservation
from tests.factories import a_key
from tests.live import web_server
from tests.races.outstanding import Answer, Call, at_once
from tests.scheduler.factories import a_request, make_organization, make_pool

CLIENTS = 200
COVERED = 8
NODES = 26  # of eight GPUs: more than there are clients

pytestmark = [pytest.mark.timeout(400), pytest.mark.django_db(transaction=True)]


def a_tenant_with_offers(*, clients: int) -> tuple[Organization, list[Quote]]:
    """Return a tenant whose wallet covers eight of so many quotes, for each of which there is a GPU."""
    now = timezone.now()
    make_pool(nodes=NODES)
    # They count as heard for as long as the race may take.
    Node.objects.update(last_report_at=now + dt.timedelta(minutes=10))
    tenant = make_organization()
    starts_at = grid_ceiling(now, grid_seconds=settings.GRID_SECONDS) + dt.timedelta(hours=24)
    window = Window(starts_at, starts_at + dt.timedelta(hours=2))
    offers = [
        quotes.create(organization=tenant, request=a_request(window=window), at=now)
        for _ in range(clients)
    ]
    (price,) = {offer.total_minor for offer in offers}
    wallet.record_deposit(
        organization=tenant,
        amount=Money(COVERED * price, settings.CURRENCY),
        idempotency_key="eight",
        at=now,
        actor="test",
    )
    return tenant, offers


def everybody_buys(tenant: Organization, offers: list[Quote], *, base_url: str) -> list[Answer]:
    """Let each quote be bought by a client of its own, all outstanding at one instant."""
    _, secret = a_key(organization=tenant)
    calls = [
        Call(
            path="/v1/reservations",
            secret=secret,
            key=f"buy {offer.pk}",
            body={"quote_id": offer.pk, "payment_method": "wallet"},
        )
        for offer in offers
    ]
    return at_once(calls, base_url=base_url)


def test_exactly_eight_of_two_hundred_are_booked() -> None:
    tenant, offers = a_tenant_with_offers(clients=CLIENTS)

    with web_server() as base_url:
        answers = everybody_buys(tenant, offers, base_url=base_url)

    assert Counter((each.status, each.code) for each in answers) == {
        (201, ""): COVERED,
        (402, "payment_required"): CLIENTS - COVERED,
    }
    missing = {each.json["missing"]["amount_minor"] for each in answers if each.status == 402}
    assert missing == {offers[0].total_minor}, "whoever lost came after the eighth"
    booked = {each.json["id"] for each in answers if each.status == 201}
    assert set(Reservation.objects.values_list("pk", flat=True)) == booked
    assert Allocation.objects.filter(live=True).count() == COVERED
    assert wallet.balance(organization=tenant) == Money(0, settings.CURRENCY)
    assert books.check(at=timezone.now()).ok
    assert checks.check(at=timezone.now()).ok


@pytest.fixture
def unguarded_wallets() -> Iterator[None]:
    """Take out all that stands between two spenders of one wallet; all of it comes back."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_functiondef('billing_post'::regproc)")
        (written,) = cursor.fetchone()
        without = written.replace(" FOR NO KEY UPDATE", "")
        assert without != written
        cursor.execute(without)
        cursor.execute("ALTER TABLE billing_account DROP CONSTRAINT account_is_not_overdrawn")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET session_replication_role = replica")
            cursor.execute("TRUNCATE billing_account CASCADE")
            cursor.execute("SET session_replication_role = DEFAULT")
            cursor.execute(written)
            cursor.execute(
                "ALTER TABLE billing_account"
                " ADD CONSTRAINT account_is_not_overdrawn CHECK (balance >= 0)"
            )


@pytest.mark.usefixtures("unguarded_wallets")
def test_without_the_guards_more_are_booked_than_are_paid_for() -> None:
    tenant, offers = a_tenant_with_offers(clients=CLIENTS)

    with web_server(application="tests.races.unguarded_wallet:application") as base_url:
        answers = everybody_buys(tenant, offers, base_url=base_url)

    assert Counter(each.status for each in answers)[201] > COVERED
    assert wallet.balance(organization=tenant).amount_minor < 0
