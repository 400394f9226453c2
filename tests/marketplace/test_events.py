"""What an organization is told, it is told once."""

import datetime as dt

import pytest

from marketplace import events
from marketplace.models import Event
from marketplace.states import EventKind
from tests.marketplace.factories import a_tenant

AT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


@pytest.mark.django_db
def test_an_occasion_is_told_once_however_often_it_is_recorded():
    tenant = a_tenant()
    told = [
        events.record(
            organization=tenant,
            kind=EventKind.RESERVATION_SCHEDULED,
            object_id="rsv_1",
            data={"attempt": attempt},
            at=AT,
            key="rsv_1:scheduled",
        )
        for attempt in range(3)
    ]
    assert told == [True, False, False]
    event = Event.objects.get()
    assert (event.kind, event.data, event.at) == ("reservation.scheduled", {"attempt": 0}, AT)


@pytest.mark.django_db
def test_an_event_is_visible_to_the_organization_that_is_told_and_to_no_other():
    tenant, stranger = a_tenant(), a_tenant()
    events.record(
        organization=tenant,
        kind=EventKind.RESERVATION_ENDED,
        object_id="rsv_1",
        data={},
        at=AT,
        key="rsv_1:ended",
    )
    assert Event.objects.visible_to(tenant).count() == 1
    assert not Event.objects.visible_to(stranger).exists()
