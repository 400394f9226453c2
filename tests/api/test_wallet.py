"""`GET /v1/wallet` and `GET /v1/wallet/entries`."""

import datetime as dt

import pytest
from django.utils import timezone

from marketplace.models import Organization
from tests.api.world import a_fleet, a_reservation, fund
from tests.billing.factories import promotion
from tests.billing.test_top_up_disputes import say
from tests.billing.test_withdrawals import topped_up
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db


class TestWallet:
    def test_is_empty_before_any_deposit(self, api: ApiClient) -> None:
        assert api.get("/v1/wallet").json == {
            "balance": {"amount_minor": 0, "currency": "usd"},
            "held": {"amount_minor": 0, "currency": "usd"},
            "withheld": {"amount_minor": 0, "currency": "usd"},
            "owed_for_disputes": {"amount_minor": 0, "currency": "usd"},
            "promotion_balance": {"amount_minor": 0, "currency": "usd"},
            "promotions": [],
            "simulated": True,
        }


class TestDisputes:
    def test_show_what_is_withheld_and_then_owed(
        self, api: ApiClient, organization: Organization
    ) -> None:
        fund(organization, amount_minor=300)
        payment = topped_up(500, by=organization)
        say(payment, amount=500)
        shown = api.get("/v1/wallet").json
        assert (shown["balance"]["amount_minor"], shown["withheld"]["amount_minor"]) == (300, 500)
        say(topped_up(900, by=organization), "lost", dispute_id="dp_2")
        payment = topped_up(50, by=organization)
        kinds = [row["kind"] for row in api.get("/v1/wallet/entries").json["data"]]
        assert kinds[:3] == ["top_up", "dispute_withheld", "top_up"]
        say(payment, "needs_response", dispute_id="dp_3", amount=350)
        say(payment, "lost", dispute_id="dp_3", amount=350)
        shown = api.get("/v1/wallet").json
        assert shown["owed_for_disputes"]["amount_minor"] == 0
        say(payment, "lost", dispute_id="dp_4", amount=40)
        shown = api.get("/v1/wallet").json
        assert shown["owed_for_disputes"]["amount_minor"] == 40
        assert (shown["balance"]["amount_minor"], shown["withheld"]["amount_minor"]) == (0, 500)


class TestEntries:
    def test_add_up_to_the_balance(self, api: ApiClient, organization: Organization) -> None:
        a_fleet()
        fund(organization, amount_minor=50_000)
        reservation = a_reservation(api)
        purchase, deposit = api.get("/v1/wallet/entries").json["data"]
        price = reservation["total"]["amount_minor"]
        assert (deposit["kind"], deposit["amount"]["amount_minor"]) == ("deposit", 50_000)
        assert (purchase["kind"], purchase["amount"]["amount_minor"]) == ("purchase", -price)
        assert purchase["subject_id"] == reservation["id"]
        assert api.get("/v1/wallet").json["balance"]["amount_minor"] == 50_000 - price

    def test_page_without_repeats(self, api: ApiClient, organization: Organization) -> None:
        for amount in (1, 2, 3):
            fund(organization, amount_minor=amount)
        first = api.get("/v1/wallet/entries", limit=2).json
        second = api.get("/v1/wallet/entries", limit=2, cursor=first["next_cursor"]).json
        amounts = [e["amount"]["amount_minor"] for e in first["data"] + second["data"]]
        assert amounts == [3, 2, 1]

    def test_take_no_cursor_of_another_list(self, api: ApiClient) -> None:
        answer = api.get("/v1/wallet/entries", cursor="WyItaWQiLCJyc3ZfMSJd")
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/cursor")

    def test_of_others_stay_theirs(self, api: ApiClient, organization: Organization) -> None:
        fund(organization)
        _, secret = a_key(organization=an_organization())
        assert api.signed_in(secret=secret).get("/v1/wallet/entries").json["data"] == []


def test_the_wallet_shows_the_promotions_that_are_spent_before_it(
    api: ApiClient, organization: Organization
) -> None:
    at = timezone.now()
    late = promotion(buyer=organization, minor=500, days=60, at=at)
    soon = promotion(buyer=organization, minor=100, days=30, at=at)
    promotion(buyer=organization, minor=900, days=1, at=at - dt.timedelta(days=2))
    shown = api.get("/v1/wallet").json
    assert shown["balance"]["amount_minor"] == 0
    assert shown["promotion_balance"] == {"amount_minor": 600, "currency": "usd"}
    assert [each["id"] for each in shown["promotions"]] == [soon.pk, late.pk]
    assert shown["promotions"][0]["left"]["amount_minor"] == 100
