"""Two hundred clients race over HTTP for the last eight GPUs: eight win, nobody is sold what another has.

The twin serves the same application with its guards taken out and shows that the race is real.
"""

import datetime as dt
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from django.db import connection
from django.utils import timezone

from agents.models import Node
from billing import wallet
from marketplace import organizations
from marketplace.core.money import Money
from marketplace.core.windows import grid_ceiling
from marketplace.states import Scope
from scheduler.models import Allocation
from tests.live import web_server
from tests.scheduler.factories import make_pool

CLIENTS = 200
GPUS = 8
WEB_THREADS = 16
SCOPES = [Scope.MARKET_READ, Scope.RESERVATIONS_READ, Scope.RESERVATIONS_WRITE, Scope.BILLING_READ]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]


def make_reporting_pool() -> None:
    """Make the last eight GPUs; their node counts as heard for as long as the race may take."""
    make_pool(gpus=GPUS)
    Node.objects.update(last_report_at=timezone.now() + dt.timedelta(minutes=10))


def make_tenant_keys() -> list[str]:
    """Return one key each of as many tenants as there are clients, every one able to pay."""
    now = timezone.now()
    secrets = []
    for number in range(CLIENTS):
        tenant = organizations.create_organization(
            name=f"Tenant {number}", is_owner=False, is_tenant=True, at=now
        )
        _, secret = organizations.issue_api_key(
            organization=tenant, name="race", scopes=SCOPES, at=now
        )
        wallet.record_deposit(
            organization=tenant,
            amount=Money(100_000, "usd"),
            idempotency_key=f"race-{number}",
            at=now,
            actor="test",
        )
        secrets.append(secret)
    return secrets


def race(*, base_url: str, secrets: list[str]) -> list[httpx.Response]:
    """Let every client quote one GPU of one window, then reserve at the same instant."""
    starts_at = grid_ceiling(timezone.now(), grid_seconds=3600) + dt.timedelta(hours=24)
    window = {
        "gpu_model": "h100-sxm-80gb",
        "gpus": 1,
        "starts_at": f"{starts_at:%Y-%m-%dT%H:%M:%SZ}",
        "ends_at": f"{starts_at + dt.timedelta(hours=2):%Y-%m-%dT%H:%M:%SZ}",
    }
    barrier = threading.Barrier(CLIENTS, timeout=120)

    def client(number: int) -> httpx.Response:
        headers = {
            "Authorization": f"Bearer {secrets[number]}",
            "Idempotency-Key": f"race-{number}",
        }
        with httpx.Client(base_url=base_url, headers=headers, timeout=60, trust_env=False) as http:
            quote = http.post("/v1/quotes", json=window)
            assert quote.status_code == 201, quote.text
            body = {"quote_id": quote.json()["id"], "payment_method": "wallet"}
            barrier.wait()
            return http.post(
                "/v1/reservations", json=body, headers={"Idempotency-Key": f"race-{number}-buy"}
            )

    with ThreadPoolExecutor(max_workers=CLIENTS) as pool:
        return list(pool.map(client, range(CLIENTS)))


def sold_slots() -> Counter[int]:
    """Count how often each slot of the fleet is sold."""
    return Counter(
        slot
        for allocation in Allocation.objects.filter(live=True)
        for slot in range(allocation.slots.lower, allocation.slots.upper)
    )


def test_exactly_eight_of_two_hundred_win() -> None:
    make_reporting_pool()

    with web_server(threads=WEB_THREADS) as base_url:
        answers = race(base_url=base_url, secrets=make_tenant_keys())

    assert Counter(a.status_code for a in answers) == {201: GPUS, 409: CLIENTS - GPUS}
    assert {a.json()["code"] for a in answers if a.status_code == 409} == {"capacity_taken"}
    assert sorted(sold_slots().values()) == [1] * GPUS


def test_without_the_guards_a_gpu_is_sold_twice() -> None:
    make_reporting_pool()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'allocation_no_overlap'"
        )
        (definition,) = cursor.fetchone()
        cursor.execute("ALTER TABLE scheduler_allocation DROP CONSTRAINT allocation_no_overlap")
    try:
        with web_server(
            application="tests.races.unguarded:application", threads=WEB_THREADS
        ) as base_url:
            race(base_url=base_url, secrets=make_tenant_keys())

        assert max(sold_slots().values()) > 1
    finally:
        Allocation.objects.all().delete()
        with connection.cursor() as cursor:
            cursor.execute(
                f"ALTER TABLE scheduler_allocation ADD CONSTRAINT allocation_no_overlap {definition}"
            )
