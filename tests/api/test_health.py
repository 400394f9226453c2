"""`/healthz`, `/readyz` and `/metrics`."""

import pytest
from django.db import DatabaseError
from pytest_django.fixtures import Settings

from marketplace.api import health
from tests.api.world import a_fleet
from tests.conftest import ApiClient

pytestmark = pytest.mark.django_db


class TestHealthz:
    def test_answers_while_the_process_lives(self, anybody: ApiClient) -> None:
        assert anybody.get("/healthz").json == {"status": "ok"}

    def test_is_only_read(self, anybody: ApiClient) -> None:
        assert anybody.call("POST", "/healthz").status == 405


class TestReadyz:
    def test_is_ready_with_database_broker_and_migrations(self, anybody: ApiClient) -> None:
        answer = anybody.get("/readyz")
        assert answer.status == 200
        assert answer.json["checks"] == {"database": "ok", "broker": "ok", "migrations": "ok"}

    def test_is_not_ready_without_a_broker(self, anybody: ApiClient, settings: Settings) -> None:
        settings.CELERY_BROKER_URL = "redis+socket:///nowhere/broker.sock"
        answer = anybody.get("/readyz")
        assert answer.status == 503
        assert answer.json["checks"]["broker"] == "does not answer"

    def test_is_not_ready_without_a_database(
        self, anybody: ApiClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def be_away() -> None:
            raise DatabaseError("secret address")

        monkeypatch.setitem(health._CHECKS, "database", be_away)
        answer = anybody.get("/readyz")
        assert (answer.status, answer.json["checks"]["database"]) == (503, "does not answer")
        assert b"secret" not in answer.content

    def test_is_not_ready_before_the_migrations(
        self, anybody: ApiClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def plan(*_arguments: object) -> list[str]:
            return ["one", "two"]

        monkeypatch.setattr("marketplace.api.health.MigrationExecutor.migration_plan", plan)
        answer = anybody.get("/readyz")
        assert answer.status == 503
        assert answer.json["checks"]["migrations"] == "2 migrations have not been applied"


class TestMetrics:
    def test_count_requests_by_route_and_gpus_by_health(self, anybody: ApiClient) -> None:
        a_fleet(gpus=3)
        anybody.get("/v1/market")
        anybody.get("/v1/no-such-address")
        text = anybody.get("/metrics").content.decode()
        assert 'headroom_http_requests_total{method="GET",route="v1/market",status="200"}' in text
        assert 'route="unmatched",status="404"' in text
        assert 'headroom_gpus{state="healthy"} 3.0' in text
        assert "headroom_database_up 1.0" in text
        assert 'headroom_books_differences{kind="intent_unknown"} 0.0' in text
        assert 'headroom_books_differences_limit_seconds{kind="clearing_open"} 3600.0' in text
        assert 'headroom_books_waiting_oldest_seconds{kind="parked_organization"} 0.0' in text

    def test_are_served_without_the_database(
        self, anybody: ApiClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def be_away(_self: object) -> None:
            raise DatabaseError

        monkeypatch.setattr("marketplace.api.metrics.MarketCollector._counts", be_away)
        text = anybody.get("/metrics").content.decode()
        assert "headroom_database_up 0.0" in text
