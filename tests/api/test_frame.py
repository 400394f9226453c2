"""What every call of /v1 keeps to, whatever it is about."""

import json
import re

import pytest
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

from marketplace.api import documents
from marketplace.models import Organization
from marketplace.states import Scope
from tests.conftest import ApiClient
from tests.factories import LONG_AGO, a_key

pytestmark = pytest.mark.django_db


class TestMarket:
    def test_tells_the_rules_without_a_key(self, anybody: ApiClient) -> None:
        answer = anybody.get("/v1/market")
        assert answer.status == 200
        assert answer.json["grid_seconds"] == 3600
        assert answer.json["simulated_hardware"] is True
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", answer.json["now"])

    def test_marks_what_is_simulated(self, anybody: ApiClient, settings: Settings) -> None:
        assert anybody.get("/v1/market").headers["Headroom-Simulated"] == "hardware, payments"
        settings.ALLOW_SIMULATED_HARDWARE = False
        settings.SIMULATED_PAYMENTS = False
        assert "Headroom-Simulated" not in anybody.get("/v1/market").headers
        settings.SIMULATED_PAYMENTS = True
        assert anybody.get("/v1/market").headers["Headroom-Simulated"] == "payments"

    def test_refuses_a_parameter_that_it_does_not_know(self, anybody: ApiClient) -> None:
        answer = anybody.get("/v1/market", verbose=1)
        assert (answer.status, answer.code) == (422, "invalid_request")
        assert answer.json["errors"] == [
            {
                "pointer": "/verbose",
                "code": "unknown_field",
                "detail": "is not a field of this request",
            }
        ]


class TestProblem:
    def test_carries_the_request_id_of_its_header(self, anybody: ApiClient) -> None:
        answer = anybody.call("GET", "/v1/market", query={"x": 1}, headers={"X-Request-Id": "mine"})
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json["request_id"] == answer.headers["X-Request-Id"] != "mine"
        assert answer.json["type"] == "urn:headroom:problem:invalid_request"
        assert answer.json["status"] == 422

    def test_answers_an_unknown_address(self, anybody: ApiClient) -> None:
        answer = anybody.get("/v1/nothing-here")
        assert (answer.status, answer.code) == (404, "not_found")

    def test_answers_a_method_that_does_not_exist(self, anybody: ApiClient) -> None:
        answer = anybody.call("DELETE", "/v1/market")
        assert (answer.status, answer.code) == (405, "method_not_allowed")
        assert answer.headers["Allow"] == "GET"

    def test_answers_options_like_any_method_that_does_not_exist(self, anybody: ApiClient) -> None:
        assert anybody.call("OPTIONS", "/v1/market").code == "method_not_allowed"

    def test_answers_head_like_get(self, anybody: ApiClient) -> None:
        assert anybody.call("HEAD", "/v1/market").status == 200

    def test_answers_a_host_that_is_not_ours(self, anybody: ApiClient) -> None:
        answer = anybody.call("GET", "/v1/market", headers={"Host": "evil.example"})
        assert (answer.status, answer.code) == (400, "bad_request")

    def test_hides_what_went_wrong_inside(
        self, anybody: ApiClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fall_over(rules: object) -> None:
            raise ZeroDivisionError("secret internals")

        monkeypatch.setattr("marketplace.api.market.MarketSerializer", fall_over)
        answer = anybody.get("/v1/market")
        assert (answer.status, answer.code) == (500, "internal_error")
        assert b"secret internals" not in answer.content


class TestDocument:
    def test_is_current(self) -> None:
        call_command("export_schema", "--check")

    def test_is_found_stale(self, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
        monkeypatch.setattr(
            documents, "COMMITTED", type(documents.COMMITTED)(str(tmp_path)) / "openapi.json"
        )
        with pytest.raises(CommandError, match="not current"):
            call_command("export_schema", "--check")

    def test_is_served_as_it_was_committed(self, anybody: ApiClient) -> None:
        assert anybody.get("/v1/openapi.json").json == json.loads(documents.COMMITTED.read_bytes())

    def test_page_loads_nothing_from_another_host(self, anybody: ApiClient) -> None:
        page = anybody.get("/v1/docs")
        assert page.status == 200
        links = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.content.decode())
        assert links
        assert all(link.startswith("/static/drf_spectacular_sidecar/") for link in links)

    def test_page_says_what_is_simulated_and_only_then(
        self, anybody: ApiClient, settings: Settings
    ) -> None:
        assert b"Simulated hardware and payments." in anybody.get("/v1/docs").content
        settings.ALLOW_SIMULATED_HARDWARE = settings.SIMULATED_PAYMENTS = False
        assert b"Simulated" not in anybody.get("/v1/docs").content


class TestKey:
    def test_is_asked_for(self, anybody: ApiClient) -> None:
        answer = anybody.get("/v1/wallet")
        assert (answer.status, answer.code) == (401, "api_key_required")
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="headroom"'

    @pytest.mark.parametrize(
        "header",
        ["Bearer", "Bearer x", "Basic dTpw", "hr_live_x", "Bearer " + "x" * 9000, "Bearer ü"],
    )
    def test_is_refused_when_it_is_none(self, anybody: ApiClient, header: str) -> None:
        answer = anybody.call("GET", "/v1/wallet", headers={"Authorization": header})
        assert (answer.status, answer.code) == (401, "invalid_api_key")
        assert "invalid_token" in answer.headers["WWW-Authenticate"]

    def test_is_refused_on_a_public_address_as_well(self, anybody: ApiClient) -> None:
        answer = anybody.call(
            "GET", "/v1/market", headers={"Authorization": "Bearer hr_live_wrong"}
        )
        assert answer.code == "invalid_api_key"

    def test_is_refused_after_its_expiry(
        self, organization: Organization, anybody: ApiClient
    ) -> None:
        _, secret = a_key(organization=organization, expires_at=LONG_AGO.replace(day=2))
        assert anybody.signed_in(secret=secret).get("/v1/wallet").code == "invalid_api_key"

    def test_is_refused_without_the_scope(
        self, organization: Organization, anybody: ApiClient
    ) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.OWNER_READ])
        answer = anybody.signed_in(secret=secret).get("/v1/wallet")
        assert (answer.status, answer.code) == (403, "scope_missing")
        assert answer.json["scope"] == "billing:read"


class TestRate:
    def test_runs_out_and_says_when_to_come_back(
        self, anybody: ApiClient, settings: Settings
    ) -> None:
        settings.KEYLESS_CALLS_PER_MINUTE = 2
        assert [anybody.get("/v1/market").status for _ in range(3)] == [200, 200, 429]
        answer = anybody.get("/v1/market")
        assert answer.code == "rate_limited"
        assert 1 <= int(answer.headers["Retry-After"]) <= 30

    def test_of_one_caller_is_not_anothers(
        self, anybody: ApiClient, api: ApiClient, settings: Settings
    ) -> None:
        settings.KEYLESS_CALLS_PER_MINUTE = 1
        assert [anybody.get("/v1/market").status for _ in range(2)] == [200, 429]
        assert api.get("/v1/market").status == 200
