"""What the peers' own tests send to an API, by their source."""

from typing import Any

import pytest

from marketplace.models import Organization
from tests.api.world import a_fleet, a_new_key, a_quote, a_reservation, a_wish, fund
from tests.conftest import ApiClient

pytestmark = pytest.mark.django_db


class TestBlazarGabbitsLeases:
    """Blazar, tempest plug-in `gabbits/leases.yaml`: bad dates are told apart; create, delete, empty list."""

    @pytest.mark.parametrize(
        ("changes", "code", "pointer"),
        [
            (
                {"starts_at": "2030-12-26T13:13:00Z", "ends_at": "2030-12-26T12:13:00Z"},
                "off_grid",
                "/starts_at",
            ),
            (
                {"starts_at": "2030-12-26T13:00:00Z", "ends_at": "2030-12-26T12:00:00Z"},
                "window_upside_down",
                "/ends_at",
            ),
            ({"starts_at": "2030-26-12 noon"}, "invalid_request", "/starts_at"),
            ({"ends_at": ...}, "invalid_request", "/ends_at"),
            ({"ends_at": None}, "invalid_request", "/ends_at"),
        ],
    )
    def test_a_window_that_makes_no_sense_is_refused_with_its_own_words(
        self, api: ApiClient, changes: dict[str, Any], code: str, pointer: str
    ) -> None:
        a_fleet()
        answer = api.post("/v1/quotes", a_wish(**changes), key=a_new_key())

        assert (answer.status, answer.code) == (422, code)
        errors = answer.json.get("errors", [{"pointer": answer.json.get("pointer")}])
        assert pointer in [error["pointer"] for error in errors]

    def test_a_window_that_does_is_booked_and_given_up_and_nothing_is_left(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        reservation = a_reservation(api, quote=a_quote(api))
        path = f"/v1/reservations/{reservation['id']}"
        quote = api.post(f"{path}/cancellation-quote", {}, key=a_new_key()).json

        done = api.post(f"{path}/cancellation", {"quote_id": quote["id"]}, key=a_new_key())

        assert done.status == 201
        listed = api.get("/v1/reservations", status="scheduled").json
        assert listed["data"] == []
        assert api.get(path).json["status"] == "cancelled"
