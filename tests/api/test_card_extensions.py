"""Added hours and other windows by card over HTTP: while they wait, when they are paid, and when not."""

from typing import Any

import pytest
from django.utils import timezone

from billing.models import Payment
from marketplace.models import Organization
from scheduler.models import ExtensionHold, Quote
from tests.api.test_changes import extend, extension_quote, later
from tests.api.test_top_ups import pays, stand_in
from tests.api.world import a_fleet, a_new_key, a_quote, a_reservation, a_window, fund
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

Row = dict[str, Any]
__all__ = ["stand_in"]  # a fixture
pytestmark = pytest.mark.django_db


@pytest.fixture
def reservation(api: ApiClient, organization: Organization, stand_in) -> Row:
    """Return a reservation that begins in two days and was paid from the wallet."""
    a_fleet(gpus=8)
    fund(organization)
    quote = a_quote(api, gpus=8, window=a_window(in_hours=47, hours=4))
    return a_reservation(api, quote=quote)


def order(api: ApiClient, reservation: Row, *, key: str | None = None, **body):
    end = later(reservation["ends_at"], hours=2)
    quote = extension_quote(api, reservation["id"], ends_at=end).json
    answer = extend(
        api, reservation["id"], quote_id=quote["id"], key=key, payment_method="card", **body
    )
    return quote, answer


def shown(api: ApiClient, reservation: Row) -> Row:
    answer: Row = api.get(f"/v1/reservations/{reservation['id']}").json
    return answer


class TestExtensionByCard:
    def test_says_how_to_pay_and_is_made_then(self, api: ApiClient, reservation, stand_in) -> None:
        quote, answer = order(api, reservation)
        assert answer.status == 201
        waiting = answer.json
        assert (waiting["status"], waiting["kind"]) == ("payment_pending", "extension")
        assert (waiting["ends_at"], waiting["charged"]) == (quote["ends_at"], quote["charge"])
        assert waiting["payment"]["status"] == "open"
        assert waiting["payment"]["amount"] == quote["charge"]
        assert "_secret_" in waiting["payment"]["client_secret"]
        assert "/pay/pay_" in waiting["payment"]["checkout_url"]
        before = shown(api, reservation)
        assert before["pending_extension"] == before["pending_change"] == waiting
        assert (before["ends_at"], before["extensions"]) == (reservation["ends_at"], [])

        pays(stand_in, Payment.objects.get())
        after = shown(api, reservation)
        made = api.get(f"/v1/reservations/{reservation['id']}/extensions/{waiting['id']}").json
        assert (made["status"], made["id"], made["payment"]) == ("made", waiting["id"], None)
        assert after["extensions"] == after["changes"] == [made]
        assert (after["ends_at"], after["pending_extension"]) == (quote["ends_at"], None)
        assert after["payment"]["status"] == "paid"

    def test_is_ordered_once_per_key(self, api: ApiClient, reservation, stand_in) -> None:
        quote, first = order(api, reservation, key="k")
        again = extend(api, reservation["id"], quote_id=quote["id"], key="k", payment_method="card")
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.content == first.content
        assert len(stand_in.world.all("payment_intent")) == 1

    def test_says_that_the_hours_were_dropped(self, api: ApiClient, reservation) -> None:
        _, answer = order(api, reservation)
        ExtensionHold.objects.update(dropped_at=timezone.now(), drop_reason="payment_declined")
        path = f"/v1/reservations/{reservation['id']}/extensions/{answer.json['id']}"
        assert api.get(path).json["status"] == "dropped"
        assert shown(api, reservation)["pending_extension"] is None

    def test_is_kept_when_the_provider_is_away(self, api: ApiClient, reservation, stand_in) -> None:
        stand_in.fail("timeout_before", "POST", times=9)
        _, answer = order(api, reservation)
        assert (answer.status, answer.json["payment"]["status"]) == (201, "created")
        assert answer.json["payment"]["client_secret"] is None

    def test_needs_a_saved_card_where_that_is_to_pay(self, api: ApiClient, reservation) -> None:
        _, answer = order(api, reservation, use_saved_card=True)
        assert (answer.status, answer.code) == (409, "no_saved_card")
        assert shown(api, reservation)["pending_extension"] is None

    def test_waits_alone(self, api: ApiClient, reservation) -> None:
        order(api, reservation)
        _, second = order(api, reservation)
        assert (second.status, second.code) == (409, "state_conflict")

    def test_refuses_quotes_of_nobody_and_ids_of_nobody(self, api: ApiClient, reservation) -> None:
        answer = extend(
            api, reservation["id"], quote_id="qte_nobody", key=a_new_key(), payment_method="card"
        )
        assert (answer.status, answer.code) == (404, "not_found")
        path = f"/v1/reservations/{reservation['id']}/extensions"
        assert api.get(f"{path}/ext_nobody").status == 404

    def test_is_hidden_from_other_organizations(self, api: ApiClient, reservation) -> None:
        _, answer = order(api, reservation)
        _, secret = a_key(organization=an_organization())
        path = f"/v1/reservations/{reservation['id']}/extensions/{answer.json['id']}"
        assert ApiClient(secret=secret).get(path).status == 404


class TestWindowByCard:
    def order(self, api: ApiClient, reservation: Row, **body) -> tuple[Row, Any]:
        path = f"/v1/reservations/{reservation['id']}"
        wish = {
            "starts_at": later(reservation["starts_at"], hours=24),
            "ends_at": later(reservation["ends_at"], hours=26),
        }
        quote = api.post(f"{path}/change-quote", wish).json
        order = {"quote_id": quote["id"], "payment_method": "card"} | body
        return quote, api.post(f"{path}/changes", order, key=a_new_key())

    def test_says_how_to_pay_and_is_made_then(self, api: ApiClient, reservation, stand_in) -> None:
        quote, answer = self.order(api, reservation)
        assert answer.status == 201, answer.content
        waiting = answer.json
        assert (waiting["status"], waiting["kind"]) == ("payment_pending", "move")
        assert (waiting["starts_at"], waiting["charged"]) == (quote["starts_at"], quote["charge"])
        assert "_secret_" in waiting["payment"]["client_secret"]
        before = shown(api, reservation)
        assert (before["pending_change"], before["pending_extension"]) == (waiting, None)
        assert before["starts_at"] == reservation["starts_at"]
        path = f"/v1/reservations/{reservation['id']}"
        assert api.get(f"{path}/changes/{waiting['id']}").json == waiting
        assert api.get(f"{path}/extensions/{waiting['id']}").status == 404

        pays(stand_in, Payment.objects.get())
        after = shown(api, reservation)
        made = api.get(f"{path}/changes/{waiting['id']}").json
        assert (made["status"], made["id"], made["payment"]) == ("made", waiting["id"], None)
        assert (after["changes"], after["extensions"]) == ([made], [])
        assert (after["starts_at"], after["pending_change"]) == (quote["starts_at"], None)

    def test_needs_a_saved_card_where_that_is_to_pay(self, api: ApiClient, reservation) -> None:
        _, answer = self.order(api, reservation, use_saved_card=True)
        assert (answer.status, answer.code) == (409, "no_saved_card")
        assert shown(api, reservation)["pending_change"] is None

    def test_is_held_by_a_quote_that_is_shown_and_sold_to_nobody(
        self, api: ApiClient, reservation
    ) -> None:
        """Not even to the tenant for whose window it holds the places."""
        self.order(api, reservation)
        kept = ExtensionHold.objects.get().kept_id
        assert api.get(f"/v1/quotes/{kept}").status == 404
        bought = {"quote_id": kept, "payment_method": "wallet"}
        answer = api.post("/v1/reservations", bought, key=a_new_key())
        assert (answer.status, answer.code) == (404, "not_found")
        assert Quote.objects.get(pk=kept).status == "open"

    def test_is_hidden_from_other_organizations(self, api: ApiClient, reservation) -> None:
        _, answer = self.order(api, reservation)
        _, secret = a_key(organization=an_organization())
        path = f"/v1/reservations/{reservation['id']}/changes/{answer.json['id']}"
        assert ApiClient(secret=secret).get(path).status == 404
