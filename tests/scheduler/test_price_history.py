"""History: what an hour cost as seen from each day before it; and what of it is kept."""

import datetime as dt
from decimal import Decimal

import pytest
from django.test import Client

from agents.models import Node
from marketplace import catalog
from marketplace.catalog import NoSuchModel
from marketplace.core.errors import DomainError
from marketplace.states import Tier
from scheduler.models import PriceVersion
from scheduler.pool_keys import PoolKey
from scheduler.prices import history, refresh, retention
from tests.conftest import ApiClient
from tests.scheduler.factories import (
    MODEL,
    NOW,
    REGION,
    hours,
    make_pool,
    make_quote,
    make_reservation,
    window_in,
)

pytestmark = pytest.mark.django_db
KEY = PoolKey(gpu_model_id=MODEL, region=REGION, tier=Tier.FIRM)


def refreshed(at: dt.datetime) -> None:
    Node.objects.update(last_report_at=at)
    refresh.refresh_due(at=at)


class TestHour:
    def test_is_seen_from_each_day_before_it(self) -> None:
        make_pool()
        make_reservation(gpus=8, window=window_in(48))
        for day in range(3):
            refreshed(NOW + hours(24 * day))

        seen = history.of_hour(key=KEY, hour=NOW + hours(48), days=3, at=NOW + hours(60))

        assert [(each.days_before, each.rate) for each in seen] == [
            (3, None),
            (2, Decimal("2.470589")),
            (1, Decimal("2.594118")),
            (0, Decimal("2.723823")),
        ]

    def test_that_is_ahead_is_seen_up_to_now(self) -> None:
        make_pool()
        refreshed(NOW)

        seen = history.of_hour(key=KEY, hour=NOW + hours(100), days=1, at=NOW + hours(1))

        assert [(each.seen_at, each.days_before) for each in seen] == [
            (NOW - hours(44), 6),
            (NOW - hours(20), 5),
            (NOW + hours(1), 4),
        ]
        assert seen[-1].rate == Decimal("2.352942")

    @pytest.mark.parametrize(
        ("hour", "days", "code"),
        [
            (NOW + dt.timedelta(minutes=1), 1, "off_grid"),
            (NOW + dt.timedelta(days=181), 1, "invalid_value"),
            (NOW, 181, "invalid_value"),
        ],
    )
    def test_must_be_one_that_has_prices(self, hour: dt.datetime, days: int, code: str) -> None:
        catalog.seed_gpu_models()

        with pytest.raises(DomainError) as refusal:
            history.of_hour(key=KEY, hour=hour, days=days, at=NOW)

        assert refusal.value.code == code

    def test_must_be_of_a_known_model(self) -> None:
        with pytest.raises(NoSuchModel):
            history.of_hour(
                key=PoolKey(gpu_model_id="h900", region=REGION, tier=Tier.FIRM),
                hour=NOW,
                days=1,
                at=NOW,
            )


class TestApi:
    def test_answers_without_a_key(self, anybody: ApiClient) -> None:
        make_pool()
        refreshed(NOW)

        answer = anybody.get(
            "/v1/price-history", gpu_model=MODEL, region=REGION, hour="2026-11-23T12:00:00Z", days=2
        )

        assert answer.status == 200
        assert [point["rate"] for point in answer.json["data"]] == [None, None, "2.352942"]

    def test_refuses_what_it_does_not_know(self, anybody: ApiClient) -> None:
        for query, status in (
            ({"gpu_model": "h900", "region": REGION}, 422),
            ({"gpu_model": MODEL}, 422),
            ({"gpu_model": MODEL, "region": REGION, "days": "181"}, 422),
            ({"gpu_model": MODEL, "region": REGION, "hour": "2026-11-23T12:30:00Z"}, 422),
        ):
            assert anybody.get("/v1/price-history", **query).status == status


class TestPage:
    def test_draws_both_charts_and_runs_no_script(self, client: Client) -> None:
        make_pool()
        refreshed(NOW)

        answer = client.get("/prices")

        text = answer.content.decode()
        assert answer.status_code == 200
        assert text.count("<svg") == 2
        assert "script" not in answer["Content-Security-Policy"]
        assert "<script" not in text
        assert "style=" not in text

    def test_says_that_there_are_no_prices_yet(self, client: Client) -> None:
        assert "No pool has a price table yet" in client.get("/prices").content.decode()

    @pytest.mark.parametrize(
        "query", ["gpu_model=h900&region=x&tier=firm", "hour=tea", "hour=1970-01-01T00:00"]
    )
    def test_knows_no_other_pool_and_no_other_hour(self, client: Client, query: str) -> None:
        assert client.get(f"/prices?{query}").status_code == 404


class TestRetention:
    def test_keeps_one_a_day_and_what_was_quoted_by(self) -> None:
        make_pool()
        for hour in range(4):
            refreshed(NOW + hours(hour))
        quoted = make_quote(at=NOW + hours(2)).price_version_id
        refreshed(NOW + hours(24))
        ids = list(PriceVersion.objects.order_by("number").values_list("pk", flat=True))

        assert retention.thin_out(at=NOW + dt.timedelta(days=90)) == 0
        later = NOW + dt.timedelta(days=retention.KEPT_DAYS + 2)
        assert retention.thin_out(at=later) == 2
        assert retention.thin_out(at=later) == 0

        kept = list(PriceVersion.objects.order_by("number").values_list("pk", flat=True))
        assert kept == [ids[0], quoted, ids[4]]
