"""How long a search takes, in process and over HTTP, in the fleet that `manage.py bench fleet` loads.

    python -m tests.bench.bench_search [--nodes 12500] [--pools 10] [--bookings 1000000] [--searches 200]

Loads the fleet into a PostgreSQL of its own, which runs on the same machine, and says how long that took.
Then searches for 64 GPUs over 48 hours in one fabric, any start within 10 days: in one pool, each time
another, and over all pools. With --pools 1 the pool is the whole fleet.
"""

import argparse
import datetime as dt
import http.client
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from urllib.parse import urlencode

from marketplace.management.postgres import ThrowAwayPostgres
from marketplace.management.suite import TEST_ENVIRONMENT
from tests.bench.bench_ingest import _wait_for, _web

GPUS, HOURS, DAYS = 64, 48, 10
MODEL = "h100-sxm-80gb"
SPREAD = "same_fabric"
NODES_PER_FABRIC = 125
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=12_500)
    parser.add_argument("--pools", type=int, default=10)
    parser.add_argument("--bookings", type=int, default=1_000_000)
    parser.add_argument("--searches", type=int, default=200)
    options = parser.parse_args()
    database = ThrowAwayPostgres()
    os.environ.update(TEST_ENVIRONMENT)
    os.environ.update(
        DATABASE_URL=database.url,
        DJANGO_SETTINGS_MODULE="marketplace.settings",
        HEADROOM_GRID_SECONDS="3600",
    )
    try:
        _bench(options)
    finally:
        database.stop()


def _bench(options: argparse.Namespace) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection
    from django.utils import timezone

    from marketplace.core.limits import HORIZON_DAYS
    from marketplace.management import instance, loading
    from marketplace.management.loading.drawing import FleetSize

    call_command("migrate", verbosity=0)
    began = time.perf_counter()
    size = FleetSize(
        nodes=options.nodes,
        gpus_per_node=8,
        pools=options.pools,
        nodes_per_fabric=NODES_PER_FABRIC,
        bookings=options.bookings,
        days=HORIZON_DAYS,
        seed=1,
    )
    loaded = loading.load(size=size, at=timezone.now(), say=_say)
    _say(f"loaded in {time.perf_counter() - began:.0f} s on {os.cpu_count()} cores")
    regions = loaded.regions
    _measure("in process, one pool", options.searches, lambda n: _search(regions[n % len(regions)]))
    _measure("in process, all pools", max(20, options.searches // 5), lambda _: _search(None))
    connection.close()
    with socket.create_server(("127.0.0.1", 0), backlog=instance.LISTEN_BACKLOG) as listener:
        port = listener.getsockname()[1]
        with _web(listener):
            _wait_for(port)
            client = http.client.HTTPConnection("127.0.0.1", port)
            _measure(
                "over HTTP, one pool",
                options.searches,
                lambda n: _ask(client, key=loaded.api_key, region=regions[n % len(regions)]),
            )


def _measure(name: str, count: int, search: Callable[[int], None]) -> None:
    for number in range(WARM_UP):
        search(number)
    taken = []
    for number in range(count):
        began = time.perf_counter()
        search(number)
        taken.append((time.perf_counter() - began) * 1000)
    cuts = statistics.quantiles(taken, n=20)
    _say(
        f"{name}: p50 {statistics.median(taken):.1f} ms, p95 {cuts[18]:.1f} ms,"
        f" max {max(taken):.1f} ms of {count} searches"
    )


def _search(region: str | None) -> None:
    from django.utils import timezone

    from scheduler import availability
    from scheduler.availability import OfferingQuery

    at = timezone.now()
    found = availability.search(
        query=OfferingQuery(
            gpu_model=MODEL,
            gpus=GPUS,
            duration=dt.timedelta(hours=HOURS),
            earliest_start=at,
            latest_end=at + dt.timedelta(days=DAYS, hours=HOURS),
            region=region,
            spread=SPREAD,
        ),
        at=at,
    )
    assert found.offers, found


def _ask(client: http.client.HTTPConnection, *, key: str, region: str) -> None:
    latest_end = dt.datetime.now(tz=dt.UTC) + dt.timedelta(days=DAYS, hours=HOURS)
    query = {
        "gpu_model": MODEL,
        "gpus": GPUS,
        "duration": f"{HOURS}h",
        "latest_end": f"{latest_end:%Y-%m-%dT%H:%M:%SZ}",
        "region": region,
        "spread": SPREAD,
    }
    client.request(
        "GET", f"/v1/offerings?{urlencode(query)}", headers={"Authorization": f"Bearer {key}"}
    )
    answer = client.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {body[:300]!r}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
