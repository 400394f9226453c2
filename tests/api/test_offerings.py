"""What is for sale: the catalogue, offerings, the price curve."""

import datetime as dt
from typing import Any

import pytest

from marketplace.core.windows import format_instant
from scheduler.models import DemandSample
from tests.api.world import MODEL, a_fleet, a_quote, a_window
from tests.conftest import ApiClient

pytestmark = pytest.mark.django_db


class TestGpuModels:
    def test_tell_what_is_listed_and_free(self, api: ApiClient, anybody: ApiClient) -> None:
        a_fleet(gpus=8, floor_rate="2.00")
        models = {model["id"]: model for model in anybody.get("/v1/gpu-models").json["data"]}
        h100 = models[MODEL]
        assert (h100["gpus_listed"], h100["gpus_free_now"]) == (8, 8)
        assert (h100["regions"], h100["simulated"]) == (["eu-north"], True)
        assert h100["rate_from"] is not None
        other = models["h200-sxm-141gb"]
        assert (other["gpus_listed"], other["rate_from"], other["rate_to"]) == (0, None, None)


class TestOfferings:
    def search(self, client: ApiClient, **query: Any) -> Any:
        wish = {"gpu_model": MODEL, "gpus": 2, "duration": "2h", **query}
        return client.get("/v1/offerings", **wish)

    def test_are_priced_windows_that_can_be_quoted_as_they_stand(
        self, api: ApiClient, anybody: ApiClient
    ) -> None:
        a_fleet()
        found = self.search(anybody, limit=1).json
        assert (found["no_offer_reason"], found["next_cursor"]) == (None, None)
        (offer,) = found["data"]
        assert (offer["gpus"], offer["nodes"], offer["reclaim_notice"]) == (2, 1, "PT0S")
        quote = a_quote(api, starts_at=offer["starts_at"], ends_at=offer["ends_at"])
        assert (quote["rate"], quote["total"]) == (offer["rate"], offer["total"])

    def test_are_never_more_than_asked_for(self, anybody: ApiClient) -> None:
        a_fleet()
        assert len(self.search(anybody, limit=3).json["data"]) == 3
        assert len(self.search(anybody, limit=200).json["data"]) <= 200

    @pytest.mark.parametrize(
        ("query", "reason"),
        [
            ({"gpu_model": "h900"}, "no_such_model"),
            ({"gpus": 9}, "not_enough_capacity"),
            ({"max_rate": "0.01"}, "price_above_max"),
        ],
    )
    def test_that_are_missing_have_a_reason(
        self, anybody: ApiClient, query: dict[str, Any], reason: str
    ) -> None:
        a_fleet()
        found = self.search(anybody, **query)
        assert found.status == 200
        assert (found.json["data"], found.json["no_offer_reason"]) == ([], reason)

    def test_that_are_missing_name_the_nearest(self, anybody: ApiClient) -> None:
        a_fleet()
        found = self.search(anybody, max_rate="0.01").json
        assert (found["nearest"]["gpu_model"], found["nearest_change"]) == (MODEL, "higher_price")
        assert self.search(anybody).json["nearest_change"] is None

    def test_are_sampled_as_demand_once_an_hour_of_who_is_signed_in(
        self, api: ApiClient, anybody: ApiClient
    ) -> None:
        a_fleet()
        for _ in range(3):
            self.search(api, earliest_start="2027-01-01T00:00:00Z")
            self.search(anybody, earliest_start="2027-01-01T00:00:00Z")
        sample = DemandSample.objects.get()
        assert (sample.kind, sample.gpus, sample.end_hour - sample.start_hour) == ("search", 2, 2)

    @pytest.mark.parametrize("duration", ["PT2H", "2h", "120m", "7200s"])
    def test_take_every_form_of_a_duration(self, anybody: ApiClient, duration: str) -> None:
        assert self.search(anybody, duration=duration).status == 200

    @pytest.mark.parametrize(
        ("query", "pointer", "code"),
        [
            ({"gpus": "0"}, "/gpus", "out_of_range"),
            ({"gpus": "1e3"}, "/gpus", "wrong_type"),
            ({"gpus": "NaN"}, "/gpus", "wrong_type"),
            ({"duration": "0h"}, "/duration", "wrong_form"),
            ({"duration": "-1h"}, "/duration", "wrong_form"),
            ({"duration": "1 hour"}, "/duration", "wrong_form"),
            ({"max_rate": "NaN"}, "/max_rate", "wrong_form"),
            ({"tier": "gold"}, "/tier", "invalid_choice"),
            ({"spread": "wide"}, "/spread", "invalid_choice"),
            ({"earliest_start": "9999-12-31T23:59:59Z"}, "/earliest_start", "out_of_range"),
            ({"earliest_start": "2026-12-31T23:59:60Z"}, "/earliest_start", "wrong_form"),
            ({"latest_end": "2027-02-29T00:00:00Z"}, "/latest_end", "wrong_form"),
            ({"limit": "201"}, "/limit", "out_of_range"),
            ({"sort": "price"}, "/sort", "unknown_field"),
        ],
    )
    def test_refuse_a_query_that_does_not_fit(
        self, anybody: ApiClient, query: dict[str, str], pointer: str, code: str
    ) -> None:
        answer = self.search(anybody, **query)
        assert (answer.status, answer.code) == (422, "invalid_request")
        assert [(e["pointer"], e["code"]) for e in answer.json["errors"]] == [(pointer, code)]

    def test_refuse_a_duration_off_the_grid(self, anybody: ApiClient) -> None:
        answer = self.search(anybody, duration="61m")
        assert (answer.status, answer.code) == (422, "off_grid")

    def test_refuse_a_range_that_is_upside_down(self, anybody: ApiClient) -> None:
        answer = self.search(anybody, latest_end="2020-01-01T00:00:00Z")
        assert (answer.status, answer.code) == (422, "window_upside_down")


class TestPriceCurve:
    def test_has_a_point_per_grid_step_for_a_day(self, anybody: ApiClient) -> None:
        a_fleet(gpus=8)
        points = anybody.get("/v1/price-curve", gpu_model=MODEL).json["data"]
        assert len(points) == 24
        assert (points[0]["gpus_listed"], points[-1]["gpus_free"]) == (8, 8)
        assert {point["gpus_sold"] for point in points} == {0}
        assert points[-1]["multiplier"].startswith("1")

    def test_knows_no_price_where_nothing_is_listed(self, anybody: ApiClient) -> None:
        (point, *_) = anybody.get("/v1/price-curve", gpu_model="h200-sxm-141gb").json["data"]
        assert (point["gpus_listed"], point["rate"], point["floor"]) == (0, None, None)
        assert point["multiplier"] is None

    def curve(self, client: ApiClient, *, starts_at: dt.datetime, ends_at: dt.datetime) -> Any:
        query = {"from": format_instant(starts_at), "to": format_instant(ends_at)}
        return client.get("/v1/price-curve", gpu_model=MODEL, **query)

    def test_covers_what_was_asked_for(self, anybody: ApiClient) -> None:
        a_fleet()
        window = a_window(hours=3)
        points = self.curve(anybody, starts_at=window.starts_at, ends_at=window.ends_at).json[
            "data"
        ]
        assert points[0]["starts_at"] == format_instant(window.starts_at)
        assert len(points) == 3

    def test_refuses_a_range_that_does_not_fit(self, anybody: ApiClient) -> None:
        window = a_window(hours=3)
        reversed_range = self.curve(anybody, starts_at=window.ends_at, ends_at=window.starts_at)
        assert (reversed_range.status, reversed_range.code) == (422, "window_upside_down")
        second = dt.timedelta(seconds=1)
        off = self.curve(anybody, starts_at=window.starts_at + second, ends_at=window.ends_at)
        assert (off.status, off.code) == (422, "off_grid")
        years = self.curve(
            anybody, starts_at=window.starts_at, ends_at=window.starts_at + dt.timedelta(days=3650)
        )
        assert (years.status, years.code) == (422, "invalid_value")

    def test_refuses_an_unknown_model(self, anybody: ApiClient) -> None:
        answer = anybody.get("/v1/price-curve", gpu_model="h900")
        assert (answer.status, answer.code) == (422, "no_such_model")
