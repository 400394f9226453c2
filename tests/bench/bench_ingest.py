"""How many reports a second the market takes in, on this machine, beside its database.

    python -m tests.bench.bench_ingest [--nodes 12500] [--reports 400] [--meter-rows 2000] [--seconds 300]

Simulated nodes of eight leased GPUs report through the real web server, which runs as `up` runs it, to a
PostgreSQL that waits for its disk. Reports are due at fixed instants, whether the market keeps up or not, and
their time is counted from then. Some carry the meter readings of eight GPUs, the others are beats. Prints the
rates, the times, the backlog, and who used the processors; then counts what is stored.
"""

import argparse
import asyncio
import collections
import contextlib
import datetime as dt
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from marketplace.management import instance
from marketplace.management.postgres import ThrowAwayPostgres
from tests.bench.fleet import GPUS_PER_NODE, SimulatedNode, make_fleet

PROJECT = Path(__file__).resolve().parents[2]
CONNECTIONS = 64
ANSWER_SECONDS_MAX = 60.0
START_SECONDS_MAX = 60.0
WARM_UP_SECONDS = 5.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
ENVIRONMENT = {
    "HEADROOM_PROFILE": "production",
    "SECRET_KEY": "a-key-for-the-benchmark-that-signs-nothing-of-any-value",
    "ALLOWED_HOSTS": "127.0.0.1",
    "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",  # never asked
    "DJANGO_SETTINGS_MODULE": "marketplace.settings",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=12_500)
    parser.add_argument("--reports", type=float, default=400, help="a second, all together")
    parser.add_argument("--meter-rows", type=float, default=2_000, help="a second")
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    database = ThrowAwayPostgres(is_durable=True)
    os.environ.update(ENVIRONMENT, DATABASE_URL=database.url)
    try:
        _bench(database=database, options=options)
    finally:
        database.stop()


def _bench(*, database: ThrowAwayPostgres, options: argparse.Namespace) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    with socket.create_server(("127.0.0.1", 0), backlog=instance.LISTEN_BACKLOG) as listener:
        authority = f"127.0.0.1:{listener.getsockname()[1]}"
        fleet = make_fleet(count=options.nodes, authority=authority, at=dt.datetime.now(tz=dt.UTC))
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
        with _web(listener) as web:
            _wait_for(listener.getsockname()[1])
            rates = {
                "reports_per_second": options.reports,
                "meter_rows_per_second": options.meter_rows,
            }
            # Loading the application and connecting to the database is no part of taking reports in.
            warm_up = Load(fleet=fleet, seconds=WARM_UP_SECONDS, **rates)
            asyncio.run(warm_up.run())
            before = _cpu_seconds(web=web, database=database)
            load = Load(fleet=fleet, seconds=options.seconds, **rates)
            asyncio.run(load.run())
            after = _cpu_seconds(web=web, database=database)
    _print(load=load, cpu={name: after[name] - before[name] for name in after})
    _print_stored(fleet=fleet, loads=(warm_up, load))


@dataclass(slots=True)
class Load:
    """Reports at fixed instants, spread over a few connections."""

    fleet: Sequence[SimulatedNode]
    reports_per_second: float
    meter_rows_per_second: float
    seconds: float
    latencies: list[float] = field(default_factory=list)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    meters_sent: int = 0
    backlog: list[int] = field(default_factory=list)
    wall_seconds: float = 0.0

    async def run(self) -> None:
        port = int(self.fleet[0].authority.rpartition(":")[2])
        due: asyncio.Queue[tuple[float, int, int] | None] = asyncio.Queue()
        clients = [asyncio.create_task(self._client(port, due)) for _ in range(CONNECTIONS)]
        began = time.perf_counter()
        owed = 0.0
        per_report = self.meter_rows_per_second / self.reports_per_second
        total = int(self.reports_per_second * self.seconds)
        next_look = began + 1
        for number in range(total):
            at = began + number / self.reports_per_second
            while (now := time.perf_counter()) < at:
                await asyncio.sleep(min(at - now, 0.01))
            if now >= next_look:
                self.backlog.append(due.qsize())
                next_look += 1
            owed += per_report
            meters = GPUS_PER_NODE if owed >= GPUS_PER_NODE else 0
            owed -= meters
            due.put_nowait((at, number % len(self.fleet), meters))
        for _ in clients:
            due.put_nowait(None)
        await asyncio.gather(*clients)
        self.wall_seconds = time.perf_counter() - began

    async def _client(self, port: int, due: asyncio.Queue[tuple[float, int, int] | None]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (item := await due.get()) is not None:
            at, number, meters = item
            request = self.fleet[number].report(at=dt.datetime.now(tz=dt.UTC), meters=meters)
            self.meters_sent += meters
            writer.write(request)
            status = await asyncio.wait_for(_answer(reader), ANSWER_SECONDS_MAX)
            now = time.perf_counter()
            self.latencies.append(now - at)
            self.statuses[status] += 1
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> str:
    """Read one answer; return its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = head.split("\r\n")
    length = next(
        int(line.partition(":")[2]) for line in lines if line.lower().startswith("content-length")
    )
    await reader.readexactly(length)
    return lines[0].split(" ", 2)[1]


@contextlib.contextmanager
def _web(listener: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """Run the web server as `up` does."""
    flags = {
        "bind": f"fd://{listener.fileno()}",
        "worker-class": "marketplace.api.web_worker.ProblemWorker",
        "workers": str(instance.WEB_PROCESSES),
        "threads": str(instance.WEB_THREADS),
        "keep-alive": str(instance.KEEP_ALIVE_SECONDS),
        "log-level": "warning",
    }
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "marketplace.wsgi:application"),
            *(part for name, value in flags.items() for part in (f"--{name}", value)),
        ],
        cwd=PROJECT,
        pass_fds=(listener.fileno(),),
    )
    try:
        yield server
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while not instance.answers(port=port):
        if time.monotonic() > deadline:
            raise SystemExit("the web server did not start")
        time.sleep(0.2)


def _cpu_seconds(*, web: subprocess.Popen[bytes], database: ThrowAwayPostgres) -> dict[str, float]:
    """Return the processor time that each part has used so far."""
    own = os.times()
    return {
        "web": _tree_seconds(web.pid),
        "database": _tree_seconds(database.pid),
        "generator": own.user + own.system,
    }


def _tree_seconds(root: int) -> float:
    """Return the processor time of a process and its descendants, also of those that have ended."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            fields = text.rpartition(")")[2].split()
            pid = int(path.parent.name)
            parents[pid] = int(fields[1])
            ticks[pid] = sum(int(value) for value in fields[11:15])
    total = 0
    for pid in ticks:
        ancestor = pid
        while ancestor not in {root, 0}:
            ancestor = parents.get(ancestor, 0)
        total += ticks[pid] if ancestor == root else 0
    return total / TICKS_PER_SECOND


def _print(*, load: Load, cpu: dict[str, float]) -> None:
    cores = os.cpu_count() or 1
    wall = load.wall_seconds
    percentiles = statistics.quantiles(load.latencies, n=100)
    backlog = load.backlog
    quarter = max(1, len(backlog) // 4)
    times = "  ".join(f"p{n} {percentiles[n - 1] * 1000:.1f} ms" for n in (50, 95, 99))
    shares = "  ".join(f"{name} {used / wall / cores:.0%}" for name, used in cpu.items())
    first, last = (statistics.mean(part) for part in (backlog[:quarter], backlog[-quarter:]))
    web, database = (cpu[name] / len(load.latencies) * 1000 for name in ("web", "database"))
    gpus = len(load.fleet) * GPUS_PER_NODE
    lines = (
        f"{len(load.fleet)} nodes with {gpus} GPUs report for {wall:.0f} s on {cores} cores",
        f"reports     {len(load.latencies) / wall:.1f} a second, answers {dict(load.statuses)}",
        f"meter rows  {load.meters_sent / wall:.1f} a second",
        f"latency     {times}  max {max(load.latencies) * 1000:.0f} ms, from when a report was due",
        f"backlog     {first:.1f} reports in the first quarter, {last:.1f} in the last, max {max(backlog)}",
        f"processors  {shares}, of all cores",
        f"a report    {web:.2f} ms of web, {database:.2f} ms of the database",
    )
    sys.stdout.write("\n".join(lines) + "\n")


def _print_stored(*, fleet: Sequence[SimulatedNode], loads: Sequence[Load]) -> None:
    """Compare what is stored with what was sent: the web server has ended and written its last beats."""
    from agents.models import MeterReading, Node

    sequences = dict(Node.objects.values_list("pk", "last_sequence"))
    behind = sum(sequences[node.node_id] != node.sequence for node in fleet)
    stored = MeterReading.objects.count()
    sent = sum(load.meters_sent for load in loads)
    statuses = {status for load in loads for status in load.statuses}
    sys.stdout.write(
        f"stored       {stored} of {sent} meter rows; {behind} nodes whose last report is"
        " not the last one sent\n"
    )
    if stored != sent or behind or statuses != {"200"}:
        raise SystemExit("something was lost")


if __name__ == "__main__":
    main()
