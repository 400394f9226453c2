"""What one person orders alone, over HTTP and in the admin: lowered by one, raised by two."""

import datetime as dt
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.utils import timezone

from billing.models import ApprovalLimit, LimitRequest, LimitRequestTransition
from marketplace.models import ApiKey, AuditEvent, Event, Organization
from marketplace.states import Scope
from tests.conftest import Answer, ApiClient
from tests.factories import a_key, an_organization
from tests.marketplace.test_admin import PLAIN_FILES

pytestmark = pytest.mark.django_db
PATH = "/v1/approval-limit"
REQUESTS = "/v1/approval-limit-requests"


@pytest.fixture(autouse=True)
def _plain_files():
    with PLAIN_FILES:
        yield


@pytest.fixture
def limited(api: ApiClient) -> ApiClient:
    """Return a client whose organization has a limit of 100.00 and no other key."""
    assert wish(api, 10_000).status == 200
    return api


@pytest.fixture
def cfo(organization: Organization) -> ApiClient:
    """Return a client with another key of the same organization that writes bills."""
    scopes = [Scope.BILLING_READ, Scope.BILLING_WRITE]
    return ApiClient(secret=a_key(organization=organization, scopes=scopes)[1])


def wish(client: ApiClient, amount_minor: int | None) -> Answer:
    return client.call("PUT", PATH, body={"limit": money(amount_minor)})


def money(amount_minor: int | None) -> dict[str, object] | None:
    return None if amount_minor is None else {"amount_minor": amount_minor, "currency": "usd"}


def decide(client: ApiClient, request_id: str, word: str = "approve") -> Answer:
    return client.post(f"{REQUESTS}/{request_id}/{word}", {})


class TestALowerLimit:
    @pytest.mark.parametrize("amount", [0, 9_999])
    def test_is_in_force_at_once(self, limited: ApiClient, amount: int) -> None:
        answer = wish(limited, amount)
        assert (answer.status, answer.json) == (200, {"limit": money(amount), "requested": None})
        assert limited.get(PATH).json["limit"] == money(amount)

    def test_is_the_first_one_as_well(self, api: ApiClient, organization: Organization) -> None:
        assert api.get(PATH).json == {"limit": None, "requested": None}
        assert wish(api, 5).status == 200
        told = Event.objects.get(kind="approval_limit.changed")
        actor = ApiKey.objects.get().pk
        assert told.organization == organization
        assert told.data == {"amount_minor": 5, "currency": "usd", "actor": actor}
        assert AuditEvent.objects.filter(action="approval_limit.changed", actor=actor).exists()

    def test_refuses_what_was_asked_for_of_another_one(
        self, limited: ApiClient, cfo: ApiClient
    ) -> None:
        asked = wish(limited, 20_000).json["requested"]["id"]
        assert wish(cfo, 5_000).json == {"limit": money(5_000), "requested": None}
        assert limited.get(f"{REQUESTS}/{asked}").json["status"] == "refused"
        assert decide(cfo, asked).code == "state_conflict"

    def test_that_is_the_same_changes_nothing(self, limited: ApiClient) -> None:
        assert wish(limited, 10_000).status == 200
        assert Event.objects.filter(kind="approval_limit.changed").count() == 1


class TestAHigherLimit:
    @pytest.mark.parametrize("amount", [10_001, None])
    def test_waits_for_another_key(
        self, limited: ApiClient, cfo: ApiClient, amount: int | None
    ) -> None:
        answer = wish(limited, amount)
        assert (answer.status, answer.json["limit"]) == (202, money(10_000))
        asked = answer.json["requested"]
        assert (asked["limit"], asked["limit_before"]) == (money(amount), money(10_000))
        assert (asked["status"], asked["decider"]) == ("requested", "organization")
        assert limited.get(PATH).json == answer.json
        decided = decide(cfo, asked["id"]).json
        assert (decided["status"], decided["decider"]) == ("approved", None)
        assert limited.get(PATH).json == {"limit": money(amount), "requested": None}
        kinds = Event.objects.filter(object_id=asked["id"]).order_by("id")
        assert list(kinds.values_list("kind", flat=True)) == [
            "limit_request.opened",
            "limit_request.approved",
        ]
        assert list(LimitRequestTransition.objects.values_list("to_status", flat=True)) == [
            "requested",
            "approved",
        ]

    def test_is_not_approved_by_the_key_that_asked(
        self, limited: ApiClient, cfo: ApiClient
    ) -> None:
        asked = wish(limited, None).json["requested"]["id"]
        answer = decide(limited, asked)
        assert (answer.status, answer.code) == (403, "four_eyes_needed")
        assert "another key of the organization" in answer.json["detail"]
        assert limited.get(PATH).json["limit"] == money(10_000)

    def test_is_asked_for_once(self, limited: ApiClient, cfo: ApiClient) -> None:
        first = wish(limited, 20_000)
        assert wish(limited, 20_000).json == wish(cfo, 20_000).json == first.json
        assert wish(cfo, 30_000).code == "state_conflict"
        assert LimitRequest.objects.count() == 1

    def test_is_refused_or_taken_back(self, limited: ApiClient, cfo: ApiClient) -> None:
        for client in (cfo, limited):
            asked = wish(limited, 20_000).json["requested"]["id"]
            assert decide(client, asked, "refuse").json["status"] == "refused"
            assert decide(cfo, asked).code == "state_conflict"
            assert limited.get(PATH).json == {"limit": money(10_000), "requested": None}

    def test_of_somebody_else_does_not_exist(self, limited: ApiClient, cfo: ApiClient) -> None:
        asked = wish(limited, 20_000).json["requested"]["id"]
        stranger = ApiClient(secret=a_key(organization=an_organization())[1])
        assert stranger.get(f"{REQUESTS}/{asked}").status == 404
        assert decide(stranger, asked).status == 404
        assert decide(stranger, asked, "refuse").status == 404
        assert stranger.get(REQUESTS).json["data"] == []
        (row,) = cfo.get(REQUESTS, status="requested").json["data"]
        assert row["id"] == asked
        assert cfo.get(REQUESTS, status="approved").json["data"] == []

    def test_is_not_for_keys_that_do_not_write_bills(
        self, limited: ApiClient, organization: Organization
    ) -> None:
        asked = wish(limited, 20_000).json["requested"]["id"]
        scopes = [Scope.BILLING_READ, Scope.RESERVATIONS_WRITE]
        buyer = ApiClient(secret=a_key(organization=organization, scopes=scopes)[1])
        assert decide(buyer, asked).code == "scope_missing"
        assert wish(buyer, 20_000).code == "scope_missing"
        # Such a key makes no second person either.
        assert limited.get(PATH).json["requested"]["decider"] == "operator"


class TestAnOrganizationWithOneKey:
    def test_is_told_that_an_operator_decides(self, limited: ApiClient) -> None:
        asked = wish(limited, None).json["requested"]
        assert asked["decider"] == "operator"
        assert Event.objects.get(kind="limit_request.opened").data["decider"] == "operator"
        answer = decide(limited, asked["id"])
        assert answer.code == "four_eyes_needed"
        assert "an operator of the market" in answer.json["detail"]

    def test_counts_no_key_that_was_revoked_or_has_expired(
        self, limited: ApiClient, cfo: ApiClient, organization: Organization
    ) -> None:
        asked = wish(limited, None).json["requested"]["id"]
        other = ApiKey.objects.exclude(pk=LimitRequest.objects.get().requested_by)
        past = timezone.now() - dt.timedelta(seconds=1)
        for change, back in (
            ({"revoked_at": past}, {"revoked_at": None}),
            ({"expires_at": past},) * 2,
        ):
            other.update(**change)
            assert limited.get(f"{REQUESTS}/{asked}").json["decider"] == "operator"
            other.update(**back)

    def test_gets_its_limit_from_an_operator(
        self, limited: ApiClient, admin_client: Client
    ) -> None:
        asked = wish(limited, None).json["requested"]["id"]
        listing = "/admin/billing/limitrequest/"
        assert "operator" in admin_client.get(listing).content.decode().lower()
        assert admin_client.get(f"{listing}{asked}/change/").status_code == 200
        admin_client.post(listing, {"action": "approve", "_selected_action": [asked]})
        assert limited.get(PATH).json["limit"] is None
        assert limited.get(f"{REQUESTS}/{asked}").json["decided_by"] == "admin:admin"


class TestOperators:
    def test_lower_a_limit_alone_and_raise_it_with_somebody_else(
        self, organization: Organization, api: ApiClient, admin_client: Client
    ) -> None:
        page = "/admin/billing/approvallimit/set/"
        assert admin_client.get(page).status_code == 200
        body: dict[str, Any] = {"organization": organization.pk, "amount_minor": "500"}
        assert admin_client.post(page, body).status_code == 302
        assert api.get(PATH).json["limit"] == money(500)
        assert "5.00" in admin_client.get("/admin/billing/approvallimit/").content.decode()
        shown = admin_client.post(page, {**body, "amount_minor": ""}, follow=True).content.decode()
        assert "waits for somebody else" in shown
        asked = api.get(PATH).json["requested"]
        action = {"action": "approve", "_selected_action": [asked["id"]]}
        answer = admin_client.post("/admin/billing/limitrequest/", action, follow=True)
        assert "asked for this" in answer.content.decode()
        assert (
            "asks for another limit"
            in admin_client.post(page, {**body, "amount_minor": "900"}).content.decode()
        )
        assert decide(api, asked["id"]).json["status"] == "approved"
        assert api.get(PATH).json["limit"] is None

    def test_refuse_it(self, limited: ApiClient, admin_client: Client) -> None:
        asked = wish(limited, None).json["requested"]["id"]
        action = {"action": "refuse", "_selected_action": [asked]}
        admin_client.post("/admin/billing/limitrequest/", action)
        assert limited.get(f"{REQUESTS}/{asked}").json["status"] == "refused"

    def test_without_the_permission_do_neither(
        self, limited: ApiClient, client: Client, django_user_model: Any
    ) -> None:
        asked = wish(limited, None).json["requested"]["id"]
        reader = django_user_model.objects.create_user("reader", password="x", is_staff=True)
        client.force_login(reader)
        assert client.get("/admin/billing/approvallimit/set/").status_code == 403
        action = {"action": "approve", "_selected_action": [asked]}
        assert client.post("/admin/billing/limitrequest/", action).status_code == 403
        assert limited.get(PATH).json["limit"] == money(10_000)


class TestPostgresql:
    @pytest.mark.parametrize("amount", [10_001, None])
    def test_refuses_a_limit_that_one_person_raised(
        self, limited: ApiClient, amount: int | None
    ) -> None:
        with pytest.raises(IntegrityError, match="nobody else has approved"), transaction.atomic():
            ApprovalLimit.objects.update(amount_minor=amount, updated_at=timezone.now())
        ApprovalLimit.objects.update(amount_minor=9_999)

    def test_refuses_a_limit_that_is_taken_away_or_given_to_another(
        self, limited: ApiClient
    ) -> None:
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            ApprovalLimit.objects.all().delete()
        with pytest.raises(IntegrityError, match="stays"), transaction.atomic():
            ApprovalLimit.objects.update(organization=an_organization())

    def test_refuses_a_decision_by_who_asked(self, limited: ApiClient) -> None:
        wish(limited, None)
        row = LimitRequest.objects.get()
        with pytest.raises(IntegrityError, match="limit_needs_four_eyes"), transaction.atomic():
            LimitRequest.objects.update(
                status="approved", decided_by=row.requested_by, decided_at=timezone.now()
            )

    def test_lets_no_decision_raise_a_limit_twice(self, limited: ApiClient, cfo: ApiClient) -> None:
        decide(cfo, wish(limited, 20_000).json["requested"]["id"])
        ApprovalLimit.objects.update(amount_minor=10_000)
        # The very decision is there, of this instant and by this person, but it is found no other limit.
        wish(limited, 5_000)
        with pytest.raises(IntegrityError, match="nobody else has approved"), transaction.atomic():
            ApprovalLimit.objects.update(amount_minor=20_000)

    def test_forgets_no_request(self, limited: ApiClient) -> None:
        wish(limited, None)
        for rows in (LimitRequestTransition.objects.all(), LimitRequest.objects.all()):
            with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(f"DELETE FROM {rows.model._meta.db_table}")
        with pytest.raises(IntegrityError), transaction.atomic():
            LimitRequest.objects.update(amount_minor=99_999)


def test_a_limit_in_another_currency_is_refused(api: ApiClient) -> None:
    body = {"limit": {"amount_minor": 5, "currency": "eur"}}
    assert api.call("PUT", PATH, body=body).status == 422
    assert not ApprovalLimit.objects.exists()


def test_an_unknown_request_is_not_found(api: ApiClient) -> None:
    assert api.get(f"{REQUESTS}/apr_1").code == "not_found"
    assert decide(api, "apr_1").code == "not_found"
