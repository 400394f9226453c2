"""How long the market's hours and leases take to become money.

    python -m tests.bench.bench_settlement [--leases 1000] [--gpus 10000]

Closes one hour of so many GPUs, eight to a lease, metered every minute; then settles so many leases of eight
GPUs and two hours. Uses a throw-away database that waits for its disk.
"""

import argparse
import datetime as dt
import os
import sys
import time
from typing import Any

from marketplace.management.postgres import ThrowAwayPostgres
from marketplace.management.suite import TEST_ENVIRONMENT

GPUS_PER_LEASE = 8
MINUTES_PER_HOUR = 60
ROWS_PER_INSERT = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leases", type=int, default=1_000)
    parser.add_argument("--gpus", type=int, default=10_000)
    options = parser.parse_args()
    for name, value in TEST_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
    server = ThrowAwayPostgres(is_durable=True)
    os.environ["DATABASE_URL"] = server.url
    try:
        _bench(leases=options.leases, gpus=options.gpus)
    finally:
        server.stop()


def _bench(*, leases: int, gpus: int) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    from billing import books, earnings, settlements
    from tests.billing import factories

    running = _make(count=-(-gpus // GPUS_PER_LEASE), hours=2, is_running=True)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    at = factories.START + dt.timedelta(hours=1, seconds=earnings.CLOSE_AFTER_SECONDS)
    began = time.perf_counter()
    closed = 0
    while done := earnings.close_due(at=at):
        closed += done
    hours_took = time.perf_counter() - began
    assert closed == len(running), (closed, len(running))

    ended = _make(count=leases, hours=2, is_running=False)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    later = factories.START + dt.timedelta(hours=5)
    began = time.perf_counter()
    settled = 0
    while done := settlements.settle_ended(at=later):
        settled += done
    settled_took = time.perf_counter() - began
    assert settled >= len(ended), (settled, len(ended))
    began = time.perf_counter()
    report = books.check(at=later)
    check_took = time.perf_counter() - began
    assert report.ok, [check for check in report.checks if not check.ok]
    lines = (
        f"hour close   {closed * GPUS_PER_LEASE} GPUs in {closed} leases: {hours_took:.1f} s",
        f"settlement   {len(ended)} leases of {GPUS_PER_LEASE} GPUs, two hours: {settled_took:.1f} s",
        f"check_books  {len(report.checks)} invariants over all of it: {check_took:.1f} s",
    )
    sys.stdout.write("\n".join(lines) + "\n")


def _make(*, count: int, hours: int, is_running: bool) -> list[Any]:
    """Make leases with a reading per GPU and minute; those that run have an hour of readings."""
    from agents.models import MeterReading
    from scheduler.states import LeaseStatus, ReservationStatus
    from tests.billing import factories

    buyer = factories.tenant(name=f"Tenant of {count}", funds_minor=10**9)
    machine = factories.node()
    rows, made, number = [], [], 0
    for _ in range(count):
        reservation = factories.reservation(
            buyer=buyer,
            gpus=GPUS_PER_LEASE,
            hours=hours,
            status=ReservationStatus.ACTIVE if is_running else ReservationStatus.COMPLETED,
        )
        lease = factories.lease(
            of=reservation, status=LeaseStatus.ACTIVE if is_running else LeaseStatus.ENDED
        )
        made.append(lease)
        minutes = MINUTES_PER_HOUR * (1 if is_running else hours)
        for gpu_uuid in lease.gpu_uuids:
            for minute in range(minutes):
                number += 1
                starts_at = lease.starts_at + dt.timedelta(minutes=minute)
                rows.append(
                    MeterReading(
                        node=machine,
                        epoch=1,
                        sequence=number,
                        lease_id=lease.id,
                        lease_epoch=1,
                        gpu_uuid=gpu_uuid,
                        starts_at=starts_at,
                        ends_at=starts_at + dt.timedelta(minutes=1),
                        up_seconds=60,
                        busy_seconds=45,
                        simulated=True,
                        received_at=lease.ends_at,
                    )
                )
        if len(rows) >= ROWS_PER_INSERT:
            MeterReading.objects.bulk_create(rows)
            rows = []
    MeterReading.objects.bulk_create(rows)
    return made


if __name__ == "__main__":
    main()
