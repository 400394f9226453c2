"""A lease without work is told of once a stretch; what nobody measured is not idle."""

import datetime as dt
from typing import Any

import pytest

from billing import idle_leases
from billing.models import IdleStretch
from marketplace.models import Event
from scheduler.models import Lease
from scheduler.states import LeaseStatus
from tests.billing import factories

pytestmark = pytest.mark.django_db

HOUR = 3600
AT = factories.START + dt.timedelta(hours=4)


def running(*, hours: int = 24, **changes: Any) -> Lease:
    """Return a lease of two GPUs that runs since START."""
    row = factories.reservation(buyer=factories.tenant(funds_minor=1_000_000), hours=hours)
    return factories.lease(of=row, status=LeaseStatus.ACTIVE, **changes)


def worked(lease: Lease, *, hour: int, attached: int | None, hours: int = 1) -> None:
    """Meter an hour, minute by minute, of which each GPU was attached for so many seconds of a minute."""
    for gpu in range(len(lease.gpu_uuids)):
        for minute in range(60 * hours):
            factories.meter(
                of=lease,
                gpu=gpu,
                from_second=hour * HOUR + 60 * minute,
                seconds=60,
                attached=attached,
            )


def told() -> list[dict[str, Any]]:
    return [event.data for event in Event.objects.filter(kind="lease.idle").order_by("pk")]


def later(hours: int) -> dt.datetime:
    return AT + dt.timedelta(hours=hours)


def test_two_hours_without_work_are_told_with_what_can_be_returned() -> None:
    lease = running()
    worked(lease, hour=2, hours=2, attached=6)
    assert idle_leases.watch(at=AT) == 1
    (data,) = told()
    assert data == {
        "reservation_id": lease.reservation_id,
        "project": "",
        "gpus": 2,
        "idle_since": "2026-11-02T10:00:00Z",
        "attached_share": "0.1000",
        "ends_at": "2026-11-03T08:00:00Z",
        "left_gpu_seconds": 2 * 20 * HOUR,
        "left": {"amount_minor": 9412, "currency": "usd"},
        "return_with": f"POST /v1/reservations/{lease.reservation_id}/cancellation-quote",
    }
    assert Event.objects.get(kind="lease.idle").object_id == lease.pk


def test_the_part_of_one_lease_among_several_is_rounded_like_all_money() -> None:
    lease = running(hours=22, gpus=1)
    worked(lease, hour=2, hours=2, attached=0)
    assert idle_leases.watch(at=AT) == 1
    (data,) = told()
    # 18 hours of two GPUs at 2.352942 are 8471; half of that is half a unit more than 4235.
    assert data["left"] == {"amount_minor": 4236, "currency": "usd"}


def test_a_stretch_is_told_once_and_the_next_one_again() -> None:
    lease = running()
    worked(lease, hour=2, hours=3, attached=0)
    assert idle_leases.watch(at=AT) == 1
    assert idle_leases.watch(at=AT) == 0
    assert idle_leases.watch(at=later(1)) == 0
    worked(lease, hour=5, hours=2, attached=60)
    assert idle_leases.watch(at=later(3)) == 0
    assert IdleStretch.objects.get().over_at == later(3)
    worked(lease, hour=7, hours=2, attached=0)
    assert idle_leases.watch(at=later(5)) == 1
    assert len(told()) == 2


@pytest.mark.parametrize(("attached", "news"), [(11, 1), (12, 0)])
def test_a_fifth_of_the_time_is_work(attached: int, news: int) -> None:
    worked(running(), hour=2, hours=2, attached=attached)
    assert idle_leases.watch(at=AT) == news


def test_what_nobody_measured_is_not_idle() -> None:
    worked(running(), hour=2, hours=2, attached=None)
    assert idle_leases.watch(at=AT) == 0


def test_what_is_known_of_one_hour_alone_is_not_enough() -> None:
    lease = running()
    worked(lease, hour=2, attached=0)
    worked(lease, hour=3, attached=None)
    assert idle_leases.watch(at=AT) == 0


@pytest.mark.parametrize(
    "changes", [{"handed_over_after_seconds": 3 * HOUR}, {"hours": 4}], ids=["fresh", "ending"]
)
def test_a_lease_that_has_just_begun_or_is_about_to_end_is_left_alone(
    changes: dict[str, Any],
) -> None:
    worked(running(**changes), hour=2, hours=2, attached=0)
    assert idle_leases.watch(at=AT) == 0


def test_a_lease_that_is_over_is_left_alone() -> None:
    lease = running()
    worked(lease, hour=2, hours=2, attached=0)
    Lease.objects.filter(pk=lease.pk).update(status=LeaseStatus.RETURNING)
    assert idle_leases.watch(at=AT) == 0


def test_leases_are_looked_at_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_leases, "LEASES_PER_READ", 1)
    for _ in range(3):
        worked(running(), hour=2, hours=2, attached=0)
    assert idle_leases.watch(at=AT) == 3
