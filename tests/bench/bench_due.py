"""How late leases start and end through the real beat and the real worker, as `up` starts them.

    python -m tests.bench.bench_due [--leases 1000] [--spread 0] [--durable]

Reservations of one GPU each begin within `--spread` seconds (0: at one instant) and are over two minutes
later; in between their nodes speak, as if the reports had been taken in. Says how long after it was due each
start and each end was committed, seen from another connection. Fails when one moved twice, or not at all.
PostgreSQL, broker, worker, beat and this program share the machine; nothing of it is paid for, so that the
worker's settlements fail beside it.
"""

import argparse
import datetime as dt
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from marketplace.management import broker
from marketplace.management.postgres import ThrowAwayPostgres
from marketplace.management.suite import TEST_ENVIRONMENT
from tests.bench import bench_ticks
from tests.live import PROJECT

LEAD_SECONDS = 20  # to sell a thousand before the first begins
LENGTH_SECONDS = 120
WAIT_SECONDS_MAX = 300
POLL_SECONDS = 0.1
STOP_SECONDS_MAX = 30
START_SECONDS_LIMIT = 2.0
DRAIN_SECONDS_LIMIT = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leases", type=int, default=1_000)
    parser.add_argument("--spread", type=int, default=0, help="seconds")
    parser.add_argument("--durable", action="store_true")
    options = parser.parse_args()
    for name, value in TEST_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["DJANGO_SETTINGS_MODULE"] = "marketplace.settings"
    server = ThrowAwayPostgres(is_durable=options.durable)
    os.environ["DATABASE_URL"] = server.url
    try:
        with _broker() as url:
            os.environ["CELERY_BROKER_URL"] = url
            _bench(leases=options.leases, spread=options.spread, durable=options.durable)
    finally:
        server.stop()


def _bench(*, leases: int, spread: int, durable: bool) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.utils import timezone

    call_command("migrate", verbosity=0)
    with ExitStack() as programs:
        programs.enter_context(_program("marketplace.celery", "worker", "--concurrency", "2"))
        programs.enter_context(_program("marketplace.celery", "beat"))
        _wait_until_they_work()
        first = (timezone.now() + dt.timedelta(seconds=LEAD_SECONDS)).replace(microsecond=0)
        starts = [first + dt.timedelta(seconds=spread * n // leases) for n in range(leases)]
        bench_ticks.sell(
            windows=[(start, start + dt.timedelta(seconds=LENGTH_SECONDS)) for start in starts]
        )
        late = timezone.now() > first
        sys.stdout.write(
            f"{leases} leases of one GPU within {spread} s, fsync {'on' if durable else 'off'}"
            f"{', sold too late' if late else ''}\n"
        )
        _report(name="start", seen=_watch(status="provisioning", count=leases), column="starts_at")
        bench_ticks.say(kind="handover", at=timezone.now())
        _watch(status="active", count=leases)
        _report(name="end", seen=_watch(status="returning", count=leases), column="ends_at")
        bench_ticks.say(kind="return", at=timezone.now())
        _watch(status="ended", count=leases)
    bench_ticks.check_once(count=leases)


def _wait_until_they_work() -> None:
    """Leave a mark in the calendar's index, and wait for the tick that folds it."""
    from psycopg.types.range import Int4Range, TimestamptzRange

    from scheduler.models import CalendarMark

    now = dt.datetime.now(dt.UTC)
    period = TimestamptzRange(now, now + dt.timedelta(hours=1))
    CalendarMark.objects.create(slots=Int4Range(0, 1), period=period)
    began = time.monotonic()
    while CalendarMark.objects.exists():
        assert time.monotonic() - began < WAIT_SECONDS_MAX, "no tick came"
        time.sleep(POLL_SECONDS)


def _watch(*, status: str, count: int) -> dict[str, float]:
    """Wait until all leases have a status, or have gone past it; return when each was first seen in it."""
    from scheduler.models import LeaseTransition

    seen: dict[str, float] = {}
    began = time.monotonic()
    while len(seen) < count:
        there = LeaseTransition.objects.filter(to_status=status).values_list("lease_id", flat=True)
        now = time.time()
        for lease_id in set(there) - seen.keys():
            seen[lease_id] = now
        assert time.monotonic() - began < WAIT_SECONDS_MAX, f"{status}: {len(seen)} of {count}"
        time.sleep(POLL_SECONDS)
    return seen


def _report(*, name: str, seen: dict[str, float], column: str) -> None:
    from scheduler.models import Lease

    due = dict(Lease.objects.values_list("pk", column))
    late = sorted(at - due[lease_id].timestamp() for lease_id, at in seen.items())
    p50, p95 = statistics.median(late), statistics.quantiles(late, n=20)[-1]
    sys.stdout.write(
        f"{name:6} p50 {p50:6.2f} s, p95 {p95:6.2f} s, last {late[-1]:6.2f} s after due;"
        f" p95 ÷ {START_SECONDS_LIMIT:.0f} s {p95 / START_SECONDS_LIMIT:.2f},"
        f" last ÷ {DRAIN_SECONDS_LIMIT:.0f} s {late[-1] / DRAIN_SECONDS_LIMIT:.2f}\n"
    )


@contextmanager
def _program(application: str, *words: str) -> Iterator[None]:
    """Run Celery with the arguments that `up` gives it."""
    more = {
        "worker": ["--pool", "prefork", "--without-gossip", "--without-mingle"],
        "beat": ["--scheduler", "celery.beat:Scheduler", "--pidfile", ""],
    }[words[0]]
    command = [sys.executable, "-m", "celery", "-q", "-A", application, *words, *more]
    program = subprocess.Popen(
        [*command, "--loglevel", "CRITICAL"],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        program.terminate()
        try:
            program.wait(timeout=STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            program.kill()


@contextmanager
def _broker() -> Iterator[str]:
    """Run the broker that `up` runs, in a directory short enough for a socket."""
    home = Path(tempfile.mkdtemp(prefix="headroom-bench-"))
    command = broker.server_command(server=broker.find_server(), data=home, socket_directory=home)
    server = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL)
    try:
        began = time.monotonic()
        while not broker.is_ready(socket_directory=home):
            assert time.monotonic() - began < STOP_SECONDS_MAX, "the broker did not start"
            time.sleep(POLL_SECONDS)
        yield broker.broker_url(socket_directory=home)
    finally:
        server.terminate()
        server.wait(timeout=STOP_SECONDS_MAX)
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
