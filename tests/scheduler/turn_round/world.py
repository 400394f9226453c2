"""A pool whose owner asks for time between two tenants, and what it leaves free."""

import datetime as dt

from django.db import transaction

from agents.models import Gpu, Node
from marketplace.models import Listing
from scheduler import (
    checks,
    leases,
    onoffer,
    reindexing,
)
from scheduler.models import Allocation, Lease
from scheduler.quotes import NotEnoughCapacity
from tests.scheduler.factories import (
    NOW,
    make_lease,
    make_pool,
    make_quote,
    reserve,
    say_handed_over,
    seconds,
    window_in,
)

HOUR = 3600


def a_pool(*, turnaround_seconds: int = HOUR, nodes: int = 1, gpus: int = 8) -> None:
    make_pool(nodes=nodes, gpus=gpus)
    Listing.objects.update(turnaround_seconds=turnaround_seconds)


def is_free(*, gpus: int = 8, at: dt.datetime = NOW, **window: float) -> bool:
    """Say whether a window is quoted and sold, and that whoever holds finds the same; nothing stays."""
    Node.objects.update(last_report_at=at)
    found = []
    for hold in (False, True):
        with transaction.atomic():
            try:
                reserve(
                    make_quote(
                        gpus=gpus,
                        window=window_in(window["start"], length=window["length"]),
                        hold=hold,
                        at=at,
                    ),
                    at=at,
                )
                found.append(True)
            except NotEnoughCapacity:
                found.append(False)
            transaction.set_rollback(True)
    assert found[0] == found[1]
    return found[0]


def a_running_lease(**window: float) -> Lease:
    lease = make_lease(gpus=8, window=window_in(window["start"], length=window["length"]))
    say_handed_over(lease)
    leases.advance(at=lease.starts_at + seconds(5))
    lease.refresh_from_db()
    return lease


def occupied_until() -> dt.datetime | None:
    occupied = Allocation.objects.get().occupied
    return occupied.upper if occupied else None


def on_offer(*, at: dt.datetime) -> int:
    return sum(vars(gpu)["on_offer"] for gpu in onoffer.annotated(gpus=Gpu.objects.all(), at=at))


def assert_sound() -> None:
    report = checks.check(at=NOW)
    assert report.ok, report.checks
    reindexing.fold()
    assert reindexing.compare(at=NOW, limit=5) == []
