"""`/v1/budgets` and `/v1/project-freezes` over HTTP, and what a refusal says."""

from typing import Any

import pytest
from django.utils import timezone

from billing import month_bills
from marketplace.api import month_page
from marketplace.core.money import Money
from marketplace.models import Organization
from marketplace.states import Scope
from tests.api.world import a_fleet, a_new_key, a_quote, a_reservation, fund
from tests.conftest import Answer, ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db


def put(api: ApiClient, *rows: dict[str, Any], tag: str | None = None) -> Answer:
    headers = {"If-Match": tag} if tag else {}
    return api.call("PUT", "/v1/budgets", body={"budgets": list(rows)}, headers=headers)


def a_row(amount_minor: int = 1000, **changes: Any) -> dict[str, Any]:
    amount = {"amount_minor": amount_minor, "currency": "usd"}
    return {"period": "total", "amount": amount, **changes}


class TestBudgets:
    def test_are_read_as_they_were_put(self, api: ApiClient) -> None:
        assert api.get("/v1/budgets").json == {"data": [], "next_cursor": None}
        answer = put(api, a_row(), a_row(5, project="llm-7", mode="notify", thresholds=[90, 10]))
        assert answer.status == 200
        first, second = api.get("/v1/budgets").json["data"]
        assert answer.json["data"] == [first, second]
        assert (first["project"], first["mode"], first["thresholds"]) == ("", "hard", [50, 80, 100])
        assert (second["project"], second["mode"]) == ("llm-7", "notify")
        assert second["thresholds"] == [10, 90]
        assert first["left"] == first["amount"] == {"amount_minor": 1000, "currency": "usd"}

    def test_refuse_what_they_do_not_cover_and_say_what_is_left(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        quote = a_quote(api)
        price = quote["total"]["amount_minor"]
        put(api, a_row(price + 1))
        a_reservation(api, quote=quote)
        answer = api.post(
            "/v1/reservations",
            {"quote_id": a_quote(api)["id"], "payment_method": "wallet"},
            key=a_new_key(),
        )
        assert (answer.status, answer.code) == (403, "budget_exceeded")
        assert answer.json["left"] == {"amount_minor": 1, "currency": "usd"}
        assert answer.json["asked"]["amount_minor"] >= price
        (row,) = api.get("/v1/budgets").json["data"]
        assert row["committed"] == row["paid"] == {"amount_minor": price, "currency": "usd"}
        bill = api.get(f"/v1/bills/{timezone.now():%Y-%m}").json
        assert bill["budgets"] == [row]
        now = timezone.now()
        shown = month_bills.month_bill(organization=organization, month=f"{now:%Y-%m}", at=now)
        page = month_page.page(
            bill=shown, organization=organization, documents=[], groups=None, at=now
        )
        assert "Budgets, net of tax" in page
        assert str(Money(price + 1, "usd")) in page

    def test_are_replaced_only_where_they_are_what_was_read(self, api: ApiClient) -> None:
        put(api, a_row())
        read = api.get("/v1/budgets").headers["ETag"]
        assert put(api, a_row(2), tag=read).status == 200
        answer = put(api, a_row(3), tag=read)
        assert (answer.status, answer.code) == (412, "budgets_changed")

    @pytest.mark.parametrize(
        ("row", "pointer"),
        [
            (a_row(-1), "/budgets/0/amount/amount_minor"),
            (a_row(amount={"amount_minor": 1, "currency": "eur"}), "/budgets/0/amount/currency"),
            (a_row(period="week"), "/budgets/0/period"),
            (a_row(thresholds=[0]), "/budgets/0/thresholds/0"),
            (a_row(thresholds=[50, 50]), "/budgets/0/thresholds"),
        ],
    )
    def test_name_the_field_that_does_not_fit(
        self, api: ApiClient, row: dict[str, Any], pointer: str
    ) -> None:
        answer = put(api, row)
        assert answer.status == 422
        assert answer.json["errors"][0]["pointer"] == pointer

    def test_need_the_scope_that_writes_bills(self, organization: Organization) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.BILLING_READ])
        reader = ApiClient(secret=secret)
        assert put(reader, a_row()).code == "scope_missing"
        assert reader.get("/v1/budgets").status == 200


class TestFreezes:
    def test_stop_orders_until_they_are_lifted(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        made = api.post("/v1/project-freezes", {"project": "llm-7", "reason": "too dear"})
        assert made.status == 201
        body = {"quote_id": a_quote(api)["id"], "payment_method": "wallet", "project": "llm-7"}
        answer = api.post("/v1/reservations", body, key=a_new_key())
        assert (answer.status, answer.code) == (403, "project_frozen")
        assert api.get("/v1/project-freezes").json["data"] == [made.json]
        path = f"/v1/project-freezes/{made.json['id']}"
        assert api.call("DELETE", path).status == 204
        assert api.post("/v1/reservations", body, key=a_new_key()).status == 201
        assert api.call("DELETE", path).status == 404

    def test_of_somebody_else_do_not_exist(self, api: ApiClient) -> None:
        made = api.post("/v1/project-freezes", {})
        _, secret = a_key(organization=an_organization())
        stranger = ApiClient(secret=secret)
        answer = stranger.call("DELETE", f"/v1/project-freezes/{made.json['id']}")
        assert answer.code == "not_found"
        assert stranger.get("/v1/project-freezes").json["data"] == []
