"""`/v1/webhook-endpoints` over HTTP: the secret is shown once, and strangers see nothing."""

import pytest
from django.utils import timezone

from marketplace import deliveries, events
from marketplace.models import (
    Event,
    Organization,
    WebhookCall,
    WebhookDelivery,
    WebhookEndpoint,
)
from marketplace.states import EventKind, Scope
from tests.conftest import Answer, ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db
PATH = "/v1/webhook-endpoints"


def add(api: ApiClient, **body: object) -> Answer:
    return api.post(PATH, {"url": "https://hooks.example/a", **body})


class TestAnEndpoint:
    def test_shows_its_secret_once(self, api: ApiClient) -> None:
        made = add(api, kinds=["reservation.started"])
        assert made.status == 201
        secret = made.json["secret"]
        assert secret.startswith("whsec_")
        shown = {name: value for name, value in made.json.items() if name != "secret"}
        path = f"{PATH}/{shown['id']}"
        assert api.get(path).json == shown
        assert api.get(PATH).json["data"] == [shown]
        rotated = api.post(f"{path}/rotate-secret", {}).json
        assert rotated["secret"] != secret

    def test_is_taken_away(self, api: ApiClient) -> None:
        path = f"{PATH}/{add(api).json['id']}"
        assert api.call("DELETE", path).status == 204
        assert api.get(path).code == "not_found"
        assert api.call("DELETE", path).code == "not_found"

    def test_of_somebody_else_does_not_exist(self, api: ApiClient) -> None:
        path = f"{PATH}/{add(api).json['id']}"
        stranger = ApiClient(secret=a_key(organization=an_organization())[1])
        assert stranger.get(path).status == 404
        assert stranger.call("DELETE", path).status == 404
        assert stranger.post(f"{path}/rotate-secret", {}).status == 404
        assert stranger.post(f"{path}/enable", {}).status == 404

    def test_that_is_disabled_is_enabled_again(self, api: ApiClient) -> None:
        made = add(api).json
        WebhookEndpoint.objects.update(disabled_at=timezone.now(), disabled_because="gone")
        assert api.get(f"{PATH}/{made['id']}").json["disabled_because"] == "gone"
        answer = api.post(f"{PATH}/{made['id']}/enable", {})
        assert (answer.status, answer.json["disabled_at"]) == (200, None)

    def test_is_refused_where_nobody_calls(self, api: ApiClient) -> None:
        answer = add(api, url="http://user@hooks.example/")
        assert (answer.status, answer.code) == (422, "webhook_address_refused")
        assert answer.json["errors"][0]["pointer"] == "/url"
        assert add(api, kinds=["made.up"]).status == 422

    def test_is_one_of_a_few(self, api: ApiClient) -> None:
        for _ in range(deliveries.ENDPOINTS_MAX):
            assert add(api).status == 201
        assert add(api).code == "too_many_webhook_endpoints"

    def test_needs_the_scope_that_writes_bills(self, organization: Organization) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.BILLING_READ])
        assert add(ApiClient(secret=secret)).code == "scope_missing"


def test_an_event_is_replayed(api: ApiClient, organization: Organization) -> None:
    add(api)
    events.record(
        organization=organization,
        kind=EventKind.MONEY_PARKED,
        object_id="org_1",
        data={},
        at=timezone.now(),
        key="once",
    )
    answer = api.post(f"/v1/events/{Event.objects.get().pk}/replay", {})
    assert (answer.status, answer.json) == (200, {"endpoints": 1})
    assert api.post("/v1/events/evt_1/replay", {}).code == "not_found"


@pytest.fixture
def path(api: ApiClient, organization: Organization) -> str:
    """Return the address of an endpoint's deliveries: one is taken, one given up, one waits."""
    made = add(api).json["id"]
    for number in range(3):
        tell(organization, key=str(number))
    taken, given_up, _ = WebhookDelivery.objects.order_by("event_id")
    now = timezone.now()
    WebhookDelivery.objects.filter(pk=taken.pk).update(
        due_at=None, delivered_at=now, attempts=1, last_status=204
    )
    WebhookDelivery.objects.filter(pk=given_up.pk).update(
        due_at=None, attempts=10, last_answer="no answer within 10 s"
    )
    for _ in range(10):
        WebhookCall.objects.create(delivery=given_up, at=now, error="no answer within 10 s")
    return f"{PATH}/{made}/deliveries"


def tell(organization: Organization, *, key: str) -> None:
    events.record(
        organization=organization,
        kind=EventKind.MONEY_PARKED,
        object_id="org_1",
        data={},
        at=timezone.now(),
        key=key,
    )


class TestDeliveries:
    def test_are_listed_by_status_a_page_at_a_time(self, api: ApiClient, path: str) -> None:
        first = api.get(path, limit=2).json
        assert [row["status"] for row in first["data"]] == ["waiting", "given_up"]
        second = api.get(path, limit=2, cursor=first["next_cursor"]).json
        assert [row["status"] for row in second["data"]] == ["delivered"]
        assert second["next_cursor"] is None
        (waiting,) = api.get(path, status="waiting").json["data"]
        assert waiting == first["data"][0]
        assert (waiting["kind"], waiting["attempts"]) == ("money.parked", 0)
        assert waiting["next_attempt_at"] == waiting["at"]
        (taken,) = api.get(path, status="delivered").json["data"]
        assert (taken["response_status"], taken["error"]) == (204, None)
        assert taken["next_attempt_at"] is None
        assert api.get(path, status="lost").status == 422
        assert api.get(path, cursor="WyItaWQiLDFd").status == 422

    def test_show_the_calls_that_were_made(self, api: ApiClient, path: str) -> None:
        (row,) = api.get(path, status="given_up").json["data"]
        shown = api.get(f"{path}/{row['event_id']}").json
        calls = shown.pop("calls")
        assert shown == row
        assert len(calls) == row["attempts"] == 10
        assert calls[0]["response_status"] is None
        assert calls[0]["error"] == row["error"] == "no answer within 10 s"

    def test_are_sent_again_one_by_one(self, api: ApiClient, path: str) -> None:
        (row,) = api.get(path, status="given_up").json["data"]
        again = f"{path}/{row['event_id']}/resend"
        answer = api.post(again, {}, key="once-and-for-all")
        assert (answer.status, answer.json["status"]) == (200, "waiting")
        assert answer.json["attempts"] == 0
        assert len(api.get(path, status="waiting").json["data"]) == 2
        assert api.post(again, {}, key="once-and-for-all").json == answer.json
        WebhookEndpoint.objects.update(disabled_at=timezone.now(), disabled_because="operator")
        assert api.post(again, {}).code == "state_conflict"

    def test_of_somebody_else_do_not_exist(self, api: ApiClient, path: str) -> None:
        event_id = api.get(path).json["data"][0]["event_id"]
        stranger = ApiClient(secret=a_key(organization=an_organization())[1])
        assert stranger.get(path).status == 404
        assert stranger.get(f"{path}/{event_id}").status == 404
        assert stranger.post(f"{path}/{event_id}/resend", {}).status == 404
        assert api.get(f"{path}/evt_1").code == "not_found"

    def test_are_not_sent_again_without_the_scope_that_writes_bills(
        self, organization: Organization, path: str
    ) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.BILLING_READ])
        reader = ApiClient(secret=secret)
        event_id = reader.get(path).json["data"][0]["event_id"]
        assert reader.post(f"{path}/{event_id}/resend", {}).code == "scope_missing"
