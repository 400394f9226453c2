"""How long quote and reserve take over HTTP, and how many reservations a second eight clients make.

    python -m tests.bench.bench_reserve [--nodes 12500] [--pools 10] [--bookings 1000000] [--few 1000]

Two markets of the fleet of `manage.py bench fleet` run side by side, one with few bookings and one with many;
web servers, PostgreSQL and clients share the machine.

Latency: quotes and reservations of 64 GPUs for 48 hours in one fabric, paid from the wallet, one after the
other and by turns in both markets, so that what else the machine does meets both alike.
Throughput, in the market with many: purchases of whole nodes are recorded and undone, everything that psycopg
sends, and pgbench sends the same from as many connections; then as many processes reserve and pay as much.
Clients buy in pools of their own where there are enough, and never for the same hours.
"""

import argparse
import datetime as dt
import http.client
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import psycopg

from marketplace.management.instance import WEB_PROCESSES, WEB_THREADS
from marketplace.management.postgres import ThrowAwayPostgres, candidate_directories
from marketplace.management.suite import TEST_ENVIRONMENT
from tests.bench.bench_race import post

GPUS, HOURS = 64, 48
CLIENTS = 8
PURCHASE_HOURS = 4
DAYS = 170  # over which windows are asked for: the bookings' days, less the longest window
FOLD_SECONDS = 2  # as the market's clock
WARM_UP = 5  # the first calls of each web process find no connection and no plan
BOTH_MILLISECONDS_MAX, GROWTH_MAX, SHARE_MIN = 100.0, 1.5, 0.25  # the bars


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a market answers, and as whom to ask it."""

    url: str
    secret: str
    regions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Purchases a second, and how many statements each of them took."""

    ours: float
    theirs: float
    statements: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=12_500)
    parser.add_argument("--pools", type=int, default=10)
    parser.add_argument("--bookings", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=1_000, help="bookings of the other market")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--purchases", type=int, default=100, help="of each of the eight clients")
    options = parser.parse_args()
    if options.purchases * CLIENTS * PURCHASE_HOURS > DAYS * 24:
        parser.error("so many purchases do not fit into the days without overlap")
    for name, value in TEST_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
    with _market(options, bookings=options.few) as few, _market(options, options.bookings) as many:
        addresses: list[Address] = [few.recv(), many.recv()]
        quoting, reserving = _latencies(addresses, calls=options.calls)
        few.send(None)
        many.send(options.purchases)
        throughput: Throughput = many.recv()
    _report(options, quoting=quoting, reserving=reserving, throughput=throughput)


@contextmanager
def _market(options: argparse.Namespace, bookings: int) -> Iterator[Connection]:
    """Run a market in a process of its own; yield the line to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, options, bookings))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def _serve(line: Connection, options: argparse.Namespace, bookings: int) -> None:
    """Load a fleet and serve it until told otherwise; then measure throughput, if so many are asked for."""
    server = ThrowAwayPostgres()
    os.environ["DATABASE_URL"] = server.url
    try:
        import django

        django.setup()
        from tests.live import web_server

        address = _loaded(options, bookings=bookings)
        with _folding():
            with web_server(threads=WEB_THREADS, workers=WEB_PROCESSES) as base_url:
                line.send(Address(url=base_url, secret=address.secret, regions=address.regions))
                try:
                    purchases = line.recv()
                except EOFError:  # what asked has failed, and says so itself
                    purchases = None
            if purchases:
                line.send(_throughput(regions=address.regions, purchases=purchases))
    finally:
        server.stop()


def _loaded(options: argparse.Namespace, *, bookings: int) -> Address:
    from django.core.management import call_command
    from django.utils import timezone

    from marketplace.core.limits import HORIZON_DAYS
    from marketplace.management import loading
    from marketplace.management.loading.drawing import FleetSize
    from scheduler.prices import refresh

    call_command("migrate", verbosity=0)
    size = FleetSize(
        nodes=options.nodes,
        gpus_per_node=8,
        pools=options.pools,
        nodes_per_fabric=125,
        bookings=bookings,
        days=HORIZON_DAYS,
        seed=1,
    )
    began = time.perf_counter()
    loaded = loading.load(size=size, at=timezone.now(), say=lambda _: None)
    say(f"{bookings} bookings on {options.nodes} nodes: {time.perf_counter() - began:.0f} s")
    refresh.refresh_due(at=timezone.now())
    return Address(url="", secret=loaded.api_key, regions=loaded.regions)


@contextmanager
def _folding() -> Iterator[None]:
    """Fold the marks of the calendar as often as the market's clock does."""
    from django.db import connection

    from scheduler import reindexing

    stop = threading.Event()

    def fold() -> None:
        while not stop.wait(FOLD_SECONDS):
            reindexing.fold()
        connection.close()

    folding = threading.Thread(target=fold)
    folding.start()
    try:
        yield
    finally:
        stop.set()
        folding.join()


def _latencies(
    addresses: Sequence[Address], *, calls: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Return per market how long each quote and each reservation took, milliseconds."""
    connections = [
        http.client.HTTPConnection(urlsplit(address.url).netloc, timeout=60)
        for address in addresses
    ]
    quoting: list[list[float]] = [[] for _ in addresses]
    reserving: list[list[float]] = [[] for _ in addresses]
    for number in range(WARM_UP + calls):
        for market, address in enumerate(addresses):
            start = _start(hours=24 + number * 7 * 24 % (DAYS * 24))
            wish = {
                "gpu_model": "h100-sxm-80gb",
                "gpus": GPUS,
                "region": address.regions[number % len(address.regions)],
                "starts_at": f"{start:%Y-%m-%dT%H:%M:%SZ}",
                "ends_at": f"{start + dt.timedelta(hours=HOURS):%Y-%m-%dT%H:%M:%SZ}",
            }
            began = time.perf_counter()
            status, quote = post(
                connections[market], "/v1/quotes", wish, secret=address.secret, key=""
            )
            quoted = time.perf_counter()
            assert status == http.HTTPStatus.CREATED, quote
            body = {"quote_id": quote["id"], "payment_method": "wallet"}
            status, answer = post(
                connections[market],
                "/v1/reservations",
                body,
                secret=address.secret,
                key=f"bench-{number}",
            )
            reserved = time.perf_counter()
            assert status == http.HTTPStatus.CREATED, answer
            if number >= WARM_UP:
                quoting[market].append((quoted - began) * 1000)
                reserving[market].append((reserved - quoted) * 1000)
    return quoting, reserving


def _start(*, hours: int) -> dt.datetime:
    from marketplace.core.windows import grid_ceiling

    return grid_ceiling(dt.datetime.now(tz=dt.UTC), grid_seconds=3600) + dt.timedelta(hours=hours)


def _throughput(*, regions: Sequence[str], purchases: int) -> Throughput:
    from django.db import connection

    from scheduler import reindexing

    recorded = _recorded(_quotes(regions=regions, count=purchases))
    reindexing.fold()
    theirs = _pgbench_rate(recorded, purchases=purchases)
    reindexing.fold()
    shares = _quotes(regions=regions, count=purchases)
    connection.close()
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(CLIENTS)
    rates = context.Queue()
    processes = [context.Process(target=_buy, args=(share, ready, rates)) for share in shares]
    for process in processes:
        process.start()
    ours = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    lines = sum(script.count(";\n") for script in recorded)
    return Throughput(ours=ours, theirs=theirs, statements=lines / (len(recorded) * purchases))


def _quotes(*, regions: Sequence[str], count: int) -> list[list[str]]:
    """Return for each client quotes of a tenant of its own, of one whole node each."""
    from django.utils import timezone

    from billing import wallet
    from marketplace import organizations
    from marketplace.core.money import Money
    from scheduler import quotes

    shares = []
    for client in range(CLIENTS):
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
            start = _start(hours=24 + (number * CLIENTS + client) * PURCHASE_HOURS)
            request = quotes.QuoteRequest(
                gpu_model="h100-sxm-80gb",
                gpus=8,
                region=regions[client % len(regions)],
                starts_at=start,
                ends_at=start + dt.timedelta(hours=PURCHASE_HOURS),
            )
            made.append(quotes.create(organization=tenant, request=request, at=now).pk)
        shares.append(made)
    return shares


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


def _buy(share: Sequence[str], ready: Any, rates: Any) -> None:
    import django

    django.setup()
    _purchase(share[0])  # the first one imports and connects
    ready.wait()
    began = time.perf_counter()
    for quote_id in share[1:]:
        _purchase(quote_id)
    rates.put((len(share) - 1) / (time.perf_counter() - began))


def _recorded(shares: Sequence[Sequence[str]]) -> list[str]:
    """Return the statements of some purchases, a script per share; each of them is undone."""
    from django.db import transaction

    scripts = []
    for share in shares:
        script: list[str] = []
        for quote_id in share:
            with transaction.atomic(), _recording(script):
                script.append("BEGIN")
                _purchase(quote_id)
                script.append("COMMIT")
                transaction.set_rollback(True)
        scripts.append("".join(f"{statement};\n" for statement in script))
    return scripts


@contextmanager
def _recording(script: list[str]) -> Iterator[None]:
    """Append all that psycopg sends, with the values in it, one line each."""
    execute: Callable[..., Any] = psycopg.Cursor.execute

    def recorded(cursor: Any, query: Any, params: Any = None, **how: Any) -> Any:
        with psycopg.ClientCursor(cursor.connection) as client:
            script.append(" ".join(client.mogrify(query, params).split()))
        return execute(cursor, query, params, **how)

    with mock.patch.object(psycopg.Cursor, "execute", recorded):
        yield


def _pgbench_rate(scripts: Sequence[str], *, purchases: int) -> float:
    """Run one script per connection side by side; return how many purchases a second that makes."""
    binary = next(
        folder / "pgbench" for folder in candidate_directories() if (folder / "pgbench").exists()
    )
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for number, script in enumerate(scripts):
            path = Path(folder, f"{number}.sql")
            path.write_text(script, encoding="utf-8")
            command = [str(binary), "--no-vacuum", "--client=1", "--transactions=1"]
            running.append(
                subprocess.Popen(
                    [*command, f"--file={path}", os.environ["DATABASE_URL"]],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        rate = 0.0
        for process in running:
            said, complaint = process.communicate()
            taken = re.search(r"latency average = ([0-9.]+) ms", said)
            assert process.returncode == 0, complaint[-2_000:]
            assert taken is not None, said
            rate += purchases / (float(taken[1]) / 1000)
        return rate


def _report(
    options: argparse.Namespace,
    *,
    quoting: Sequence[Sequence[float]],
    reserving: Sequence[Sequence[float]],
    throughput: Throughput,
) -> None:
    both = [
        [q + r for q, r in zip(*pair, strict=True)] for pair in zip(quoting, reserving, strict=True)
    ]
    say(f"{'milliseconds':12} {'bookings':>9} {'p50':>7} {'p95':>7} {'max':>7}")
    for name, markets in (("quote", quoting), ("reserve", reserving), ("both", both)):
        for bookings, taken in zip((options.few, options.bookings), markets, strict=True):
            p50, p95 = _percentile(taken, 50), _percentile(taken, 95)
            say(f"{name:12} {bookings:9} {p50:7.1f} {p95:7.1f} {max(taken):7.1f}")
    few, many = (_percentile(taken, 95) for taken in both)
    share = throughput.ours / throughput.theirs
    say(f"reserve and pay, {CLIENTS} clients: {throughput.ours:.0f} a second")
    say(
        f"pgbench, {CLIENTS} clients: {throughput.theirs:.0f} a second,"
        f" {throughput.statements:.0f} statements each"
    )
    for name, measured, bar, is_met in (
        ("quote + reserve p95, ms", many, BOTH_MILLISECONDS_MAX, many <= BOTH_MILLISECONDS_MAX),
        ("p95 many ÷ few bookings", many / few, GROWTH_MAX, many / few <= GROWTH_MAX),
        ("throughput ÷ pgbench", share, SHARE_MIN, share >= SHARE_MIN),
    ):
        say(f"{name:26} {measured:8.2f}  bar {bar:6.2f}  {'met' if is_met else 'MISSED'}")


def _percentile(taken: Sequence[float], percent: int) -> float:
    return sorted(taken)[min(len(taken) - 1, len(taken) * percent // 100)]


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
