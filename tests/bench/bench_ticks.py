"""How fast leases start and end when very many are due in one second, beside the bare writing of their rows.

    python -m tests.bench.bench_ticks [--leases 1000] [--workers 2] [--durable]

Reservations of one GPU each begin at one instant, are handed over, end at one instant and come back. Each
worker is a process that runs the ticks of the beat table again and again, as rival workers do when one is
late. Prints for each step how long it took until 95 % and all had moved, counted by another connection, and
as a ratio to what the same rows cost when one statement writes them. Fails when a lease moved twice, or not
at all. Uses a throw-away PostgreSQL; that one does not wait for its disk, unless `--durable` asks it to.
"""

import argparse
import datetime as dt
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Event
from typing import Any

from marketplace.management.postgres import ThrowAwayPostgres
from marketplace.management.suite import TEST_ENVIRONMENT

GPUS_PER_NODE = 8
POLL_SECONDS = 0.02
STEP_SECONDS_MAX = 300
START_SECONDS_LIMIT = 2.0  # 95 % of the starts, after they were due
DRAIN_SECONDS_LIMIT = 60.0  # all of a thousand
NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
STARTS_AT, ENDS_AT = NOW + dt.timedelta(hours=1), NOW + dt.timedelta(hours=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leases", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--durable", action="store_true")
    options = parser.parse_args()
    for name, value in TEST_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
    server = ThrowAwayPostgres(is_durable=options.durable)
    os.environ["DATABASE_URL"] = server.url
    try:
        _bench(leases=options.leases, workers=options.workers, durable=options.durable)
    finally:
        server.stop()


def _bench(*, leases: int, workers: int, durable: bool) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    sell(windows=[(STARTS_AT, ENDS_AT)] * leases)
    connection.close()
    out = sys.stdout.write
    out(f"{leases} leases of one GPU, {workers} worker(s), fsync {'on' if durable else 'off'}\n")
    started = _step(
        name="start", at=STARTS_AT, workers=workers, status="provisioning", count=leases
    )
    say(kind="handover", at=STARTS_AT + dt.timedelta(seconds=3))
    _step(
        name="hand over",
        at=STARTS_AT + dt.timedelta(seconds=4),
        workers=workers,
        status="active",
        count=leases,
    )
    _step(name="end", at=ENDS_AT, workers=workers, status="returning", count=leases)
    say(kind="return", at=ENDS_AT)
    _step(
        name="take back",
        at=ENDS_AT + dt.timedelta(seconds=5),
        workers=workers,
        status="ended",
        count=leases,
    )
    check_once(count=leases)
    bare = _bare_seconds()
    out(f"the rows of the starts, written by one statement a table: {bare:.2f} s\n")
    out(f"start ÷ bare rows         {started[1] / bare:8.1f}\n")
    out(f"95 % started ÷ {START_SECONDS_LIMIT:.0f} s     {started[0] / START_SECONDS_LIMIT:8.2f}\n")
    out(f"all started ÷ {DRAIN_SECONDS_LIMIT:.0f} s     {started[1] / DRAIN_SECONDS_LIMIT:8.2f}\n")


def sell(*, windows: Sequence[tuple[dt.datetime, dt.datetime]]) -> None:
    """Make the machines and paid reservations, by the rows: how they are sold is measured elsewhere."""
    from decimal import Decimal

    from psycopg.types.range import Int4Range, TimestamptzRange

    from marketplace.core.windows import Window
    from scheduler.lots import Lot, Lots
    from scheduler.models import Allocation, Quote, Reservation
    from scheduler.tariffs import Tariff
    from tests.scheduler.factories import MODEL, REGION, make_listing, make_node, make_organization

    owner, tenant = make_organization(), make_organization()
    listing = make_listing(owner=owner)
    nodes = [make_node(owner=owner) for _ in range(-(-len(windows) // GPUS_PER_NODE))]
    shared: dict[str, Any] = {
        "organization": tenant,
        "gpu_model_id": MODEL,
        "gpus": 1,
        "region": REGION,
        "tier": "firm",
        "spread": "single_node",
        "rate": Decimal(3),
        "total_minor": 600,
        "currency": "usd",
        "fee_basis_points": 1_500,
        "simulated": True,
        "created_at": NOW,
    }

    def terms(window: Window) -> dict[str, Any]:
        lot = Lot(
            gpus=1,
            floors=Tariff.flat(window=window, rate=Decimal(2)),
            tariff=Tariff.flat(window=window, rate=Decimal(3)),
        )
        lots = Lots((lot,)).as_json()
        return {"starts_at": window.starts_at, "ends_at": window.ends_at, "lots": lots}

    sold = [Window(*each) for each in windows]
    quotes = [
        Quote(
            **shared,
            **terms(window),
            status="used",
            used_at=NOW,
            price_breakdown={},
            expires_at=NOW,
        )
        for window in sold
    ]
    reservations = [
        Reservation(
            **shared,
            **terms(window),
            quote=quote,
            status="scheduled",
            payment_method="wallet",
            payment_due_at=NOW,
            ssh_public_keys=["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAexample you@host"],
        )
        for quote, window in zip(quotes, sold, strict=True)
    ]
    Quote.objects.bulk_create(quotes)
    Reservation.objects.bulk_create(reservations)
    Allocation.objects.bulk_create(
        Allocation(
            node=nodes[number // GPUS_PER_NODE],
            listing=listing,
            reservation=reservation,
            slots=Int4Range(
                nodes[number // GPUS_PER_NODE].slot_base + number % GPUS_PER_NODE,
                nodes[number // GPUS_PER_NODE].slot_base + number % GPUS_PER_NODE + 1,
            ),
            period=TimestamptzRange(reservation.starts_at, reservation.ends_at),
            created_at=NOW,
        )
        for number, reservation in enumerate(reservations)
    )


def say(*, kind: str, at: dt.datetime) -> None:
    """Let every node speak about its leases, as if the reports had been taken in."""
    from agents.models import Receipt
    from scheduler.models import Lease

    Receipt.objects.bulk_create(
        Receipt(
            node_id=lease.node_id,
            lease_id=lease.pk,
            lease_epoch=lease.epoch,
            kind=kind,
            at=at,
            is_clean=True,
            access=None,
            document={},
            signature="",
            received_at=at,
        )
        for lease in Lease.objects.all()
    )


def _step(
    *, name: str, at: dt.datetime, workers: int, status: str, count: int
) -> tuple[float, float]:
    """Let workers tick until all leases have a status; return the seconds until 95 % and until all had."""
    from django.db import connection

    from scheduler.models import Lease

    connection.close()
    context = multiprocessing.get_context("spawn")
    ready, go, done = [context.Event() for _ in range(workers)], context.Event(), context.Event()
    processes = [
        context.Process(target=_work, args=(at, ready[number], go, done), daemon=True)
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    for event in ready:
        assert event.wait(timeout=STEP_SECONDS_MAX), "a worker did not start"
    go.set()
    begin = time.perf_counter()
    most = None
    while True:
        moved = Lease.objects.filter(status=status).count()
        passed = time.perf_counter() - begin
        if most is None and moved >= 0.95 * count:
            most = passed
        if moved >= count:
            break
        assert passed < STEP_SECONDS_MAX, f"{name}: {moved} of {count} after {passed:.0f} s"
        time.sleep(POLL_SECONDS)
    done.set()
    for process in processes:
        process.join(timeout=STEP_SECONDS_MAX)
    assert most is not None
    sys.stdout.write(f"{name:10} 95 % after {most:6.2f} s, all after {passed:6.2f} s\n")
    return most, passed


def _work(at: dt.datetime, ready: Event, go: Event, done: Event) -> None:
    """Run the ticks that move leases, in the order of the tasks, until told to stop."""
    import django

    django.setup()
    from django.db import connection

    from scheduler import leases, reclaims, replacements, reservations

    ticks: tuple[Callable[..., int], ...] = (
        reclaims.advance,
        leases.advance,
        replacements.replace_due,
        reservations.finish_due,
        reservations.start_due,
    )
    connection.ensure_connection()
    ready.set()
    go.wait()
    while not done.is_set():
        for tick in ticks:
            tick(at=at)
    connection.close()


def check_once(*, count: int) -> None:
    from django.db.models import Count

    from agents.models import Grant
    from scheduler.models import LeaseTransition

    arrows = LeaseTransition.objects.values("from_status", "to_status").annotate(rows=Count("pk"))
    found = {(arrow["from_status"], arrow["to_status"]): arrow["rows"] for arrow in arrows}
    assert found == dict.fromkeys(
        [
            ("", "provisioning"),
            ("provisioning", "active"),
            ("active", "returning"),
            ("returning", "ended"),
        ],
        count,
    ), found
    assert Grant.objects.count() == count


def _bare_seconds() -> float:
    """Return how long it takes to write the rows of all the starts again, a statement for each table."""
    from django.db import connection, transaction

    tables = {
        "scheduler_lease": None,
        "scheduler_leasetransition": "from_status = ''",
        "scheduler_reservationtransition": "to_status = 'active'",
        "agents_grant": None,
        "marketplace_event": "kind = 'reservation.started'",
    }
    with transaction.atomic(), connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"CREATE TABLE bare_{table} (LIKE {table} INCLUDING ALL)")
        begin = time.perf_counter()
        for table, condition in tables.items():
            cursor.execute(
                f"INSERT INTO bare_{table} OVERRIDING SYSTEM VALUE SELECT * FROM {table}"
                f" WHERE {condition or 'true'}"
            )
        cursor.execute("UPDATE scheduler_reservation SET status = status")
        cursor.execute("UPDATE scheduler_allocation SET lease_id = lease_id")
        passed = time.perf_counter() - begin
        transaction.set_rollback(True)
    return passed


if __name__ == "__main__":
    main()
