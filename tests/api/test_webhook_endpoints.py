"""`/v1/webhook-endpoints` over HTTP: the secret is shown once, and strangers see nothing."""

import pytest
from django.utils import timezone

from marketplace import deliveries, events
from marketplace.models import Event, Organization, WebhookEndpoint
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
