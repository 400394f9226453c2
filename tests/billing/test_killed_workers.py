"""A worker that dies between any two steps of a write path changes nothing in the end.

The process is forked and exits at the marked step, as one that is killed would: no handler runs, the
connection breaks, PostgreSQL takes back what was not committed. Then the same tick runs again.
"""

import datetime as dt
import os
from collections.abc import Callable

import pytest
from django.db import connection, transaction
from django.db.models import Count, Sum

from agents.models import Outage
from billing import (
    books,
    corrections,
    earnings,
    refunds,
    releases,
    settlements,
    steps,
)
from billing.models import Entry, Posting, Refund
from billing.states import RefundStatus
from scheduler.models import Lease, Reservation
from scheduler.states import LeaseStatus, PaymentMethod, ReservationStatus
from tests.billing import factories

pytestmark = pytest.mark.django_db(transaction=True)

KILLED = 137  # what a shell says of a process that SIGKILL ended
AT = factories.START + dt.timedelta(hours=6)
RELEASED_AT = AT + dt.timedelta(days=30)
STEPS = (
    "hour.posted",
    "hour.stored",
    "settlement.posted",
    "settlement.credited",
    "settlement.stored",
    "rest.refunded",
    "rest.credited",
    "correction.posted",
    "correction.stored",
    "release.posted",
    "release.stored",
    "refund.sent",
    "refund.settled",
)


@pytest.fixture
def world() -> None:
    """Make a lease whose hours can be closed, one that was cut short, and a card's failed reservation."""
    buyer = factories.tenant(funds_minor=10_000)
    long = factories.lease(
        of=factories.reservation(buyer=buyer, hours=3), status=LeaseStatus.ACTIVE
    )
    factories.meter_fully(of=long)
    row = factories.reservation(buyer=buyer, gpus=4, status=ReservationStatus.COMPLETED)
    factories.outage(of=factories.lease(of=row, gpus=2), seconds=600)
    card = factories.reservation(buyer=buyer, paid=False, status=ReservationStatus.FAILED)
    Reservation.objects.filter(pk=card.pk).update(payment_method=PaymentMethod.CARD)
    card.refresh_from_db()
    factories.paid_by_card(card)


def tick() -> None:
    """Do what the beat does, over a month: each verb takes what is due, and nothing twice."""
    while earnings.close_due(at=AT):
        pass
    running = Lease.objects.filter(status=LeaseStatus.ACTIVE).first()
    if running is not None:
        Lease.objects.filter(pk=running.pk).update(
            status=LeaseStatus.ENDED, returned_at=running.ends_at, closed_at=running.ends_at
        )
        Reservation.objects.filter(pk=running.reservation_id).update(
            status=ReservationStatus.COMPLETED
        )
    settlements.settle_ended(at=AT)
    settlements.settle_ended(at=AT)
    ended = Lease.objects.order_by("ends_at").last()
    assert ended is not None
    if not Outage.objects.filter(gpu__uuid=ended.gpu_uuids[0]).exists():
        factories.outage(of=ended, seconds=300)
    corrections.review_due(at=RELEASED_AT)
    releases.release_due(at=RELEASED_AT)
    refunds.open_due(at=RELEASED_AT)
    for status, verb in ((RefundStatus.DUE, refunds.send), (RefundStatus.SENT, refunds.settle)):
        for row in Refund.objects.filter(status=status):
            verb(refund_id=row.pk, at=RELEASED_AT, actor="test")


def outcome() -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Return what every account holds, and how many entries of each kind there are."""
    held = (
        Posting.objects.values_list("account__kind", "account__currency", "side")
        .annotate(total=Sum("amount"))
        .order_by("account__kind", "account__currency", "side")
    )
    counts = Entry.objects.values_list("kind").annotate(n=Count("pk")).order_by("kind")
    return list(held), list(counts)


def without_trace(story: Callable[[], None]) -> tuple[object, ...]:
    """Live through a story and forget it; return what it came to."""
    with transaction.atomic():
        story()
        found = outcome()
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        transaction.set_rollback(True)
    return found


def die_at(step: str) -> int:
    """Run the tick in a process of its own that ends at a step; return how it ended."""
    connection.close()
    child = os.fork()
    if child == 0:

        def listener(reached: str) -> None:
            if reached == step:
                os._exit(KILLED)

        try:
            steps.listen(listener)
            tick()
        except BaseException:  # noqa: BLE001 - the child must not run on into the test suite
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_killed_at_a_step_changes_nothing_in_the_end(world, step):
    undisturbed = without_trace(tick)
    assert die_at(step) == KILLED
    tick()
    tick()
    assert outcome() == undisturbed
    report = books.check(at=RELEASED_AT)
    assert report.ok, [check for check in report.checks if not check.ok]


def test_the_list_names_every_step_that_the_tick_passes(world):
    seen: list[str] = []
    stop = steps.listen(seen.append)
    try:
        tick()
    finally:
        stop()
    assert set(seen) == set(STEPS)
