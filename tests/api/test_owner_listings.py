"""Listings over HTTP: what an owner may wish, and what bad input gets."""

from typing import Any

import pytest

from marketplace import catalog
from marketplace.models import Listing, Organization
from marketplace.states import Scope
from tests.api import world
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization
from tests.marketplace.factories import a_tenant

pytestmark = pytest.mark.django_db


def a_body(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": "H100s",
        "selector": {"gpu_model": "h100-sxm-80gb", "region": "us-east"},
        "starts_at": "now",
        "floor_rate": "2.000000",
    }
    return {name: value for name, value in (body | changes).items() if value is not ...}


# Each body that makes no sense, with the code and the place that the answer names.
NONSENSE = [
    ({"floor_rate": "0"}, "invalid_request", "/floor_rate"),
    ({"floor_rate": "-1"}, "invalid_request", "/floor_rate"),
    ({"floor_rate": "NaN"}, "invalid_request", "/floor_rate"),
    ({"floor_rate": "1e3"}, "invalid_request", "/floor_rate"),
    ({"floor_rate": "2.0000001"}, "invalid_request", "/floor_rate"),
    ({"floor_rate": 2.5}, "invalid_request", "/floor_rate"),
    ({"floor_rate": ...}, "invalid_request", "/floor_rate"),
    ({"name": ""}, "invalid_request", "/name"),
    ({"name": "   "}, "invalid_value", "/name"),
    ({"name": 7}, "invalid_request", "/name"),
    ({"name": "a\x00b"}, "invalid_request", "/name"),
    ({"selector": {}}, "invalid_request", "/selector/gpu_model"),
    ({"selector": None}, "invalid_request", "/selector"),
    ({"selector": {"gpu_model": "h900"}}, "no_such_model", "/selector/gpu_model"),
    (
        {"selector": {"gpu_model": "h100-sxm-80gb", "rack": "7"}},
        "invalid_request",
        "/selector/rack",
    ),
    (
        {"selector": {"gpu_model": "h100-sxm-80gb", "labels": {"rack": 7}}},
        "invalid_request",
        "/selector/labels",
    ),
    ({"starts_at": "2026-11-23"}, "invalid_request", "/starts_at"),
    ({"starts_at": "2026-11-23T12:00:00+01:00"}, "invalid_request", "/starts_at"),
    ({"ends_at": "2020-01-01T00:00:00Z"}, "listing_period_invalid", "/ends_at"),
    ({"tier": "gold"}, "invalid_request", "/tier"),
    ({"tier": "reclaimable"}, "reclaim_notice_invalid", "/reclaim_notice"),
    ({"reclaim_notice": "1h"}, "reclaim_notice_invalid", "/reclaim_notice"),
    ({"min_duration": "2h", "max_duration": "1h"}, "listing_durations_invalid", "/max_duration"),
    ({"min_duration": 7200}, "invalid_request", "/min_duration"),
    ({"turnaround": "25h"}, "listing_turnaround_invalid", "/turnaround"),
    ({"turnaround": 300}, "invalid_request", "/turnaround"),
    ({"min_gpus": 0}, "invalid_request", "/min_gpus"),
    ({"min_gpus": "8"}, "invalid_request", "/min_gpus"),
    ({"min_gpus": 8.0}, "invalid_request", "/min_gpus"),
    ({"mode": "sometimes"}, "invalid_request", "/mode"),
    ({"mode": {"when_idle": {}}}, "invalid_request", "/mode/when_idle/idle_for"),
    (
        {"mode": {"when_idle": {"idle_for": "30d", "rolling": "24h"}}},
        "listing_mode_invalid",
        "/mode/when_idle/idle_for",
    ),
    ({"blackouts": "never"}, "invalid_request", "/blackouts"),
    (
        {"blackouts": [{"starts_at": "2027-01-02T00:00:00Z", "ends_at": "2027-01-01T00:00:00Z"}]},
        "invalid_request",
        "/blackouts/0/ends_at",
    ),
    ({"colour": "blue"}, "invalid_request", "/colour"),
]


class TestCreate:
    def test_answers_the_whole_wish_as_a_draft(self, api: ApiClient) -> None:
        answer = api.post(
            "/v1/listings",
            a_body(
                ends_at="2099-01-01T00:00:00Z",
                tier="reclaimable",
                reclaim_notice="1h",
                min_duration="1h",
                max_duration="P2D",
                min_gpus=8,
                turnaround="PT5M",
                mode={"when_idle": {"idle_for": "30m", "rolling": "1d"}},
                blackouts=[
                    {"starts_at": "2027-01-01T00:00:00Z", "ends_at": "2027-01-02T00:00:00Z"}
                ],
            ),
        )
        assert answer.status == 201
        listing = answer.json
        assert listing["status"] == "draft"
        assert listing["selector"] == {
            "gpu_model": "h100-sxm-80gb",
            "region": "us-east",
            "fabric": None,
            "labels": {},
        }
        assert (listing["reclaim_notice"], listing["max_duration"]) == ("PT1H", "PT48H")
        assert listing["turnaround"] == "PT5M"
        assert listing["mode"] == {"when_idle": {"idle_for": "PT30M", "rolling": "PT24H"}}
        assert api.get(f"/v1/listings/{listing['id']}").json == listing

    @pytest.mark.parametrize(("part", "code", "pointer"), NONSENSE)
    def test_refuses_nonsense_and_stores_nothing(
        self, api: ApiClient, part: dict[str, Any], code: str, pointer: str
    ) -> None:
        answer = api.post("/v1/listings", a_body(**part))
        assert (answer.status, answer.code) == (422, code)
        assert pointer in [error["pointer"] for error in answer.json["errors"]]
        assert not Listing.objects.exists()

    def test_refuses_an_organization_that_only_buys(self, anybody: ApiClient) -> None:
        _, secret = a_key(organization=a_tenant())
        answer = anybody.signed_in(secret=secret).post("/v1/listings", a_body())
        assert (answer.status, answer.code) == (403, "not_an_owner")

    def test_makes_one_listing_of_a_call_that_is_repeated(self, api: ApiClient) -> None:
        first = api.post("/v1/listings", a_body(starts_at="2027-01-01T00:00:00Z"), key="once")
        again = api.post("/v1/listings", a_body(starts_at="2027-01-01T00:00:00Z"), key="once")
        assert again.json == first.json
        assert again.headers["Idempotent-Replayed"] == "true"
        assert Listing.objects.count() == 1

    def test_needs_the_scope_to_write(self, organization: Organization) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.OWNER_READ])
        answer = ApiClient(secret=secret).post("/v1/listings", a_body())
        assert (answer.status, answer.code) == (403, "scope_missing")


class TestChange:
    def test_changes_what_it_names_and_nothing_else(self, api: ApiClient) -> None:
        listing = api.post("/v1/listings", a_body(min_gpus=4, min_duration="1h")).json
        answer = api.patch(
            f"/v1/listings/{listing['id']}",
            {
                "floor_rate": "2.5",
                "selector": {"region": None},
                "min_duration": None,
                "turnaround": "90m",
            },
        )
        assert answer.status == 200
        changed = answer.json
        assert changed["floor_rate"] == "2.500000"
        assert changed["selector"]["region"] is None
        assert changed["selector"]["gpu_model"] == "h100-sxm-80gb"
        assert changed["min_duration"] is None
        assert (listing["turnaround"], changed["turnaround"]) == (None, "PT1H30M")
        assert changed["min_gpus"] == 4

    @pytest.mark.parametrize(
        "body",
        [{"status": "published"}, {"currency": "eur"}, {"id": "lst_1"}, {"floor_rate": None}],
    )
    def test_refuses_what_nobody_may_set(self, api: ApiClient, body: dict[str, Any]) -> None:
        listing = api.post("/v1/listings", a_body()).json
        answer = api.patch(f"/v1/listings/{listing['id']}", body)
        assert (answer.status, answer.code) == (422, "invalid_request")

    def test_refuses_a_retired_listing(self, api: ApiClient) -> None:
        listing = api.post("/v1/listings", a_body()).json
        api.post(f"/v1/listings/{listing['id']}/retire", {})
        answer = api.patch(f"/v1/listings/{listing['id']}", {"min_gpus": 2})
        assert (answer.status, answer.code) == (409, "state_conflict")


class TestMoves:
    def test_publish_pause_and_retire(self, api: ApiClient) -> None:
        listing = api.post("/v1/listings", a_body()).json
        for verb, status in (
            ("publish", "published"),
            ("pause", "paused"),
            ("publish", "published"),
            ("retire", "retired"),
        ):
            answer = api.post(f"/v1/listings/{listing['id']}/{verb}")
            assert (answer.status, answer.json["status"]) == (200, status)

    def test_refuse_what_is_no_arrow(self, api: ApiClient) -> None:
        listing = api.post("/v1/listings", a_body()).json
        answer = api.post(f"/v1/listings/{listing['id']}/pause", {})
        assert (answer.status, answer.code) == (409, "state_conflict")

    def test_refuse_a_body(self, api: ApiClient) -> None:
        listing = api.post("/v1/listings", a_body()).json
        answer = api.post(f"/v1/listings/{listing['id']}/publish", {"now": True})
        assert (answer.status, answer.code) == (422, "invalid_request")


class TestSee:
    def test_lists_by_status_and_model_in_pages(self, api: ApiClient) -> None:
        catalog.seed_gpu_models()
        made = [api.post("/v1/listings", a_body(name=f"n{n}")).json["id"] for n in range(3)]
        api.post(f"/v1/listings/{made[0]}/publish", {})
        first = api.get("/v1/listings", limit=2).json
        rest = api.get("/v1/listings", limit=2, cursor=first["next_cursor"]).json
        assert [row["id"] for row in first["data"] + rest["data"]] == made[::-1]
        assert rest["next_cursor"] is None
        published = api.get("/v1/listings", status="published").json["data"]
        assert [row["id"] for row in published] == made[:1]
        assert api.get("/v1/listings", gpu_model="l40s-48gb").json["data"] == []

    @pytest.mark.parametrize("path", ["", "/publish", "/pause", "/retire"])
    def test_answers_a_stranger_as_if_there_were_nothing(self, api: ApiClient, path: str) -> None:
        listing = api.post("/v1/listings", a_body()).json
        _, secret = a_key(organization=an_organization())
        stranger = ApiClient(secret=secret)
        for listing_id in (listing["id"], "lst_00000000000000000000000000"):
            address = f"/v1/listings/{listing_id}{path}"
            answer = stranger.post(address, {}) if path else stranger.get(address)
            assert (answer.status, answer.code) == (404, "not_found")
        assert stranger.get("/v1/listings").json["data"] == []


class TestSold:
    def test_shows_what_is_sold_in_a_blackout_and_until_when_machines_are_bound(
        self, anybody: ApiClient
    ) -> None:
        machine = world.a_fleet(gpus=4)
        tenant = an_organization()
        _, secret = a_key(organization=tenant)
        world.fund(tenant)
        reservation = world.a_reservation(anybody.signed_in(secret=secret))
        _, secret = a_key(organization=machine.organization)
        owner = anybody.signed_in(secret=secret)
        (listing,) = owner.get("/v1/listings").json["data"]
        assert (listing["sold_until"], listing["sold_in_blackouts"]) == (
            reservation["ends_at"],
            [],
        )

        window = {name: reservation[name] for name in ("starts_at", "ends_at")}
        changed = owner.patch(f"/v1/listings/{listing['id']}", {"blackouts": [window]}).json

        (sold,) = changed["sold_in_blackouts"]
        assert sold == {"node_id": machine.id, "gpus": 2, "lease_id": None, **window}
        assert changed["sold_in_blackouts_total"] == 1
        assert changed["blackouts"] == [window]
