"""How soon each of two hundred clients hears who got the last GPUs, over HTTP.

    python -m tests.bench.bench_race [--clients 200] [--rounds 3]

Web server, PostgreSQL and clients share the machine; the web server runs as `up` starts it. Every client has
a tenant, a wallet, a quote and an open connection before all of them reserve at one instant: once one GPU
each of the last eight, once the whole block of eight. Uses a throw-away database.
"""

import argparse
import datetime as dt
import http.client
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from marketplace.management.instance import WEB_PROCESSES, WEB_THREADS
from marketplace.management.postgres import ThrowAwayPostgres
from marketplace.management.suite import TEST_ENVIRONMENT

GPUS = 8
ANSWER_SECONDS_MAX = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    code: str
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name, value in TEST_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
    server = ThrowAwayPostgres()
    os.environ["DATABASE_URL"] = server.url
    try:
        _bench(clients=options.clients, rounds=options.rounds)
    finally:
        server.stop()


def _bench(*, clients: int, rounds: int) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.utils import timezone

    from agents.models import Node
    from tests.live import web_server
    from tests.scheduler.factories import make_pool

    call_command("migrate", verbosity=0)
    make_pool(gpus=GPUS)
    Node.objects.update(last_report_at=timezone.now() + dt.timedelta(hours=1))
    secrets = _tenants(clients)
    with web_server(threads=WEB_THREADS, workers=WEB_PROCESSES) as base_url:
        for number in range(rounds):
            for name, gpus in (("the last 8 GPUs", 1), ("one block of 8", GPUS)):
                starts_in_hours = 24 + 4 * number + 2 * (gpus == GPUS)
                _report(name, _race(base_url, secrets, gpus=gpus, starts_in_hours=starts_in_hours))


def _tenants(count: int) -> list[str]:
    from django.utils import timezone

    from billing import wallet
    from marketplace import organizations
    from marketplace.core.money import Money
    from marketplace.states import Scope

    secrets = []
    for number in range(count):
        now = timezone.now()
        tenant = organizations.create_organization(
            name=f"Tenant {number}", is_owner=False, is_tenant=True, at=now
        )
        _, secret = organizations.issue_api_key(
            organization=tenant, name="race", scopes=list(Scope), at=now
        )
        wallet.record_deposit(
            organization=tenant,
            amount=Money(10_000_000, "usd"),
            idempotency_key=f"race-{number}",
            at=now,
            actor="bench",
        )
        secrets.append(secret)
    return secrets


def _race(
    base_url: str, secrets: Sequence[str], *, gpus: int, starts_in_hours: int
) -> list[Answer]:
    from django.utils import timezone

    from marketplace.core.windows import grid_ceiling

    start = grid_ceiling(timezone.now(), grid_seconds=3600) + dt.timedelta(hours=starts_in_hours)
    window = {
        "gpu_model": "h100-sxm-80gb",
        "gpus": gpus,
        "starts_at": f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "ends_at": f"{start + dt.timedelta(hours=2):%Y-%m-%dT%H:%M:%SZ}",
    }
    barrier = threading.Barrier(len(secrets), timeout=ANSWER_SECONDS_MAX)
    address = urlsplit(base_url).netloc

    def client(number: int) -> Answer:
        connection = http.client.HTTPConnection(address, timeout=ANSWER_SECONDS_MAX)
        status, quote = post(connection, "/v1/quotes", window, secret=secrets[number], key="")
        assert status == http.HTTPStatus.CREATED, quote
        body = {"quote_id": quote["id"], "payment_method": "wallet"}
        barrier.wait()
        began = time.perf_counter()
        key = f"{starts_in_hours}-{number}"
        status, answer = post(connection, "/v1/reservations", body, secret=secrets[number], key=key)
        seconds = time.perf_counter() - began
        connection.close()
        return Answer(status=status, code=answer.get("code", ""), seconds=seconds)

    with ThreadPoolExecutor(len(secrets)) as threads:
        return list(threads.map(client, range(len(secrets))))


def post(
    connection: http.client.HTTPConnection,
    path: str,
    body: Mapping[str, object],
    *,
    secret: str,
    key: str,
) -> tuple[int, dict[str, str]]:
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    if key:
        headers["Idempotency-Key"] = key
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    answer: dict[str, str] = json.loads(response.read())
    return response.status, answer


def _report(name: str, answers: Sequence[Answer]) -> None:
    seconds = sorted(answer.seconds for answer in answers)
    codes = Counter(answer.code or "sold" for answer in answers)
    faults = sum(answer.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR for answer in answers)
    sys.stdout.write(
        f"{name:16} {dict(codes)}, 5xx {faults}, p50 {seconds[len(seconds) // 2]:.2f} s,"
        f" p95 {seconds[len(seconds) * 95 // 100]:.2f} s, last {seconds[-1]:.2f} s\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
