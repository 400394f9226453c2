"""Orders above an organization's own limit: asked by ordering, decided by somebody else."""

from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from billing import checkout
from billing.models import PurchaseRequest
from billing.purchase_requests import ApprovalRefused, ApprovalRequired
from marketplace.models import Event, Organization
from marketplace.states import Scope
from scheduler.details import ReservationDetails
from scheduler.models import Quote, Reservation
from tests.api.world import a_fleet, a_new_key, a_quote, a_reservation, a_window, fund
from tests.conftest import Answer, ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db


@pytest.fixture
def cfo(organization: Organization) -> ApiClient:
    """Return a client with another key of the same organization, which may not order."""
    scopes = [Scope.BILLING_READ, Scope.BILLING_WRITE]
    return ApiClient(secret=a_key(organization=organization, scopes=scopes)[1])


@pytest.fixture
def quote(api: ApiClient, cfo: ApiClient, organization: Organization) -> dict[str, Any]:
    """Return a quote that is one cent above the limit."""
    a_fleet()
    fund(organization)
    quote = a_quote(api)
    set_limit(cfo, quote["total"]["amount_minor"] - 1)
    return quote


def set_limit(client: ApiClient, amount_minor: int) -> Answer:
    limit = {"amount_minor": amount_minor, "currency": "usd"}
    answer = client.call("PUT", "/v1/approval-limit", body={"limit": limit})
    assert answer.json == {"limit": limit, "requested": None}
    return answer


def raise_limit(client: ApiClient, amount_minor: int | None, *, approved_by: ApiClient) -> None:
    limit = None if amount_minor is None else {"amount_minor": amount_minor, "currency": "usd"}
    asked = client.call("PUT", "/v1/approval-limit", body={"limit": limit}).json["requested"]["id"]
    assert approved_by.post(f"/v1/approval-limit-requests/{asked}/approve", {}).status == 200
    assert client.get("/v1/approval-limit").json == {"limit": limit, "requested": None}


def order(api: ApiClient, quote: dict[str, Any], *, key: str, project: str = "llm-7") -> Answer:
    body = {"quote_id": quote["id"], "payment_method": "wallet", "project": project}
    return api.post("/v1/reservations", body, key=key)


def decide(client: ApiClient, request_id: str, *, word: str = "approve") -> Answer:
    return client.post(f"/v1/purchase-requests/{request_id}/{word}", {})


class TestAnOrderAboveTheLimit:
    def test_happens_once_somebody_else_has_approved_it(
        self, api: ApiClient, cfo: ApiClient, quote: dict[str, Any]
    ) -> None:
        key = a_new_key()
        first = order(api, quote, key=key)
        assert (first.status, first.code) == (403, "approval_required")
        assert first.json["limit"]["amount_minor"] == quote["total"]["amount_minor"] - 1
        assert not Reservation.objects.exists()
        (asked,) = cfo.get("/v1/purchase-requests", status="requested").json["data"]
        assert asked["id"] == first.json["purchase_request_id"]
        assert (asked["project"], asked["amount"]) == ("llm-7", quote["total"])
        assert asked["expires_at"] == quote["expires_at"]
        assert asked["held"] == quote["total"]
        before = cfo.get("/v1/wallet").json
        assert before["held"] == quote["total"]
        approved = decide(cfo, asked["id"])
        assert (approved.status, approved.json["status"]) == (200, "approved")
        assert order(api, quote, key=key).status == 201
        assert order(api, quote, key=key).headers["Idempotent-Replayed"] == "true"
        after = cfo.get("/v1/wallet").json
        assert (after["balance"], after["held"]["amount_minor"]) == (before["balance"], 0)
        shown = cfo.get(f"/v1/purchase-requests/{asked['id']}").json
        assert shown["held"]["amount_minor"] == 0
        kinds = Event.objects.filter(object_id=asked["id"]).order_by("id")
        assert list(kinds.values_list("kind", flat=True)) == [
            "purchase_request.opened",
            "purchase_request.approved",
        ]

    def test_is_asked_for_once_however_often_it_is_tried(
        self, api: ApiClient, quote: dict[str, Any]
    ) -> None:
        ids = {order(api, quote, key=a_new_key()).json["purchase_request_id"] for _ in range(3)}
        assert ids == set(PurchaseRequest.objects.values_list("pk", flat=True))
        assert Event.objects.filter(kind="purchase_request.opened").count() == 1

    def test_is_not_approved_by_the_key_that_asked(
        self, api: ApiClient, quote: dict[str, Any]
    ) -> None:
        asked = order(api, quote, key=a_new_key()).json["purchase_request_id"]
        assert decide(api, asked).code == "four_eyes_needed"
        row = PurchaseRequest.objects.get()
        with pytest.raises(IntegrityError, match="purchase_needs_four_eyes"), transaction.atomic():
            PurchaseRequest.objects.filter(pk=asked).update(
                status="approved", decided_by=row.requested_by, decided_at=timezone.now()
            )

    def test_that_was_refused_stays_refused(
        self, api: ApiClient, cfo: ApiClient, quote: dict[str, Any]
    ) -> None:
        asked = order(api, quote, key=a_new_key()).json["purchase_request_id"]
        refused = decide(cfo, asked, word="refuse").json
        assert (refused["status"], refused["held"]["amount_minor"]) == ("refused", 0)
        assert cfo.get("/v1/wallet").json["held"]["amount_minor"] == 0
        assert decide(cfo, asked).code == "state_conflict"
        answer = order(api, quote, key=a_new_key())
        assert (answer.status, answer.code) == (403, "approval_refused")

    def test_approved_for_one_project_is_not_made_for_another(
        self, api: ApiClient, cfo: ApiClient, organization: Organization, quote: dict[str, Any]
    ) -> None:
        decide(cfo, order(api, quote, key=a_new_key()).json["purchase_request_id"])
        answer = order(api, quote, key=a_new_key(), project="llm-8")
        assert (answer.status, answer.code) == (403, "approval_refused")
        with pytest.raises(ApprovalRefused, match="llm-7"):
            checkout.purchase(
                organization=organization,
                quote_id=quote["id"],
                payment_method="wallet",
                details=ReservationDetails(project="llm-8"),
                at=timezone.now(),
                actor="test",
            )
        assert not Reservation.objects.exists()
        assert order(api, quote, key=a_new_key()).status == 201

    def test_is_not_approved_when_its_quote_has_expired(
        self, api: ApiClient, cfo: ApiClient, quote: dict[str, Any]
    ) -> None:
        asked = order(api, quote, key=a_new_key()).json["purchase_request_id"]
        now = timezone.now()
        Quote.objects.update(expires_at=now)
        PurchaseRequest.objects.update(expires_at=now)
        assert decide(cfo, asked).code == "state_conflict"
        assert order(api, quote, key=a_new_key()).code == "quote_expired"

    def test_is_refused_by_the_order_itself_where_nobody_asked(
        self, organization: Organization, quote: dict[str, Any]
    ) -> None:
        with pytest.raises(ApprovalRequired):
            checkout.purchase(
                organization=organization,
                quote_id=quote["id"],
                payment_method="wallet",
                details=ReservationDetails(),
                at=timezone.now(),
                actor="test",
            )

    def test_may_be_made_of_no_extension_either(
        self, api: ApiClient, cfo: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        first = a_reservation(api, quote=a_quote(api, window=a_window(in_hours=47, hours=4)))
        set_limit(cfo, first["total"]["amount_minor"])
        path = f"/v1/reservations/{first['id']}"
        wish = a_window(in_hours=47, hours=6).ends_at.isoformat().replace("+00:00", "Z")
        longer = api.post(f"{path}/extension-quote", {"ends_at": wish}).json
        body = {"quote_id": longer["id"], "payment_method": "wallet"}
        answer = api.post(f"{path}/extensions", body, key=a_new_key())
        assert answer.code == "approval_required"
        decide(cfo, answer.json["purchase_request_id"])
        assert api.post(f"{path}/extensions", body, key=a_new_key()).status == 201

    def test_that_was_an_extension_and_refused_is_refused_again_whatever_the_limit_since(
        self, api: ApiClient, cfo: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        quote = a_quote(api, window=a_window(in_hours=47, hours=4))
        fund(organization, amount_minor=quote["total"]["amount_minor"])
        path = f"/v1/reservations/{a_reservation(api, quote=quote)['id']}"
        wish = a_window(in_hours=47, hours=6).ends_at.isoformat().replace("+00:00", "Z")
        longer = api.post(f"{path}/extension-quote", {"ends_at": wish}).json
        body, key = {"quote_id": longer["id"], "payment_method": "wallet"}, a_new_key()
        first = api.post(f"{path}/extensions", body, key=key)
        set_limit(cfo, 1)
        fund(organization)
        again = api.post(f"{path}/extensions", body, key=key)
        assert (first.status, first.code) == (402, "payment_required")
        assert (again.status, again.json) == (first.status, first.json)
        assert not PurchaseRequest.objects.exists()

    def test_that_the_wallet_does_not_cover_is_asked_of_nobody_and_may_be_made_again(
        self, api: ApiClient, cfo: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        quote, key = a_quote(api), a_new_key()
        fund(organization, amount_minor=quote["total"]["amount_minor"] - 1)
        set_limit(cfo, 1)
        answer = order(api, quote, key=key)
        assert (answer.status, answer.code) == (402, "payment_required")
        assert answer.json["missing"]["amount_minor"] == 1
        assert cfo.get("/v1/purchase-requests").json["data"] == []
        fund(organization, amount_minor=1)
        assert order(api, quote, key=key).code == "approval_required"


class TestAnOrderWithinTheLimit:
    def test_takes_one_person(self, api: ApiClient, cfo: ApiClient, quote: dict[str, Any]) -> None:
        raise_limit(cfo, quote["total"]["amount_minor"], approved_by=api)
        assert order(api, quote, key=a_new_key()).status == 201

    def test_is_any_order_without_one(
        self, api: ApiClient, cfo: ApiClient, quote: dict[str, Any]
    ) -> None:
        raise_limit(cfo, None, approved_by=api)
        assert order(api, quote, key=a_new_key()).status == 201
        assert not PurchaseRequest.objects.exists()


class TestRequests:
    def test_of_somebody_else_do_not_exist(self, api: ApiClient, quote: dict[str, Any]) -> None:
        asked = order(api, quote, key=a_new_key()).json["purchase_request_id"]
        stranger = ApiClient(secret=a_key(organization=an_organization())[1])
        assert stranger.get(f"/v1/purchase-requests/{asked}").status == 404
        assert decide(stranger, asked).status == 404
        assert stranger.get("/v1/purchase-requests").json["data"] == []
        assert api.get(f"/v1/purchase-requests/{asked}").json["id"] == asked

    def test_need_the_scope_that_writes_bills(
        self, api: ApiClient, organization: Organization, quote: dict[str, Any]
    ) -> None:
        asked = order(api, quote, key=a_new_key()).json["purchase_request_id"]
        scopes = [Scope.BILLING_READ, Scope.RESERVATIONS_WRITE]
        other = ApiClient(secret=a_key(organization=organization, scopes=scopes)[1])
        assert decide(other, asked).code == "scope_missing"
