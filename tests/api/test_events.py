"""`GET /v1/events`: what an organization was told, and nobody else."""

import datetime as dt

import pytest
from django.utils import timezone

from marketplace import events
from marketplace.models import Event, Organization
from marketplace.states import EventKind
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db


def tell(organization: Organization, *, what: str, kind: EventKind, days_ago: int = 0) -> str:
    at = timezone.now() - dt.timedelta(days=days_ago)
    events.record(
        organization=organization,
        kind=kind,
        object_id=what,
        data={"why": "a test"},
        at=at,
        key=f"{what}:{kind}",
    )
    return Event.objects.get(key=f"{what}:{kind}").pk


class TestEvents:
    def test_are_listed_by_kind_and_by_object(
        self, api: ApiClient, organization: Organization
    ) -> None:
        scheduled = tell(organization, what="rsv_1", kind=EventKind.RESERVATION_SCHEDULED)
        ended = tell(organization, what="rsv_1", kind=EventKind.RESERVATION_ENDED)
        other = tell(organization, what="rsv_2", kind=EventKind.RESERVATION_SCHEDULED)

        def found(**query: object) -> set[str]:
            return {event["id"] for event in api.get("/v1/events", **query).json["data"]}

        assert found() == {scheduled, ended, other}
        assert found(kind="reservation.scheduled") == {scheduled, other}
        assert found(object_id="rsv_1") == {scheduled, ended}
        one = api.get(f"/v1/events/{ended}").json
        assert (one["kind"], one["data"]) == ("reservation.ended", {"why": "a test"})

    def test_are_shown_for_thirty_days(self, api: ApiClient, organization: Organization) -> None:
        old = tell(organization, what="rsv_1", kind=EventKind.RESERVATION_ENDED, days_ago=31)
        young = tell(organization, what="rsv_2", kind=EventKind.RESERVATION_ENDED, days_ago=29)
        assert [event["id"] for event in api.get("/v1/events").json["data"]] == [young]
        assert api.get(f"/v1/events/{old}").status == 404

    def test_of_others_stay_theirs(self, api: ApiClient, organization: Organization) -> None:
        told = tell(organization, what="rsv_1", kind=EventKind.RESERVATION_ENDED)
        _, secret = a_key(organization=an_organization())
        stranger = api.signed_in(secret=secret)
        assert stranger.get("/v1/events").json["data"] == []
        assert stranger.get(f"/v1/events/{told}").status == 404

    def test_of_no_such_kind_are_refused(self, api: ApiClient) -> None:
        answer = api.get("/v1/events", kind="reservation.exploded")
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/kind")
