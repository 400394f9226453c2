"""The checks of what is sold: silent on a sound market, and each of them finds its breach."""

import datetime as dt
from collections.abc import Callable
from io import StringIO

import pytest
import time_machine
from django.core.management import call_command
from django.db import connection

from agents.models import Gpu, Node, Outage
from scheduler import checks, reindexing
from scheduler.models import (
    Allocation,
    CalendarMark,
    CalendarWeek,
    Lease,
    Quote,
    Reclaim,
    Replacement,
    Reservation,
)
from tests.scheduler.factories import (
    NOW,
    hours,
    make_lease,
    make_pool,
    make_quote,
    make_reservation,
    say_handed_over,
    seconds,
    window_in,
)

pytestmark = pytest.mark.django_db


def broken(*, at: dt.datetime = NOW) -> list[str]:
    return [check.name for check in checks.check(at=at).checks if not check.ok]


@pytest.fixture
def market() -> Lease:
    """A lease that runs, a promise, a hold, and a promise that is over."""
    make_pool(nodes=2)
    lease = make_lease(gpus=2, window=window_in(1, length=48))
    say_handed_over(lease)
    Node.objects.update(last_report_at=NOW + hours(1))
    make_reservation(gpus=4, window=window_in(100), at=NOW + hours(1))
    make_quote(gpus=1, hold=True, at=NOW + hours(1), window=window_in(200))
    Allocation.objects.filter(
        reservation=make_reservation(window=window_in(300), at=NOW + hours(1))
    ).update(live=False)
    Reservation.objects.filter(starts_at=NOW + hours(300)).update(status="cancelled")
    reindexing.fold()
    return lease


AT = NOW + hours(1) + seconds(60)


class TestCheck:
    def test_finds_nothing_in_a_sound_market(self, market: Lease) -> None:
        report = checks.check(at=AT)
        assert report.ok, report.checks
        assert {check.name for check in report.checks} == {
            *(invariant.name for invariant in checks.INVARIANTS),
            "index_equals_its_source",
        }

    def test_finds_nothing_in_an_empty_market(self) -> None:
        assert broken() == []

    @pytest.mark.parametrize(
        ("breach", "name"),
        [
            (
                lambda: Allocation.objects.filter(reservation__status="scheduled").delete(),
                "promises_have_their_gpus",
            ),
            (
                lambda: Allocation.objects.filter(live=False).update(live=True),
                "promises_have_their_gpus",
            ),
            (
                lambda: Quote.objects.filter(hold=True).update(status="expired"),
                "promises_have_their_gpus",
            ),
            (
                lambda: CalendarWeek.objects.update(busy=bytes(336)),
                "index_equals_its_source",
            ),
            (
                lambda: Reservation.objects.filter(status="scheduled").update(
                    starts_at=AT - seconds(601)
                ),
                "nothing_is_late",
            ),
            (
                lambda: Quote.objects.filter(status="open").update(expires_at=AT - seconds(601)),
                "nothing_is_late",
            ),
            (
                lambda: Lease.objects.update(
                    starts_at=AT - seconds(1300), created_at=AT - seconds(1201)
                ),
                "nothing_is_late",
            ),
            (
                lambda: Replacement.objects.create(
                    lease=Lease.objects.get(), opened_at=AT - hours(1), due_at=AT - seconds(601)
                ),
                "nothing_is_late",
            ),
            (
                lambda: (
                    Lease.objects.update(status="reclaiming")
                    and Reclaim.objects.create(
                        lease=Lease.objects.get(),
                        notice_at=AT - hours(2),
                        due_at=AT - seconds(601),
                        promised_until=AT + hours(9),
                        remaining_minor=100,
                        compensation_minor=25,
                        currency="usd",
                        actor="owner",
                    )
                ),
                "nothing_is_late",
            ),
            (
                lambda: Allocation.objects.filter(live=False).update(
                    turnaround_seconds=60,
                    period=(AT - hours(90), AT - hours(80)),
                    free_at=AT - seconds(checks.FORGOTTEN_SECONDS_MAX + 1),
                ),
                "nothing_is_late",
            ),
            (
                lambda: (
                    Outage.objects.create(
                        gpu=Gpu.objects.get(uuid=Lease.objects.get().gpu_uuids[0]),
                        health="lost",
                        cause="host",
                        reason="gone",
                        starts_at=AT - seconds(checks.UNHEALTHY_SECONDS_MAX + 1),
                    )
                    and Lease.objects.update(created_at=AT - hours(3), status="active")
                ),
                "sold_is_healthy",
            ),
            (
                lambda: (
                    Gpu.objects.filter(uuid=Lease.objects.get().gpu_uuids[0]).update(present=False)
                    and Gpu.objects.exclude(uuid__in=Lease.objects.get().gpu_uuids).update(
                        present=False
                    )
                ),
                "sold_is_healthy",
            ),
        ],
    )
    def test_finds_what_is_broken(
        self, market: Lease, breach: Callable[[], object], name: str
    ) -> None:
        breach()
        assert name in broken(at=AT)

    def test_finds_gpus_that_are_promised_twice(self, market: Lease) -> None:
        place = Allocation.objects.filter(live=True).first()
        assert place is not None
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute("ALTER TABLE scheduler_allocation DROP CONSTRAINT allocation_no_overlap")
        place.pk = None
        place.save(force_insert=True)
        assert {"guards_stand", "gpus_are_promised_once"} <= set(broken(at=AT))

    def test_finds_a_tenant_in_the_turn_round_of_another(self, market: Lease) -> None:
        place = Allocation.objects.get(live=True, quote__isnull=False)
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute("ALTER TABLE scheduler_allocation DROP CONSTRAINT allocation_no_overlap")
        ends_at = place.period.upper
        Allocation.objects.filter(pk=place.pk).update(turnaround_seconds=3600)
        place.pk = None
        place.period = (ends_at + seconds(3600), ends_at + hours(2))
        place.save(force_insert=True)
        assert "gpus_are_promised_once" not in broken(at=AT)

        Allocation.objects.filter(pk=place.pk).update(
            period=(ends_at + seconds(3540), ends_at + hours(2))
        )
        assert "gpus_are_promised_once" in broken(at=AT)

    def test_finds_a_tenant_in_the_turn_round_of_one_who_has_gone(self, market: Lease) -> None:
        place = Allocation.objects.get(live=True, quote__isnull=False)
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute("ALTER TABLE scheduler_allocation DROP CONSTRAINT allocation_no_overlap")
        Allocation.objects.filter(live=False).update(
            slots=place.slots,
            period=(place.period.lower - hours(2), place.period.lower - hours(1)),
            turnaround_seconds=7200,
            free_at=place.period.lower + seconds(1),
        )
        assert "gpus_are_promised_once" in broken(at=AT)

    def test_finds_places_that_are_no_gpus(self, market: Lease) -> None:
        place = Allocation.objects.filter(live=True).first()
        assert place is not None
        slots = place.slots
        Allocation.objects.filter(pk=place.pk).update(slots=(slots.lower + 8, slots.upper + 8))
        assert "allocations_lie_on_their_nodes" in broken(at=AT)

    def test_finds_a_silenced_trigger(self, market: Lease) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute("ALTER TABLE scheduler_allocation DISABLE TRIGGER calendar_mark_changed")
        assert broken(at=AT) == ["guards_stand"]


class TestCommand:
    @time_machine.travel(NOW, tick=False)
    def test_prints_a_line_for_each_invariant_and_fails_on_a_breach(self) -> None:
        make_pool()
        out = StringIO()
        call_command("check_capacity", stdout=out)
        assert f"all {len(checks.INVARIANTS) + 1} invariants hold" in out.getvalue()
        make_reservation()
        CalendarMark.objects.all().delete()
        with pytest.raises(SystemExit) as end:
            call_command("check_capacity", stdout=out)
        assert end.value.code == 1
        assert "BROKEN  index_equals_its_source" in out.getvalue()
