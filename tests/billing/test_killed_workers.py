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
from billing.models import Entry, Posting, Refund, Resale
from billing.states import RefundStatus
from scheduler.models import Lease, Reservation
from scheduler.states import LeaseStatus, PaymentMethod, ReservationStatus
from tests.billing import bookings, factories
from tests.billing.resales import market as resold
from tests.scheduler.factories import NOW, make_pool

pytestmark = pytest.mark.django_db(transaction=True)

KILLED = 137  # what a shell says of a process that SIGKILL ended
AT = factories.START + dt.timedelta(hours=6)
RELEASED_AT = AT + dt.timedelta(days=30)
SHARED_AT = NOW + bookings.LONG_AFTER
RESALE_STEPS = ("resale.posted", "resale.stored", "release.posted", "release.stored")
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


@pytest.fixture
def sold_again() -> None:
    """Make two leases of time that a tenant had left for a fee, whose earnings are due to be released."""
    make_pool()
    bookings.leave(resold.buy())
    found = [resold.buy(gpus=gpus) for gpus in (3, 5)]
    for reservation in found:
        resold.start(reservation)
    for reservation in found:
        resold.finish(reservation)


def share_out() -> None:
    """Do what the beat does when earnings are due: what an owner got twice leaves them first."""
    releases.release_due(at=SHARED_AT)


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


def outcome() -> tuple[list[tuple[object, ...]], ...]:
    """Return what every account holds, how many entries of each kind there are, and what was shared."""
    held = (
        Posting.objects.values_list("account__kind", "account__currency", "side")
        .annotate(total=Sum("amount"))
        .order_by("account__kind", "account__currency", "side")
    )
    counts = Entry.objects.values_list("kind").annotate(n=Count("pk")).order_by("kind")
    shares = Resale.objects.values_list("settlement", "gpu_seconds", "taken_minor", "share_minor")
    return list(held), list(counts), sorted(shares)


def without_trace(story: Callable[[], None]) -> tuple[object, ...]:
    """Live through a story and forget it; return what it came to."""
    with transaction.atomic():
        story()
        found = outcome()
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        transaction.set_rollback(True)
    return found


def die_at(step: str, *, of: Callable[[], None] = tick) -> int:
    """Run a tick in a process of its own that ends at a step; return how it ended."""
    connection.close()
    child = os.fork()
    if child == 0:

        def listener(reached: str) -> None:
            if reached == step:
                os._exit(KILLED)

        try:
            steps.listen(listener)
            of()
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


@pytest.mark.usefixtures("sold_again")
@pytest.mark.parametrize("step", RESALE_STEPS)
def test_a_worker_killed_while_it_shares_a_resale_changes_nothing_in_the_end(step):
    undisturbed = without_trace(share_out)
    assert die_at(step, of=share_out) == KILLED
    share_out()
    share_out()
    assert outcome() == undisturbed
    assert len(outcome()[2]) == 2
    resold.holds()


@pytest.mark.parametrize(
    ("fixture", "of", "named"), [("world", tick, STEPS), ("sold_again", share_out, RESALE_STEPS)]
)
def test_the_lists_name_every_step_that_is_passed(request, fixture, of, named):
    request.getfixturevalue(fixture)
    seen: list[str] = []
    stop = steps.listen(seen.append)
    try:
        of()
    finally:
        stop()
    assert set(seen) == set(named)
