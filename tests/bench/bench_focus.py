"""How long a month of a large tenant takes to become a FOCUS file, and how much memory.

    python -m tests.bench.bench_focus [--rows 1000000]

Makes leases that run all month, an hour's entry each; in every other hour a part of the GPUs had no workload
and is a row of its own. What the export does not read, the postings of those hours, is left out. The same
number of rows is then copied out of PostgreSQL as it lies there, which is the least that anybody could do.
The memory is this process's; what the database sorts, it sorts in its own.
"""

import argparse
import datetime as dt
import os
import resource
import sys
import time
from typing import Any

from marketplace.management.postgres import ThrowAwayPostgres
from marketplace.management.suite import TEST_ENVIRONMENT

ROWS = 1_000_000
HOURS = 720  # of November
LEASES_PER_RESERVATION = 4
GPUS_PER_LEASE = 8
ROWS_PER_RESERVATION = LEASES_PER_RESERVATION * HOURS * 3 // 2 + 1  # the last one is the purchase
PRICE_MINOR_MAX = 6_000_000  # of a reservation
GIBIBYTE = 2**30

_HOURS = """
    INSERT INTO billing_entry (id, idempotency_key, content_sha256, kind, subject_id, effective_at)
    SELECT 'ent_' || left(md5(l.id || n), 26), 'earn:' || l.id || ':' || n, '', 'earning', l.id,
        l.starts_at + (n + 1) * interval '1 hour'
    FROM scheduler_lease l, generate_series(0, %(last)s) n;
    INSERT INTO billing_earnedhour (lease_id, entry_id, starts_at, ends_at, gpu_seconds_delivered,
        gpu_seconds_busy, worth_micros, floor_micros, earned_minor, fee_minor, owner_minor,
        gpu_seconds_metered, gpu_seconds_measured, gpu_seconds_attached, energy_millijoules, closed_at)
    SELECT l.id, 'ent_' || left(md5(l.id || n), 26), l.starts_at + n * interval '1 hour',
        l.starts_at + (n + 1) * interval '1 hour', 28800, 14000 + n, 28800 * 2352942::bigint,
        28800 * 2000000::bigint, 1882 + n %% 2, 282, 1600 + n %% 2, 28800, 28800,
        CASE WHEN n %% 2 = 0 THEN 28800 ELSE 20000 + n END, 17000000000 + n * 1000000::bigint, now()
    FROM scheduler_lease l, generate_series(0, %(last)s) n;
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    for name, value in TEST_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
    server = ThrowAwayPostgres(is_durable=True)
    os.environ["DATABASE_URL"] = server.url
    try:
        _bench(rows=options.rows)
    finally:
        server.stop()


def _bench(*, rows: int) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    from billing import focus
    from billing.focus import Dataset, Version

    tenant = _make(reservations=-(-rows // ROWS_PER_RESERVATION))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    began, began_cpu = time.perf_counter(), time.process_time()
    lines = focus.lines(
        organization=tenant,
        month="2026-11",
        version=Version.V1_4,
        dataset=Dataset.COST_AND_USAGE,
        at=dt.datetime(2026, 12, 2, tzinfo=dt.UTC),
    )
    found = size = 0
    first_after = None
    for page in lines:
        if size and first_after is None:
            first_after = time.perf_counter() - began
        found += page.count("\r\n")
        size += len(page)
    took, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    found -= 1  # the header
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    copied = 0
    with connection.cursor() as cursor, cursor.copy(_plain_copy(found)) as copy:
        for block in copy:
            copied += bytes(block).count(b"\n")
    copy_took = time.perf_counter() - began
    assert copied == found, (copied, found)
    report = (
        f"rows           {found} of 1.4 Cost and Usage, {size / 1e6:.0f} MB",
        f"time           {took:.1f} s, {found / took:.0f} rows/s; the first page after {first_after:.1f} s",
        f"              {cpu:.1f} s of it this process computed; load {os.getloadavg()[0]:.1f}",
        f"peak memory    {peak_bytes / GIBIBYTE:.2f} GiB",
        f"plain COPY     {copy_took:.1f} s for as many rows: the file takes {took / copy_took:.1f} x as long",
    )
    sys.stdout.write("\n".join(report) + "\n")
    assert found >= rows, (found, rows)
    assert peak_bytes < GIBIBYTE, peak_bytes


def _plain_copy(rows: int) -> str:
    return (
        f"COPY (SELECT h.* FROM billing_earnedhour h, generate_series(1, 2) LIMIT {rows}) TO STDOUT"
    )


def _make(*, reservations: int) -> Any:
    """Make a tenant whose leases ran all November; their hours are inserted in one statement."""
    from django.db import connection

    from scheduler.states import LeaseStatus
    from tests.billing import factories

    factories.START = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
    tenant = factories.tenant()
    machines = [factories.node() for _ in range(LEASES_PER_RESERVATION)]
    for _ in range(reservations):
        factories.fund(tenant, minor=PRICE_MINOR_MAX)
        reservation = factories.reservation(
            buyer=tenant, gpus=GPUS_PER_LEASE * LEASES_PER_RESERVATION, hours=HOURS
        )
        type(reservation).objects.filter(pk=reservation.pk).update(
            name="training", project="vision", tags={"team": "a", "cost-centre": "4711"}
        )
        for machine in machines:
            factories.lease(
                of=reservation, gpus=GPUS_PER_LEASE, status=LeaseStatus.ACTIVE, on=machine
            )
    with connection.cursor() as cursor:
        # The guards of the books would look at each of a million rows; nothing here is a real entry.
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(_HOURS, {"last": HOURS - 1})
        cursor.execute("SET session_replication_role = DEFAULT")
    return tenant


if __name__ == "__main__":
    main()
