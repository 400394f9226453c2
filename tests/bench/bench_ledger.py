"""How fast the ledger posts, beside `pgbench` with the same SQL, in one run.

    python -m tests.bench.bench_ledger [--clients 16] [--seconds 5] [--durable]

Each client is a process with a wallet of its own and posts three-leg entries. Prints both figures and their
ratio. Uses the database of DATABASE_URL, which must be migrated, or a throw-away one; that one does not wait
for its disk, unless `--durable` asks it to.
"""

import argparse
import datetime as dt
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from multiprocessing.synchronize import Barrier

from marketplace.management import postgres
from marketplace.management.postgres import ThrowAwayPostgres
from marketplace.management.processes import unprivileged_account
from marketplace.management.suite import TEST_ENVIRONMENT

LOAD = 10**12  # minor units per wallet: no bench runs long enough to empty one
START_SECONDS_MAX = 120
PGBENCH_SCRIPT = """
\\set key random(1, 1000000000000000000)
\\set id random(1, 1000000000000000000)
SELECT * FROM billing_post(
'ent_:id', 'pgbench:run:key', 'same', 'deposit', 'bench', now(), NULL, '{legs}'::jsonb);
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--durable", action="store_true")
    options = parser.parse_args()
    for name, value in TEST_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
    server = (
        None if os.environ.get("DATABASE_URL") else ThrowAwayPostgres(is_durable=options.durable)
    )
    if server is not None:
        os.environ["DATABASE_URL"] = server.url
    try:
        _bench(clients=options.clients, seconds=options.seconds)
    finally:
        if server is not None:
            server.stop()


def _bench(*, clients: int, seconds: int) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("SHOW fsync")
        fsync = cursor.fetchone()[0]
    connection.close()
    ours = _our_rate(clients=clients, seconds=seconds)
    plain = _pgbench_rate(clients=clients, seconds=seconds)
    lines = (
        f"fsync {fsync}, {clients} client processes, {seconds} s each",
        f"ledger.post  {ours:8.0f} three-leg entries/s",
        f"pgbench      {plain:8.0f} three-leg entries/s, the same SQL",
        f"ratio        {ours / plain:8.2f}",
    )
    sys.stdout.write("\n".join(lines) + "\n")


def _our_rate(*, clients: int, seconds: int) -> float:
    """Let every client work side by side for a while; return how many entries came of it per second."""
    context = multiprocessing.get_context("spawn")
    ready, rates = context.Barrier(clients), context.Queue()
    processes = [
        context.Process(target=_client, args=(number, seconds, ready, rates))
        for number in range(clients)
    ]
    for process in processes:
        process.start()
    rate: float = sum(rates.get(timeout=START_SECONDS_MAX + seconds) for _ in processes)
    for process in processes:
        process.join()
    return rate


def _client(
    number: int, seconds: int, ready: Barrier, rates: "multiprocessing.Queue[float]"
) -> None:
    """Post for so many seconds, beginning with all others, and tell how many entries a second that made."""
    import django

    django.setup()
    from billing import ledger
    from billing.states import AccountKind, EntryKind

    at = dt.datetime.now(tz=dt.UTC)
    bank, fee = (
        ledger.AccountRef(kind, "usd") for kind in (AccountKind.BANK, AccountKind.PLATFORM_FEE)
    )
    purse = ledger.AccountRef(AccountKind.WALLET, "usd", f"bench_{number}")
    accrued = ledger.AccountRef(AccountKind.OWNER_ACCRUED, "usd", f"bench_{number}")

    def post(*legs: ledger.Leg) -> None:
        ledger.post(
            idempotency_key=f"bench:{uuid.uuid4()}",
            kind=EntryKind.DEPOSIT,
            subject_id="bench",
            effective_at=at,
            legs=legs,
        )

    post(*ledger.transfer(debited=bank, credited=purse, amount=LOAD))
    three_legs = (
        ledger.debit(purse, amount=100),
        ledger.credit(accrued, amount=85),
        ledger.credit(fee, amount=15),
    )
    post(*three_legs)
    ready.wait(timeout=START_SECONDS_MAX)
    began, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        post(*three_legs)
        done += 1
    rates.put(done / elapsed)


def _pgbench_rate(*, clients: int, seconds: int) -> float:
    """Let pgbench call the same function with the same legs, out of its own C loop."""
    from django.db import connection

    from billing import ledger
    from billing.states import AccountKind

    # `:client_id` is pgbench's own variable: each client finds the wallet that ours has filled.
    legs = ledger.as_rows(
        [
            ledger.debit(
                ledger.AccountRef(AccountKind.WALLET, "usd", "bench_:client_id"), amount=100
            ),
            ledger.credit(
                ledger.AccountRef(AccountKind.OWNER_ACCRUED, "usd", "bench_:client_id"), amount=85
            ),
            ledger.credit(ledger.AccountRef(AccountKind.PLATFORM_FEE, "usd"), amount=15),
        ]
    )
    settings = connection.settings_dict
    host = settings["HOST"] or settings["OPTIONS"].get("host", "")
    binaries, _ = postgres.find_binaries(account=unprivileged_account())
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(PGBENCH_SCRIPT.format(legs=legs).strip() + "\n")
        script.flush()
        printed = subprocess.run(
            [
                binaries / "pgbench",
                *("--no-vacuum", f"--client={clients}", "--jobs=2", f"--time={seconds}"),
                *(f"--host={host}", f"--username={settings['USER']}", f"--file={script.name}"),
                *([f"--port={settings['PORT']}"] if settings["PORT"] else []),
                settings["NAME"],
            ],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PGPASSWORD": str(settings["PASSWORD"])},
        ).stdout
    found = re.search(r"tps = ([0-9.]+)", printed)
    assert found is not None, printed
    return float(found[1])


if __name__ == "__main__":
    main()
