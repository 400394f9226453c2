"""Prices in two parts over HTTP: what a quote offers, what is answered, and how a balance is paid."""

from typing import Any

import pytest
from django.utils import timezone

from billing.deposits import mark_asked
from billing.models import Deposit, Payer, Payment
from marketplace.models import Organization
from tests.api.test_top_ups import pays, stand_in
from tests.api.world import a_fleet, a_new_key, a_quote, a_window
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

Row = dict[str, Any]
__all__ = ["stand_in"]  # a fixture
pytestmark = pytest.mark.django_db


@pytest.fixture
def quote(api: ApiClient, organization: Organization, stand_in, settings) -> Row:
    """Return a quote of eight GPUs for a day, forty days ahead."""
    settings.DEPOSIT_PRICE_MINOR_MIN = 10_000
    a_fleet(gpus=8)
    return a_quote(api, gpus=8, window=a_window(in_hours=40 * 24, hours=24))


def order(api: ApiClient, quote: Row, *, key: str | None = None, **body):
    wish = {"quote_id": quote["id"], "payment_method": "card", "payment_plan": "deposit", **body}
    return api.post("/v1/reservations", wish, key=key or a_new_key())


def shown(api: ApiClient, reservation: Row) -> Row:
    answer: Row = api.get(f"/v1/reservations/{reservation['id']}").json
    return answer


def pay_balance(api: ApiClient, reservation: Row, **body):
    path = f"/v1/reservations/{reservation['id']}/balance-payments"
    return api.post(path, body, key=a_new_key())


class TestOffer:
    def test_stands_in_the_quote_with_amounts_and_instant(self, quote: Row) -> None:
        full, deposit = quote["payment_plans"]
        total = quote["total_with_tax"]
        assert full == {
            "plan": "full",
            "due_now": total,
            "balance": None,
            "balance_due_at": None,
        }
        assert deposit["plan"] == "deposit"
        parts = deposit["due_now"]["amount_minor"], deposit["balance"]["amount_minor"]
        assert sum(parts) == total["amount_minor"]
        assert parts[0] == round(total["amount_minor"] / 4)
        assert deposit["balance_due_at"] < quote["starts_at"]

    def test_does_not_stand_where_the_start_is_near(self, api: ApiClient, quote: Row) -> None:
        near = a_quote(api, gpus=8, window=a_window(in_hours=24, hours=24))
        assert [plan["plan"] for plan in near["payment_plans"]] == ["full"]
        answer = order(api, near)
        assert (answer.status, answer.code) == (409, "payment_plan_unavailable")
        assert answer.json["errors"][0]["pointer"] == "/payment_plan"

    def test_stands_in_the_rules_of_the_market(
        self, anybody: ApiClient, stand_in, settings
    ) -> None:
        rules = anybody.get("/v1/market").json["deposits"]
        assert rules["share_basis_points"] == 2500
        assert rules["price_min"] == {"amount_minor": 100_000, "currency": "usd"}
        assert (rules["starts_after"], rules["time_to_return"]) == ("PT720H", "PT72H")
        settings.DEPOSIT_BASIS_POINTS = 0
        assert anybody.get("/v1/market").json["deposits"] is None


class TestOrder:
    def test_says_what_is_paid_when(self, api: ApiClient, quote: Row, stand_in) -> None:
        answer = order(api, quote)
        assert answer.status == 201
        reservation = answer.json
        plan = reservation["payment"]["plan"]
        offered = quote["payment_plans"][1]
        assert plan == {
            "status": "awaited",
            "deposit": offered["due_now"],
            "balance": offered["balance"],
            "balance_due_at": offered["balance_due_at"],
            "return_by": None,
        }
        assert reservation["payment"]["status"] == "pending"
        assert reservation["total_with_tax"] == quote["total_with_tax"]
        payment = Payment.objects.get()
        assert payment.amount_minor == plan["deposit"]["amount_minor"]
        pays(stand_in, payment)
        after = shown(api, reservation)
        assert (after["status"], after["payment"]["status"]) == ("scheduled", "deposit_paid")
        assert after["payment"]["plan"]["status"] == "open"

    def test_happens_once_per_key(self, api: ApiClient, quote: Row, stand_in) -> None:
        first, again = (order(api, quote, key="k") for _ in range(2))
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.content == first.content
        assert len(stand_in.world.all("payment_intent")) == 1

    def test_is_by_card_alone(self, api: ApiClient, quote: Row) -> None:
        for method in ("wallet", "invoice"):
            answer = order(api, quote, payment_method=method)
            assert (answer.status, answer.code) == (409, "payment_plan_unavailable")
        assert order(api, quote, payment_plan="monthly").status == 422


class TestBalance:
    @pytest.fixture
    def reservation(self, api: ApiClient, quote: Row, stand_in) -> Row:
        reservation: Row = order(api, quote).json
        pays(stand_in, Payment.objects.get())
        return shown(api, reservation)

    def test_is_paid_early(self, api: ApiClient, reservation: Row, stand_in) -> None:
        answer = pay_balance(api, reservation)
        assert answer.status == 201
        assert answer.json["amount"] == reservation["payment"]["plan"]["balance"]
        assert "_secret_" in answer.json["client_secret"]
        assert shown(api, reservation)["payment"]["client_secret"] == answer.json["client_secret"]
        pays(stand_in, Payment.objects.get(purpose="balance"))
        after = shown(api, reservation)
        assert (after["payment"]["status"], after["payment"]["plan"]["status"]) == ("paid", "paid")
        assert pay_balance(api, reservation).code == "state_conflict"

    def test_that_the_bank_asks_about_says_where_and_until_when(
        self, api: ApiClient, reservation: Row, stand_in
    ) -> None:
        card = stand_in.world.get(Payer.objects.get().saved_card_id, "payment_method")
        card["_behaves"] = "asks"
        Deposit.objects.update(act_due_at=timezone.now(), announced_at=timezone.now())
        plan = Deposit.objects.select_related("reservation").get()
        mark_asked(plan, at=timezone.now())
        answer = pay_balance(api, reservation, use_saved_card=True)
        assert (answer.status, answer.json["status"]) == (201, "open")
        assert answer.json["failure"]["code"] == "authentication_required"
        after = shown(api, reservation)["payment"]
        assert after["client_secret"] == answer.json["client_secret"]
        assert after["plan"]["status"] == "asked"
        assert after["plan"]["return_by"] == answer.json["due_at"]

    def test_is_hidden_from_other_organizations(self, api: ApiClient, reservation: Row) -> None:
        _, secret = a_key(organization=an_organization())
        assert pay_balance(ApiClient(secret=secret), reservation).status == 404

    def test_is_said_in_the_quote_of_a_cancellation(self, api: ApiClient, reservation: Row) -> None:
        path = f"/v1/reservations/{reservation['id']}/cancellation-quote"
        terms = api.post(path, {}).json
        plan = reservation["payment"]["plan"]
        assert terms["total_before"] == plan["deposit"]
        assert terms["unpaid"] == plan["balance"]
        kept = terms["fee"]["amount_minor"] + terms["refund"]["amount_minor"]
        assert kept == plan["deposit"]["amount_minor"]

    def test_comes_before_any_other_change(self, api: ApiClient, reservation: Row) -> None:
        base = f"/v1/reservations/{reservation['id']}"
        later = api.post(f"{base}/extension-quote", {"ends_at": "2030-01-01T00:00:00Z"})
        other = api.post(f"{base}/change-quote", {"ends_at": reservation["ends_at"]})
        assert (later.status, later.code) == (other.status, other.code) == (409, "balance_open")
        assert later.json["balance"] == reservation["payment"]["plan"]["balance"]
