"""The beat's tasks in a real worker process behind a real broker, over the suite's database."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery
from django.db import connection, transaction
from django.utils import timezone

from agents import protocol
from agents.models import Grant
from billing import books, wallet
from billing.models import Account, Entry, Payout, Settlement
from billing.states import AccountKind
from marketplace.celery import app
from marketplace.management import broker
from scheduler.models import Lease
from scheduler.states import LeaseStatus
from tests.billing import factories
from tests.live import PROJECT, database_url

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]

WAIT_SECONDS_MAX = 40
POLL_SECONDS = 0.1
STOP_SECONDS_MAX = 30
TICKS = (
    "scheduler.end_due_leases",
    "scheduler.start_due_reservations",
    "billing.settle_leases",
    "billing.release_earnings",
)


def wait_for(what: str, probe: Callable[[], bool]) -> None:
    began = time.monotonic()
    while time.monotonic() - began < WAIT_SECONDS_MAX:
        if probe():
            return
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"waited {WAIT_SECONDS_MAX} s for {what}, in vain")


@pytest.fixture
def broker_url() -> Iterator[str]:
    """Run the broker that `up` runs, in a directory short enough for a socket."""
    home = Path(tempfile.mkdtemp(prefix="headroom-suite-"))
    command = broker.server_command(server=broker.find_server(), data=home, socket_directory=home)
    server = subprocess.Popen(command, cwd=home)
    try:
        wait_for("the broker", lambda: broker.is_ready(socket_directory=home))
        yield broker.broker_url(socket_directory=home)
    finally:
        server.terminate()
        server.wait(timeout=STOP_SECONDS_MAX)
        shutil.rmtree(home)


@contextmanager
def a_worker(broker_url: str) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {
        **os.environ,
        "DATABASE_URL": database_url(),
        "CELERY_BROKER_URL": broker_url,
        "HEADROOM_PAYOUT_DELAY_SECONDS": "0",
    }
    command = [sys.executable, "-m", "celery", "-q", "-A", "marketplace.celery", "worker"]
    command += ["--pool", "solo", "--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
    worker = subprocess.Popen(command, cwd=PROJECT, env=environment)
    try:
        yield worker
    finally:
        if worker.poll() is None:
            worker.terminate()
        worker.wait(timeout=STOP_SECONDS_MAX)


@pytest.fixture
def send(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], object]]:
    """Send a task's message as the beat does."""
    monkeypatch.setenv("CELERY_BROKER_URL", broker_url)  # Celery lets it win over the argument
    assert set(TICKS) <= {entry["task"] for entry in app.conf.beat_schedule.values()}
    with Celery(broker=broker_url) as client:
        yield client.send_task


def a_lease_past_its_end() -> Lease:
    """Return a lease of two GPUs for an hour whose node has said everything, and nobody has looked."""
    reservation = factories.reservation(buyer=factories.tenant(funds_minor=10_000))
    lease = factories.lease(of=reservation, status=LeaseStatus.ACTIVE)
    Grant.objects.create(
        node=lease.node,
        lease_id=lease.pk,
        lease_epoch=lease.epoch,
        gpu_uuids=lease.gpu_uuids,
        not_before=lease.starts_at,
        not_after=lease.ends_at,
        desired_state=protocol.DesiredState.RUN,
        created_at=lease.created_at,
    )
    for kind in protocol.ReceiptKind:
        factories.receipt(of=lease, kind=kind)
    factories.meter_fully(of=lease)
    return lease


def assert_paid_once(lease: Lease) -> None:
    """Two GPU-hours at 2.352942 are 471 cents: fee 70.65 → 71, owner 400."""
    settlement = Settlement.objects.get()
    assert settlement.lease == lease
    assert (settlement.earned_minor, settlement.fee_minor, settlement.owner_minor) == (471, 71, 400)
    assert Entry.objects.filter(kind="settlement").count() == 1
    assert wallet.balance(organization=lease.reservation.organization).amount_minor == 9_529
    report = books.check(at=timezone.now())
    assert report.ok, [check for check in report.checks if not check.ok]


def test_a_worker_ends_settles_and_releases_a_lease(
    broker_url: str, send: Callable[[str], object]
) -> None:
    lease = a_lease_past_its_end()
    with a_worker(broker_url):
        for name in (*TICKS, *TICKS):
            send(name)
        wait_for("the payout", Payout.objects.exists)
    lease.refresh_from_db()
    assert (lease.status, lease.reservation.status) == ("ended", "completed")
    assert Payout.objects.get().amount_minor == 400
    assert_paid_once(lease)


def test_a_worker_that_dies_in_the_middle_leaves_all_of_the_work_to_the_next(
    broker_url: str, send: Callable[[str], object]
) -> None:
    """It is killed inside the settlement's transaction, while it waits for an account that we hold."""
    lease = a_lease_past_its_end()
    with a_worker(broker_url) as first:
        send("scheduler.end_due_leases")
        wait_for("the end of the lease", lambda: Lease.objects.get().status == LeaseStatus.ENDED)
        with transaction.atomic():
            Account.objects.select_for_update().get(kind=AccountKind.DEFERRED)
            send("billing.settle_leases")
            wait_for("the worker to be in the middle", somebody_waits_for_a_lock)
            first.kill()
            first.wait(timeout=STOP_SECONDS_MAX)
    wait_for("the server to notice", lambda: not somebody_waits_for_a_lock())
    assert not Settlement.objects.exists()

    with a_worker(broker_url):
        for _ in range(3):
            send("billing.settle_leases")
        wait_for("the settlement", Settlement.objects.exists)
        send("billing.release_earnings")
        wait_for("the payout", Payout.objects.exists)
    assert_paid_once(lease)


def somebody_waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_stat_clear_snapshot()"
        )  # or a transaction sees one state for ever
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock')"
        )
        (waits,) = cursor.fetchone()
    return bool(waits)
