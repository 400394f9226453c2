"""`POST /v1/quotes` and `GET /v1/quotes/{id}`."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone

from marketplace.core.money import amount_for
from marketplace.core.windows import format_instant
from marketplace.models import IdempotencyRecord, Organization
from marketplace.states import Scope
from scheduler.models import Allocation, DemandSample, Quote
from scheduler.prices import refresh
from tests.api.world import a_fleet, a_new_key, a_quote, a_window, a_wish
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db


class TestCreate:
    def test_locks_a_price_that_anyone_can_recompute(self, api: ApiClient) -> None:
        a_fleet()
        answer = api.post("/v1/quotes", a_wish(gpus=4))
        assert answer.status == 201
        quote = answer.json
        assert quote["id"].startswith("qte_")
        assert (quote["status"], quote["held"], quote["simulated"]) == ("open", False, True)
        total = amount_for(rate=Decimal(quote["rate"]), gpu_seconds=4 * 3600, currency="usd")
        assert quote["total"] == {"amount_minor": total.amount_minor, "currency": "usd"}
        assert quote["price_breakdown"]["rate"] == quote["rate"]
        detail = api.get(f"/v1/quotes/{quote['id']}").json
        assert detail == quote | {"price_inputs": None}  # the pool has no table yet

    def test_names_every_input_of_its_hours(self, api: ApiClient) -> None:
        a_fleet()
        refresh.refresh_due(at=timezone.now())
        quote = a_quote(api, gpus=4)

        inputs = api.get(f"/v1/quotes/{quote['id']}").json["price_inputs"]

        assert inputs["price_table"] == quote["price_breakdown"]["price_table"]
        assert inputs["floors"] == ["2.000000"]
        (hours,) = inputs["hours"]
        assert (hours["hours"], hours["gpus_sold"]) == (1, 0)
        assert hours["gpus_on_offer_by_floor"] == [8]
        # By hand: the base is 2.00 / .85; an idle hour is .93 of it, but not under the floor with the fee.
        assert inputs["base_rate"] == hours["rate"] == hours["target_rate"] == "2.352942"

    @pytest.mark.parametrize(
        ("changes", "kind"),
        [({}, "quote"), ({"gpus": 500}, "refusal"), ({"max_rate": "1.000000"}, "refusal")],
    )
    def test_is_sampled_as_demand(self, api: ApiClient, changes: dict[str, Any], kind: str) -> None:
        a_fleet()
        api.post("/v1/quotes", a_wish(**changes))
        api.post("/v1/quotes", a_wish(**changes, hold=True), key=a_new_key())
        assert DemandSample.objects.get().kind == kind

    def test_that_makes_no_sense_is_no_demand(self, api: ApiClient) -> None:
        a_fleet()
        api.post("/v1/quotes", a_wish(starts_at="2020-01-01T00:00:00Z"))
        assert not DemandSample.objects.exists()

    def test_with_hold_keeps_the_gpus(self, api: ApiClient) -> None:
        a_fleet(gpus=2)
        quote = a_quote(api, gpus=2, hold=True)
        assert quote["held"] is True
        answer = api.post("/v1/quotes", a_wish(gpus=1))
        assert (answer.status, answer.code) == (409, "not_enough_capacity")
        assert answer.json["request_id"]

    def test_with_hold_needs_a_key(self, api: ApiClient) -> None:
        a_fleet()
        answer = api.post("/v1/quotes", a_wish(hold=True))
        assert (answer.status, answer.code) == (400, "idempotency_key_required")
        assert not Quote.objects.exists()

    def test_with_hold_holds_once_per_key(self, api: ApiClient) -> None:
        a_fleet(gpus=8)
        key, wish = a_new_key(), a_wish(gpus=2, hold=True)
        first, again = (api.post("/v1/quotes", wish, key=key) for _ in range(2))
        assert first.content == again.content
        assert again.headers["Idempotent-Replayed"] == "true"
        assert Allocation.objects.count() == 1

    def test_takes_now_as_a_start(self, api: ApiClient) -> None:
        a_fleet()
        window = a_window(in_hours=1)
        quote = a_quote(api, starts_at="now", ends_at=format_instant(window.ends_at))
        assert quote["starts_at"] < format_instant(window.starts_at)

    def test_refuses_a_rate_above_the_maximum(self, api: ApiClient) -> None:
        a_fleet(floor_rate="2.00")
        answer = api.post("/v1/quotes", a_wish(max_rate="2.000000"))
        assert (answer.status, answer.code) == (409, "price_above_max")


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    *[({"gpus": bad}, "/gpus", "out_of_range") for bad in (0, -1, 10**9, 10**17)],
    ({"gpus": "8"}, "/gpus", "wrong_type"),
    ({"gpus": 1.5}, "/gpus", "wrong_type"),
    ({"gpus": 8.0}, "/gpus", "wrong_type"),
    ({"gpus": True}, "/gpus", "wrong_type"),
    ({"gpus": []}, "/gpus", "wrong_type"),
    ({"gpus": {}}, "/gpus", "wrong_type"),
    ({"gpus": None}, "/gpus", "null"),
    ({"gpus": ...}, "/gpus", "required"),
    ({"gpu_model": 7}, "/gpu_model", "wrong_type"),
    ({"gpu_model": ""}, "/gpu_model", "blank"),
    ({"gpu_model": "x" * 61}, "/gpu_model", "too_long"),
    ({"gpu_model": "a\x00b"}, "/gpu_model", "unstorable"),
    ({"gpu_model": "\ud800"}, "/gpu_model", "unstorable"),
    ({"starts_at": "tomorrow"}, "/starts_at", "wrong_form"),
    ({"starts_at": 1764000000}, "/starts_at", "wrong_form"),
    ({"starts_at": "2026-13-01T00:00:00Z"}, "/starts_at", "wrong_form"),
    ({"starts_at": "2026-12-01T00:00:00+01:00"}, "/starts_at", "wrong_form"),
    ({"starts_at": "2026-12-01T00:00:00"}, "/starts_at", "wrong_form"),
    ({"starts_at": "2026-12-01 00:00:00Z"}, "/starts_at", "wrong_form"),
    ({"starts_at": "9999-12-31T23:00:00Z"}, "/starts_at", "out_of_range"),
    ({"ends_at": "now"}, "/ends_at", "wrong_form"),
    ({"ends_at": "0001-01-01T00:00:00Z"}, "/ends_at", "out_of_range"),
    ({"tier": "gold"}, "/tier", "invalid_choice"),
    ({"tier": ["firm"]}, "/tier", "invalid_choice"),
    ({"spread": "wide"}, "/spread", "invalid_choice"),
    ({"max_rate": 2.5}, "/max_rate", "wrong_type"),
    ({"max_rate": 2}, "/max_rate", "wrong_type"),
    *[
        ({"max_rate": bad}, "/max_rate", "wrong_form")
        for bad in ("NaN", "1e3", "-1", "2.1234567", "", " 2", "٢", "Infinity")
    ],
    ({"max_rate": "0"}, "/max_rate", "out_of_range"),
    ({"max_rate": "100000"}, "/max_rate", "out_of_range"),
    ({"hold": "true"}, "/hold", "wrong_type"),
    ({"hold": 1}, "/hold", "wrong_type"),
    ({"colour": "red"}, "/colour", "unknown_field"),
    ({"a/b~c": 1}, "/a~1b~0c", "unknown_field"),
    ({"id": "qte_1"}, "/id", "unknown_field"),
]


class TestBadField:
    @pytest.mark.parametrize(("changes", "pointer", "code"), BAD_FIELDS)
    def test_is_named_and_nothing_is_stored(
        self, api: ApiClient, changes: dict[str, Any], pointer: str, code: str
    ) -> None:
        a_fleet()
        answer = api.post("/v1/quotes", a_wish(**changes), key=a_new_key())
        assert (answer.status, answer.code) == (422, "invalid_request")
        assert [(e["pointer"], e["code"]) for e in answer.json["errors"]] == [(pointer, code)]
        assert not Quote.objects.exists()
        assert not IdempotencyRecord.objects.exists()

    def test_is_named_beside_every_other(self, api: ApiClient) -> None:
        answer = api.post("/v1/quotes", {"gpus": 0, "colour": "red"})
        pointers = {error["pointer"] for error in answer.json["errors"]}
        assert pointers == {"/gpus", "/colour", "/gpu_model", "/starts_at", "/ends_at"}

    @pytest.mark.parametrize("body", [[], "x", 7, [{}], False])
    def test_is_the_body_itself_when_it_is_no_object(self, api: ApiClient, body: object) -> None:
        answer = api.post("/v1/quotes", body)
        assert (answer.status, answer.code) == (422, "invalid_request")
        assert answer.json["errors"][0] == {
            "pointer": "",
            "code": "wrong_type",
            "detail": "must be an object",
        }


class TestRefusal:
    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"gpu_model": "h900"}, "no_such_model"),
            ({"starts_at": "2020-01-01T00:00:00Z"}, "window_in_past"),
            ({"ends_at": "2020-01-01T00:00:00Z"}, "window_upside_down"),
            ({"ends_at": "2200-01-01T00:00:00Z"}, "beyond_horizon"),
        ],
    )
    def test_of_a_window_or_model_has_its_code(
        self, api: ApiClient, changes: dict[str, Any], code: str
    ) -> None:
        a_fleet()
        answer = api.post("/v1/quotes", a_wish(**changes))
        assert (answer.status, answer.code) == (422, code)
        assert "+00:00" not in answer.json["detail"]
        assert not Quote.objects.exists()

    def test_of_a_window_off_the_grid_names_the_end(self, api: ApiClient) -> None:
        a_fleet()
        window = a_window()
        ends_at = format_instant(window.ends_at + dt.timedelta(seconds=1))
        answer = api.post("/v1/quotes", a_wish(window=window, ends_at=ends_at))
        assert (answer.status, answer.code) == (422, "off_grid")
        assert answer.json["errors"][0]["pointer"] == "/ends_at"

    def test_of_too_many_gpus_is_a_conflict(self, api: ApiClient) -> None:
        a_fleet(gpus=8)
        answer = api.post("/v1/quotes", a_wish(gpus=9))
        assert (answer.status, answer.code) == (409, "not_enough_capacity")

    def test_of_a_key_without_the_scope(
        self, organization: Organization, anybody: ApiClient
    ) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.RESERVATIONS_READ])
        answer = anybody.signed_in(secret=secret).post("/v1/quotes", a_wish())
        assert (answer.status, answer.json["scope"]) == (403, "reservations:write")


class TestGet:
    @pytest.mark.parametrize("quote_id", ["qte_0", "rsv_1", "%00", "..", "x" * 500, "qte_%2e", "1"])
    def test_does_not_find_what_is_not_there(self, api: ApiClient, quote_id: str) -> None:
        answer = api.get(f"/v1/quotes/{quote_id}")
        assert (answer.status, answer.code) == (404, "not_found")

    def test_does_not_find_what_is_somebody_elses(self, api: ApiClient) -> None:
        a_fleet()
        quote = a_quote(api)
        _, secret = a_key(organization=an_organization())
        stranger = api.signed_in(secret=secret)
        nobodys, somebodys = (
            stranger.get("/v1/quotes/qte_0"),
            stranger.get(f"/v1/quotes/{quote['id']}"),
        )
        assert nobodys.status == somebodys.status == 404
        assert {**nobodys.json, "request_id": ""} == {**somebodys.json, "request_id": ""}

    def test_says_expired_before_any_task_has_noted_it(self, api: ApiClient) -> None:
        a_fleet()
        quote = a_quote(api, hold=True)
        Quote.objects.update(expires_at=timezone.now())
        answer = api.get(f"/v1/quotes/{quote['id']}")
        assert (answer.json["status"], answer.json["held"]) == ("expired", False)
