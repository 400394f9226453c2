"""How long quote and reserve take over HTTP, and how many reservations a second eight clients make.

    python -m tests.bench.bench_reserve [--nodes 1250] [--pools 1] [--bookings 1000] [--calls 100]

The market is the one of `manage.py bench fleet`. Latency: quotes and reservations of 64 GPUs for 48 hours in
one fabric, paid from the wallet, one after the other; web server and PostgreSQL share the machine. To see
what bookings cost, run it with `--bookings 1000` and with `--bookings 1000000 --nodes 12500 --pools 10`.
Throughput: purchases of whole nodes are recorded in a transaction that is rolled back, and pgbench sends
their statements from eight connections; then eight processes reserve and pay as much. What psycopg sends
past Django's cursor is not recorded, which leaves pgbench a little less to do.
"""

import argparse
import datetime as dt
import http.client
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from marketplace.management.instance import WEB_PROCESSES, WEB_THREADS
from marketplace.management.postgres import ThrowAwayPostgres, candidate_directories
from marketplace.management.suite import TEST_ENVIRONMENT
from tests.bench.bench_race import post

GPUS, HOURS = 64, 48
CLIENTS = 8
FOLD_SECONDS = 2  # as the market's clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1_250)
    parser.add_argument("--pools", type=int, default=1)
    parser.add_argument("--bookings", type=int, default=1_000)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--purchases", type=int, default=40, help="of each of the eight clients")
    options = parser.parse_args()
    for name, value in TEST_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
    server = ThrowAwayPostgres()
    os.environ["DATABASE_URL"] = server.url
    try:
        _bench(options)
    finally:
        server.stop()


def _bench(options: argparse.Namespace) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.utils import timezone

    from marketplace.core.limits import HORIZON_DAYS
    from marketplace.management import loading
    from marketplace.management.loading.drawing import FleetSize
    from scheduler.prices import refresh
    from tests.live import web_server

    call_command("migrate", verbosity=0)
    size = FleetSize(
        nodes=options.nodes,
        gpus_per_node=8,
        pools=options.pools,
        nodes_per_fabric=125,
        bookings=options.bookings,
        days=HORIZON_DAYS,
        seed=1,
    )
    loaded = loading.load(size=size, at=timezone.now(), say=say)
    refresh.refresh_due(at=timezone.now())
    with web_server(threads=WEB_THREADS, workers=WEB_PROCESSES) as base_url:
        stop = threading.Event()
        folding = threading.Thread(target=_fold, args=(stop,))
        folding.start()
        _latency(base_url, secret=loaded.api_key, region=loaded.regions[0], calls=options.calls)
        stop.set()
        folding.join()
    _throughput(region=loaded.regions[0], purchases=options.purchases)


def _fold(stop: threading.Event) -> None:
    from django.db import connection

    from scheduler import reindexing

    while not stop.wait(FOLD_SECONDS):
        reindexing.fold()
    connection.close()


def _latency(base_url: str, *, secret: str, region: str, calls: int) -> None:
    connection = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=60)
    quoting, reserving = [], []
    for number in range(calls + 3):
        start = _start(days=1 + number * 7 % 170)
        wish = {
            "gpu_model": "h100-sxm-80gb",
            "gpus": GPUS,
            "region": region,
            "starts_at": f"{start:%Y-%m-%dT%H:%M:%SZ}",
            "ends_at": f"{start + dt.timedelta(hours=HOURS):%Y-%m-%dT%H:%M:%SZ}",
        }
        began = time.perf_counter()
        status, quote = post(connection, "/v1/quotes", wish, secret=secret, key="")
        quoted = time.perf_counter()
        assert status == http.HTTPStatus.CREATED, quote
        body = {"quote_id": quote["id"], "payment_method": "wallet"}
        status, answer = post(
            connection, "/v1/reservations", body, secret=secret, key=f"bench-{number}"
        )
        assert status == http.HTTPStatus.CREATED, answer
        if number >= 3:  # the first of each process find no connection and no plan
            quoting.append(quoted - began)
            reserving.append(time.perf_counter() - quoted)
    both = [a + b for a, b in zip(quoting, reserving, strict=True)]
    for name, seconds in (("quote", quoting), ("reserve", reserving), ("both", both)):
        say(
            f"{name:8} p50 {_percentile(seconds, 50):6.1f} ms  p95 {_percentile(seconds, 95):6.1f} ms"
        )


def _start(*, days: int) -> dt.datetime:
    from django.utils import timezone

    from marketplace.core.windows import grid_ceiling

    return grid_ceiling(timezone.now(), grid_seconds=3600) + dt.timedelta(days=days)


def _percentile(seconds: Sequence[float], percent: int) -> float:
    return sorted(seconds)[min(len(seconds) - 1, len(seconds) * percent // 100)] * 1000


def _throughput(*, region: str, purchases: int) -> None:
    from django.db import connection

    shares = [_quotes(region=region, count=purchases) for _ in range(2 * CLIENTS)]
    theirs = CLIENTS * purchases / _pgbench_seconds(_recorded(shares[:CLIENTS]))
    connection.close()
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(CLIENTS + 1)
    processes = [context.Process(target=_buy, args=(share, ready)) for share in shares[CLIENTS:]]
    for process in processes:
        process.start()
    ready.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
    ours = CLIENTS * (purchases - 1) / (time.perf_counter() - began)
    say(f"reserve and pay    {ours:7.0f} a second with {CLIENTS} clients")
    say(f"pgbench            {theirs:7.0f} a second, the same statements")
    say(f"ratio              {ours / theirs:7.2f}")


def _quotes(*, region: str, count: int) -> list[str]:
    """Return quotes of a tenant of its own, of one whole node each, at many different times."""
    from django.utils import timezone

    from billing import wallet
    from marketplace import organizations
    from marketplace.core.money import Money
    from scheduler import quotes

    now = timezone.now()
    tenant = organizations.create_organization(
        name=f"Tenant {time.perf_counter_ns()}", is_owner=False, is_tenant=True, at=now
    )
    wallet.record_deposit(
        organization=tenant,
        amount=Money(10**9, "usd"),
        idempotency_key=tenant.pk,
        at=now,
        actor="bench",
    )
    made = []
    for number in range(count):
        start = _start(days=1 + number * 4 % 170)
        request = quotes.QuoteRequest(
            gpu_model="h100-sxm-80gb",
            gpus=8,
            region=region,
            starts_at=start,
            ends_at=start + dt.timedelta(hours=12),
        )
        made.append(quotes.create(organization=tenant, request=request, at=now).pk)
    return made


def _purchase(quote_id: str) -> None:
    from django.utils import timezone

    from billing import checkout
    from scheduler.details import ReservationDetails
    from scheduler.models import Quote

    quote = Quote.objects.select_related("organization").get(pk=quote_id)
    checkout.purchase(
        organization=quote.organization,
        quote_id=quote_id,
        payment_method="wallet",
        details=ReservationDetails(),
        at=timezone.now(),
        actor="bench",
    )


def _buy(share: Sequence[str], ready: Callable[[], int]) -> None:
    import django

    django.setup()
    _purchase(share[0])  # the first one imports and connects
    ready.wait()  # type: ignore[attr-defined] # a barrier of multiprocessing has no public type
    for quote_id in share[1:]:
        _purchase(quote_id)


def _recorded(shares: Sequence[Sequence[str]]) -> list[str]:
    """Return the statements of some purchases, a script per share, and undo them all."""
    from django.db import connection, reset_queries, transaction
    from django.test.utils import CaptureQueriesContext

    scripts = []
    with transaction.atomic():
        for share in shares:
            script: list[str] = []
            for quote_id in share:
                reset_queries()  # Django keeps a limited number
                with CaptureQueriesContext(connection) as captured:
                    _purchase(quote_id)
                statements = [
                    " ".join(query["sql"].split())
                    for query in captured.captured_queries
                    if "SAVEPOINT" not in query["sql"]
                ]
                script += ["BEGIN", *statements, "COMMIT"]
            scripts.append(";\n".join(script) + ";\n")
        transaction.set_rollback(True)
    return scripts


def _pgbench_seconds(scripts: Sequence[str]) -> float:
    """Run one script per connection side by side; return how long all of them took."""
    binary = next(
        folder / "pgbench" for folder in candidate_directories() if (folder / "pgbench").exists()
    )
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for number, script in enumerate(scripts):
            path = Path(folder, f"{number}.sql")
            path.write_text(script)
            commands.append(
                [
                    str(binary),
                    "-n",
                    "-c",
                    "1",
                    "-t",
                    "1",
                    "-f",
                    str(path),
                    os.environ["DATABASE_URL"],
                ]
            )
        began = time.perf_counter()
        running = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
        for process in running:
            _, complaint = process.communicate()
            assert process.returncode == 0, complaint
        return time.perf_counter() - began


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
