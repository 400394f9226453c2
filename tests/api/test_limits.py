"""`GET /v1/limits`, and what a refusal says of them."""

import pytest

from marketplace.models import Organization
from scheduler.models import TenantLimit
from tests.api.world import a_fleet, a_new_key, a_quote, a_reservation, a_window, a_wish, fund
from tests.conftest import ApiClient

pytestmark = pytest.mark.django_db


class TestLimits:
    def test_are_none_unless_somebody_set_them(self, api: ApiClient) -> None:
        assert api.get("/v1/limits").json == {
            "gpu_seconds": None,
            "gpu_seconds_booked": 0,
            "gpu_seconds_left": None,
            "max_duration": None,
            "horizon_days": 180,
        }

    def test_say_what_is_booked_and_left(self, api: ApiClient, organization: Organization) -> None:
        a_fleet()
        fund(organization)
        TenantLimit.objects.create(
            organization=organization,
            gpu_hours_max=10,
            duration_seconds_max=7200,
            horizon_days_max=30,
        )
        a_reservation(api, quote=a_quote(api, gpus=4, window=a_window(hours=2)))
        limits = api.get("/v1/limits").json
        assert (limits["gpu_seconds_booked"], limits["gpu_seconds_left"]) == (28_800, 7_200)
        assert (limits["max_duration"], limits["horizon_days"]) == ("PT2H", 30)
        answer = api.post("/v1/quotes", a_wish(gpus=3), key=a_new_key())
        assert (answer.status, answer.code) == (403, "limit_exceeded")
        assert (answer.json["limit"], answer.json["left_gpu_seconds"]) == ("gpu_hours", 7_200)

    def test_are_nobody_elses(self, anybody: ApiClient) -> None:
        assert anybody.get("/v1/limits").code == "api_key_required"
