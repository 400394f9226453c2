"""How fast the ledger posts, beside the same rows written by plain SQL, in one run.

    python -m tests.bench.bench_ledger [--clients 16] [--seconds 5]

Each client has a wallet of its own and posts three-leg entries, as `pgbench` would. Prints both figures
and their ratio. Uses the database of DATABASE_URL, which must be migrated, or a throw-away one.
"""

import argparse
import datetime as dt
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable

from marketplace.management.postgres import ThrowAwayPostgres
from marketplace.management.suite import TEST_ENVIRONMENT

LOAD = 10**12  # minor units per wallet: no bench runs long enough to empty one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    for name, value in TEST_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
    server = None if os.environ.get("DATABASE_URL") else ThrowAwayPostgres()
    if server is not None:
        os.environ["DATABASE_URL"] = server.url
    try:
        _bench(clients=options.clients, seconds=options.seconds)
    finally:
        if server is not None:
            server.stop()


def _bench(*, clients: int, seconds: float) -> None:
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    ours = _rate(_ledger_clients(clients), seconds=seconds)
    plain = _rate(_plain_clients(clients), seconds=seconds)
    lines = (
        f"ledger.post  {ours:8.0f} three-leg entries/s with {clients} clients",
        f"plain SQL    {plain:8.0f} three-leg entries/s, same triggers, nothing looked up or locked",
        f"ratio        {ours / plain:8.2f}",
    )
    sys.stdout.write("\n".join(lines) + "\n")


def _rate(clients: list[Callable[[], None]], *, seconds: float) -> float:
    """Let every client work side by side for a while; return how often they came round per second."""
    done = [0] * len(clients)
    ready = threading.Barrier(len(clients) + 1)
    stop = threading.Event()

    def run(number: int, work: Callable[[], None]) -> None:
        from django.db import connection

        work()
        ready.wait()
        while not stop.is_set():
            work()
            done[number] += 1
        connection.close()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


def _ledger_clients(count: int) -> list[Callable[[], None]]:
    from billing import ledger
    from billing.states import AccountKind, EntryKind

    at = dt.datetime.now(tz=dt.UTC)
    bank, fee = (
        ledger.AccountRef(kind, "usd") for kind in (AccountKind.BANK, AccountKind.PLATFORM_FEE)
    )

    def client(number: int) -> Callable[[], None]:
        purse = ledger.AccountRef(AccountKind.WALLET, "usd", f"bench_{uuid.uuid4().hex[:20]}")
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
        return lambda: post(
            ledger.debit(purse, amount=100),
            ledger.credit(accrued, amount=85),
            ledger.credit(fee, amount=15),
        )

    return [client(number) for number in range(count)]


def _plain_clients(count: int) -> list[Callable[[], None]]:
    from django.db import connection, transaction

    from billing.models import Account

    _ledger_clients(count)  # makes wallets that hold enough
    wallets = list(
        Account.objects.filter(kind="wallet").order_by("-id").values_list("id", flat=True)[:count]
    )
    others = [
        Account.objects.filter(kind=kind).latest("id").pk
        for kind in ("owner_accrued", "platform_fee")
    ]

    def client(wallet_id: int) -> Callable[[], None]:
        def work() -> None:
            entry_id = uuid.uuid4().hex
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO billing_entry"
                    " (id, idempotency_key, content_sha256, kind, subject_id, effective_at)"
                    " VALUES (%s, %s, '', 'deposit', 'bench', now())",
                    [entry_id, entry_id],
                )
                cursor.execute(
                    "INSERT INTO billing_posting (entry_id, account_id, side, amount) VALUES"
                    " (%s, %s, 'debit', 100), (%s, %s, 'credit', 85), (%s, %s, 'credit', 15)",
                    [entry_id, wallet_id, entry_id, others[0], entry_id, others[1]],
                )

        return work

    return [client(wallet_id) for wallet_id in wallets]


if __name__ == "__main__":
    main()
