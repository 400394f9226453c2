"""`/v1/tag-policy`: an order carries what its organization requires, and what is booked stays as it is."""

import datetime as dt
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import tag_policy
from billing.models import TagRule
from billing.tag_policy import TagWish
from marketplace.core.windows import format_instant
from marketplace.models import AuditEvent, Organization
from marketplace.states import Scope
from scheduler.models import Allocation, Quote, Reservation
from scheduler.states import QuoteStatus
from tests.api.world import a_fleet, a_new_key, a_quote, a_reservation, a_window, fund
from tests.conftest import Answer, ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db

TEAM = {"key": "team", "allowed_values": ["audio", "vision"]}
CENTRE = {"key": "cost-centre", "allowed_values": []}


def put(api: ApiClient, *rules: dict[str, Any]) -> Answer:
    return api.call("PUT", "/v1/tag-policy", body={"required_tags": list(rules)})


def order(api: ApiClient, *, quote: dict[str, Any], **body: Any) -> Answer:
    return api.post(
        "/v1/reservations",
        {"quote_id": quote["id"], "payment_method": "wallet", **body},
        key=a_new_key(),
    )


class TestThePolicy:
    def test_is_read_as_it_was_put_and_replaced_whole(
        self, api: ApiClient, organization: Organization
    ) -> None:
        assert api.get("/v1/tag-policy").json == {"required_tags": []}
        assert put(api, TEAM, {"key": "cost-centre"}).status == 200
        shown = api.get("/v1/tag-policy").json["required_tags"]
        assert [(each["key"], each["allowed_values"]) for each in shown] == [
            ("cost-centre", []),
            ("team", ["audio", "vision"]),
        ]
        assert put(api, CENTRE).json["required_tags"][0]["key"] == "cost-centre"
        assert TagRule.objects.get().key == "cost-centre"
        told = AuditEvent.objects.filter(action="tag_policy.replaced", organization=organization)
        assert [len(each.detail["required"]) for each in told] == [1, 2]

    @pytest.mark.parametrize(
        ("rules", "pointer"),
        [
            ([TEAM, TEAM], "/required_tags/1/key"),
            ([{"key": ""}], "/required_tags/0/key"),
            ([{"key": "k" * 129}], "/required_tags/0/key"),
            (
                [{"key": "k", "allowed_values": ["v" * 257]}],
                "/required_tags/0/allowed_values/0",
            ),
            ([{"key": "k", "allowed_values": ["a", "a"]}], "/required_tags/0/allowed_values"),
            ([{"key": "k", "allowed_values": [""]}], "/required_tags/0/allowed_values/0"),
            ([{"key": f"k{n}"} for n in range(51)], "/required_tags"),
            ([{"key": "k", "values": []}], "/required_tags/0/values"),
        ],
    )
    def test_refuses_what_no_order_could_carry(
        self, api: ApiClient, rules: list[dict[str, Any]], pointer: str
    ) -> None:
        answer = put(api, *rules)
        assert answer.status == 422
        assert [error["pointer"] for error in answer.json["errors"]] == [pointer]
        assert not TagRule.objects.exists()

    def test_takes_its_longest_key_and_value(self, api: ApiClient) -> None:
        assert put(api, {"key": "k" * 128, "allowed_values": ["v" * 256]}).status == 200

    def test_is_one_organizations_own(self, api: ApiClient) -> None:
        put(api, TEAM)
        _, secret = a_key(organization=an_organization())
        assert ApiClient(secret=secret).get("/v1/tag-policy").json == {"required_tags": []}

    def test_takes_a_key_that_may_write(self, organization: Organization) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.BILLING_READ])
        reader = ApiClient(secret=secret)
        assert reader.get("/v1/tag-policy").status == 200
        assert put(reader, TEAM).code == "scope_missing"


class TestAnOrder:
    @pytest.fixture
    def quote(self, api: ApiClient, organization: Organization) -> dict[str, Any]:
        """Return a quote of an organization that requires two tags."""
        a_fleet()
        fund(organization)
        put(api, TEAM, CENTRE)
        return a_quote(api)

    def test_that_was_made_is_answered_again_whatever_is_required_since(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        wish, key = {"quote_id": a_quote(api)["id"], "payment_method": "wallet"}, a_new_key()
        first = api.post("/v1/reservations", wish, key=key)
        put(api, TEAM)
        again = api.post("/v1/reservations", wish, key=key)
        assert (first.status, again.status) == (201, 201)
        assert again.json == first.json

    @pytest.mark.parametrize(
        ("tags", "missing"),
        [
            ({}, ["cost-centre", "team"]),
            ({"team": "audio"}, ["cost-centre"]),
            ({"team": "", "cost-centre": "4711"}, ["team"]),
            ({"Team": "audio", "cost-centre": "4711"}, ["team"]),
        ],
    )
    def test_without_a_required_tag_is_refused_and_leaves_no_trace(
        self, api: ApiClient, quote: dict[str, Any], tags: dict[str, str], missing: list[str]
    ) -> None:
        answer = order(api, quote=quote, tags=tags)
        assert (answer.status, answer.code) == (422, "tag_required")
        assert answer.json["required_tags"] == missing
        assert answer.json["errors"][0]["pointer"] == "/tags"
        assert not Reservation.objects.exists()
        assert not Allocation.objects.exists()
        assert Quote.objects.get().status == QuoteStatus.OPEN

    def test_with_a_value_that_is_not_allowed_is_refused(
        self, api: ApiClient, quote: dict[str, Any]
    ) -> None:
        answer = order(api, quote=quote, tags={"team": "sales", "cost-centre": "4711"})
        assert (answer.status, answer.code) == (422, "tag_value_not_allowed")
        assert (answer.json["tag"], answer.json["allowed_values"]) == ("team", ["audio", "vision"])
        assert not Reservation.objects.exists()

    def test_that_carries_them_is_taken(self, api: ApiClient, quote: dict[str, Any]) -> None:
        tags = {"team": "vision", "cost-centre": "4711", "more": "x"}
        answer = order(api, quote=quote, tags=tags)
        assert (answer.status, answer.json["tags"]) == (201, tags)

    def test_is_refused_before_another_person_is_asked_for_it(
        self, api: ApiClient, quote: dict[str, Any]
    ) -> None:
        limit = {"limit": {"amount_minor": 1, "currency": "usd"}}
        assert api.call("PUT", "/v1/approval-limit", body=limit).status == 200
        assert order(api, quote=quote).code == "tag_required"
        assert api.get("/v1/purchase-requests").json["data"] == []

    def test_may_take_a_tag_back_no_more(self, api: ApiClient, quote: dict[str, Any]) -> None:
        tags = {"team": "vision", "cost-centre": "4711"}
        made = order(api, quote=quote, tags=tags).json
        address = f"/v1/reservations/{made['id']}"
        refused = api.call("PATCH", address, body={"tags": {"team": "vision"}})
        assert (refused.status, refused.code) == (422, "tag_required")
        assert api.get(address).json["tags"] == tags
        other = {**tags, "team": "audio"}
        assert api.call("PATCH", address, body={"tags": other}).json["tags"] == other


class TestWhatIsBooked:
    def test_keeps_its_tags_and_is_extended_with_them(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        quote = a_quote(api, window=a_window(in_hours=47, hours=4))
        made = a_reservation(api, quote=quote, tags={"owner": "me"})
        put(api, TEAM)
        address = f"/v1/reservations/{made['id']}"
        assert api.call("PATCH", address, body={"name": "still"}).json["name"] == "still"
        later = dt.datetime.fromisoformat(made["ends_at"]) + dt.timedelta(hours=1)
        offer = api.post(f"{address}/extension-quote", {"ends_at": format_instant(later)})
        assert offer.status == 201, offer.content
        answer = api.post(
            f"{address}/extensions",
            {"quote_id": offer.json["id"], "payment_method": "wallet"},
            key=a_new_key(),
        )
        assert answer.status == 201, answer.content
        assert api.get(address).json["tags"] == {"owner": "me"}


def test_an_operator_sets_a_rule_in_the_admin(
    admin_client: Client, organization: Organization, settings: Any
) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    tag_policy.put(
        organization=organization, wishes=[TagWish(key="team")], at=timezone.now(), actor="test"
    )
    fields = {"organization": organization.pk, "key": "cost-centre", "allowed_values": "1,2"}
    assert admin_client.post(reverse("admin:billing_tagrule_add"), fields).status_code == 302
    rules = tag_policy.rules_of(organization=organization)
    assert [(rule.key, rule.allowed_values) for rule in rules] == [
        ("cost-centre", ["1", "2"]),
        ("team", []),
    ]
    assert rules[0].updated_by == "admin"
    address = reverse("admin:billing_tagrule_change", args=[rules[0].pk])
    assert admin_client.get(address).status_code == 200
    assert admin_client.post(address, {"allowed_values": ""}).status_code == 302
    assert tag_policy.rules_of(organization=organization)[0].allowed_values == []
    gone = reverse("admin:billing_tagrule_delete", args=[rules[0].pk])
    assert admin_client.post(gone, {"post": "yes"}).status_code == 302
    assert [rule.key for rule in tag_policy.rules_of(organization=organization)] == ["team"]
