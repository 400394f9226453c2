"""Money out of the wallet over HTTP: once per key, for its own organization."""

from typing import Any

import pytest

from billing.models import CardRefund
from marketplace.models import Organization
from marketplace.states import Scope
from tests.api.world import a_new_key, fund
from tests.billing.test_withdrawals import topped_up
from tests.conftest import Answer, ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db


def withdraw(api: ApiClient, minor: int, *, key: str | None = None, **changes: Any) -> Answer:
    body = {"amount": {"amount_minor": minor, "currency": "usd"}} | changes
    return api.post("/v1/wallet/withdrawals", body, key=key)


def test_money_goes_back_to_the_card_once_per_key(
    api: ApiClient, organization: Organization
) -> None:
    payment = topped_up(5_000, by=organization)
    key = a_new_key()
    first = withdraw(api, 2_000, key=key)
    assert (first.status, first.json["status"]) == (201, "carried_out")
    (part,) = first.json["parts"]
    assert (part["top_up_id"], part["status"]) == (payment.pk, "due")
    assert part["amount"] == first.json["amount"]
    assert withdraw(api, 2_000, key=key).headers["Idempotent-Replayed"] == "true"
    assert CardRefund.objects.count() == 1
    assert api.get("/v1/wallet").json["balance"]["amount_minor"] == 3_000
    path = f"/v1/wallet/withdrawals/{first.json['id']}"
    assert api.get(path).json == first.json
    assert api.get("/v1/wallet/withdrawals").json["data"] == [first.json]
    _, secret = a_key(organization=an_organization())
    assert ApiClient(secret=secret).get(path).status == 404


def test_what_came_another_way_waits(api: ApiClient, organization: Organization) -> None:
    fund(organization)
    answer = withdraw(api, 100, key=a_new_key())
    assert (answer.json["status"], answer.json["parts"]) == ("waiting", [])
    assert withdraw(api, 100, key=a_new_key()).code == "state_conflict"


def test_refusals(api: ApiClient, organization: Organization) -> None:
    assert withdraw(api, 100).code == "idempotency_key_required"
    answer = withdraw(api, 100, key=a_new_key())
    assert (answer.status, answer.code) == (422, "withdrawal_refused")
    assert withdraw(api, 0, key=a_new_key()).status == 422
    assert withdraw(api, 1, key=a_new_key(), to="my uncle").status == 422
    _, secret = a_key(organization=organization, scopes=[Scope.BILLING_READ])
    assert withdraw(ApiClient(secret=secret), 1, key=a_new_key()).code == "scope_missing"
