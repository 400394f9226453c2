"""`/v1/reservations`: all or nothing, once per key."""

import datetime as dt
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from agents.models import Node
from billing import wallet
from marketplace.models import IdempotencyRecord, Organization
from marketplace.states import Scope
from scheduler import drains, leases, replacements, reservations
from scheduler.models import Allocation, Lease, Quote, Reservation
from tests.api.world import (
    a_fleet,
    a_new_key,
    a_quote,
    a_reservation,
    a_window,
    fund,
)
from tests.conftest import Answer, ApiClient
from tests.factories import a_key, an_organization
from tests.scheduler.factories import say_failed

pytestmark = pytest.mark.django_db

SSH_KEY = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx6Gf0nBQ0kJXh5y6N0b1S7yZ7yqP3b2w1a0c9d8e7f you@host"
)


def buy(api: ApiClient, *, quote: dict[str, Any], key: str | None = None, **changes: Any) -> Answer:
    body = {"quote_id": quote["id"], "payment_method": "wallet", **changes}
    return api.post("/v1/reservations", body, key=key or a_new_key())


class TestCreate:
    def test_takes_the_money_and_the_capacity(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet(gpus=8)
        fund(organization)
        quote = a_quote(api, gpus=8)
        answer = buy(
            api,
            quote=quote,
            name="night run",
            project="llm-7",
            tags={"team": "nlp"},
            ssh_public_keys=[SSH_KEY],
            image="registry.example/train:1",
        )
        assert answer.status == 201
        reservation = answer.json
        assert (reservation["status"], reservation["payment"]["status"]) == ("scheduled", "paid")
        assert reservation["quote_id"] == quote["id"]
        assert (reservation["rate"], reservation["total"]) == (quote["rate"], quote["total"])
        assert reservation["tags"] == {"team": "nlp"}
        assert reservation["ssh_public_keys"] == [SSH_KEY]
        assert [node["gpus"] for node in reservation["nodes"]] == [8]
        assert [(m["to_status"], m["reason"]) for m in reservation["history"]] == [
            ("payment_pending", "quote_accepted"),
            ("scheduled", "paid"),
        ]
        left = 1_000_000 - quote["total"]["amount_minor"]
        assert api.get("/v1/wallet").json["balance"] == {"amount_minor": left, "currency": "usd"}
        assert api.get(f"/v1/quotes/{quote['id']}").json["status"] == "used"

    def test_answers_the_same_call_with_the_first_answer(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        quote, key = a_quote(api), a_new_key()
        first, again = buy(api, quote=quote, key=key), buy(api, quote=quote, key=key)
        assert (first.status, first.content) == (again.status, again.content)
        assert again.headers["Idempotent-Replayed"] == "true"
        assert Reservation.objects.count() == 1

    def test_refuses_the_key_for_another_body(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        quote, key = a_quote(api), a_new_key()
        buy(api, quote=quote, key=key)
        answer = buy(api, quote=quote, key=key, name="other")
        assert (answer.status, answer.code) == (422, "idempotency_key_reused")

    def test_needs_a_key(self, api: ApiClient) -> None:
        body = {"quote_id": "qte_1", "payment_method": "wallet"}
        answer = api.post("/v1/reservations", body)
        assert (answer.status, answer.code) == (400, "idempotency_key_required")


class TestRefusal:
    def left_alone(self, *, organization: Organization, balance: int) -> bool:
        return (
            not Reservation.objects.exists()
            and not Allocation.objects.exists()
            and wallet.balance(organization=organization).amount_minor == balance
        )

    def test_of_an_empty_wallet_says_what_is_missing(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization, amount_minor=1)
        quote = a_quote(api)
        answer = buy(api, quote=quote)
        assert (answer.status, answer.code) == (402, "payment_required")
        missing = quote["total"]["amount_minor"] - 1
        assert answer.json["missing"] == {"amount_minor": missing, "currency": "usd"}
        assert self.left_alone(organization=organization, balance=1)
        assert api.get(f"/v1/quotes/{quote['id']}").json["status"] == "open"

    def test_is_kept_under_its_key_and_a_new_key_tries_again(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        quote, key = a_quote(api), a_new_key()
        assert buy(api, quote=quote, key=key).status == 402
        fund(organization)
        assert buy(api, quote=quote, key=key).status == 402
        assert buy(api, quote=quote).status == 201

    def test_of_a_quote_that_was_used(self, api: ApiClient, organization: Organization) -> None:
        a_fleet()
        fund(organization)
        quote = a_quote(api)
        buy(api, quote=quote)
        answer = buy(api, quote=quote)
        assert (answer.status, answer.code) == (409, "quote_used")
        assert re.search(r" was used at \d{4}-\d\d-\d\dT[0-9:.]+Z$", answer.json["detail"])
        assert Reservation.objects.count() == 1

    def test_of_a_quote_that_expired(self, api: ApiClient, organization: Organization) -> None:
        a_fleet()
        fund(organization)
        quote = a_quote(api)
        Quote.objects.update(expires_at=timezone.now())
        answer = buy(api, quote=quote)
        assert (answer.status, answer.code) == (410, "quote_expired")
        assert self.left_alone(organization=organization, balance=1_000_000)

    def test_of_somebody_elses_quote_is_that_of_nobodys(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        stranger = an_organization()
        fund(stranger)
        quote = a_quote(api)
        _, secret = a_key(organization=stranger)
        answer = buy(api.signed_in(secret=secret), quote=quote)
        assert (answer.status, answer.code) == (404, "not_found")
        assert self.left_alone(organization=stranger, balance=1_000_000)

    def test_of_capacity_that_a_rival_took(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet(gpus=2)
        fund(organization)
        window = a_window()
        first, second = (a_quote(api, window=window, gpus=2) for _ in range(2))
        assert buy(api, quote=first).status == 201
        answer = buy(api, quote=second)
        assert (answer.status, answer.code) == (409, "capacity_taken")

    @pytest.mark.parametrize("method", ["card", "bank_transfer"])
    def test_of_a_way_to_pay_that_is_not_there_gives_the_key_back(
        self, api: ApiClient, organization: Organization, method: str
    ) -> None:
        a_fleet()
        fund(organization)
        quote, key = a_quote(api), a_new_key()
        answer = buy(api, quote=quote, key=key, payment_method=method)
        assert (answer.status, answer.code) == (501, "payment_method_unavailable")
        assert buy(api, quote=quote, key=key).status == 201

    @pytest.mark.parametrize(
        ("changes", "pointer", "code"),
        [
            ({"quote_id": 7}, "/quote_id", "wrong_type"),
            ({"payment_method": "gold"}, "/payment_method", "invalid_choice"),
            ({"tags": []}, "/tags", "wrong_type"),
            ({"tags": {"a": 1}}, "/tags", "wrong_type"),
            ({"tags": {"": "x"}}, "/tags", "blank"),
            ({"tags": {"a\x00": "x"}}, "/tags", "unstorable"),
            ({"tags": {str(n): "" for n in range(51)}}, "/tags", "too_many"),
            ({"tags": {"a": "x" * 257}}, "/tags", "too_long"),
            ({"tags": {"a" * 201: "x"}}, "/tags", "too_long"),
            ({"ssh_public_keys": SSH_KEY}, "/ssh_public_keys", "wrong_type"),
            ({"ssh_public_keys": [7]}, "/ssh_public_keys/0", "wrong_type"),
            ({"ssh_public_keys": [SSH_KEY, "x"]}, "/ssh_public_keys/1", "wrong_form"),
            ({"ssh_public_keys": [SSH_KEY + "\nssh-rsa x"]}, "/ssh_public_keys/0", "wrong_form"),
            ({"ssh_public_keys": ['command="x" ' + SSH_KEY]}, "/ssh_public_keys/0", "wrong_form"),
            ({"ssh_public_keys": [SSH_KEY] * 21}, "/ssh_public_keys", "too_many"),
            ({"name": None}, "/name", "null"),
            ({"name": "x" * 201}, "/name", "too_long"),
            ({"status": "active"}, "/status", "unknown_field"),
        ],
    )
    def test_of_a_field_names_it_and_burns_no_key(
        self, api: ApiClient, changes: dict[str, Any], pointer: str, code: str
    ) -> None:
        answer = buy(api, quote={"id": "qte_1"}, **changes)
        assert (answer.status, answer.code) == (422, "invalid_request")
        assert [(e["pointer"], e["code"]) for e in answer.json["errors"]] == [(pointer, code)]
        assert not IdempotencyRecord.objects.exists()


class TestList:
    def test_pages_newest_first_without_repeats(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet(gpus=8)
        fund(organization)
        ids = [a_reservation(api, quote=a_quote(api, gpus=1))["id"] for _ in range(3)]
        first = api.get("/v1/reservations", limit=2).json
        a_reservation(api, quote=a_quote(api, gpus=1))
        second = api.get("/v1/reservations", limit=2, cursor=first["next_cursor"]).json
        assert [r["id"] for r in first["data"] + second["data"]] == ids[::-1]
        assert second["next_cursor"] is None

    def test_filters(self, api: ApiClient, organization: Organization) -> None:
        a_fleet(gpus=8)
        fund(organization)
        early, late = a_window(in_hours=1), a_window(in_hours=5)
        a = a_reservation(
            api, quote=a_quote(api, window=early, gpus=1), project="p", tags={"team": "nlp"}
        )
        b = a_reservation(
            api, quote=a_quote(api, window=late, gpus=1), tags={"team": "cv", "x": ""}
        )

        def found(**query: str) -> list[str]:
            return [r["id"] for r in api.get("/v1/reservations", **query).json["data"]]

        assert found(status="scheduled") == [b["id"], a["id"]]
        assert found(status="active") == []
        assert found(project="p") == [a["id"]]
        assert found(starts_after=b["starts_at"]) == [b["id"]]
        assert found(ends_before=a["ends_at"]) == [a["id"]]
        assert found(tag="team") == [b["id"], a["id"]]
        assert found(tag="team:nlp") == [a["id"]]
        assert found(tag="x:") == [b["id"]]

    def test_shows_a_stranger_nothing(self, api: ApiClient, organization: Organization) -> None:
        a_fleet()
        fund(organization)
        reservation = a_reservation(api)
        _, secret = a_key(organization=an_organization())
        stranger = api.signed_in(secret=secret)
        assert stranger.get("/v1/reservations").json["data"] == []
        for address in ("", "/bill"):
            answer = stranger.get(f"/v1/reservations/{reservation['id']}{address}")
            assert (answer.status, answer.code) == (404, "not_found")
        answer = stranger.patch(f"/v1/reservations/{reservation['id']}", {"name": "mine"})
        assert (answer.status, answer.code) == (404, "not_found")

    @pytest.mark.parametrize(
        ("query", "pointer", "code"),
        [
            ({"limit": "0"}, "/limit", "out_of_range"),
            ({"limit": "201"}, "/limit", "out_of_range"),
            ({"limit": "1.0"}, "/limit", "wrong_type"),
            ({"limit": "٣"}, "/limit", "wrong_type"),
            ({"limit": ["1", "2"]}, "/limit", "repeated_parameter"),
            ({"cursor": "x"}, "/cursor", "wrong_form"),
            ({"cursor": "WzFd"}, "/cursor", "wrong_form"),
            ({"cursor": "WyItaWQiLG51bGxd"}, "/cursor", "wrong_form"),
            ({"cursor": "WyItaWQiLDVd"}, "/cursor", "wrong_form"),  # ["-id",5]: ids are text
            ({"cursor": "\x00"}, "/cursor", "unstorable"),
            ({"status": "lost"}, "/status", "invalid_choice"),
            ({"starts_after": "yesterday"}, "/starts_after", "wrong_form"),
            ({"tag": "a\x00"}, "/tag", "unstorable"),
            ({"Status": "active"}, "/Status", "unknown_field"),
        ],
    )
    def test_refuses_a_query_that_does_not_fit(
        self, api: ApiClient, query: dict[str, Any], pointer: str, code: str
    ) -> None:
        answer = api.call("GET", "/v1/reservations", query=query)
        assert (answer.status, answer.code) == (422, "invalid_request")
        assert [(e["pointer"], e["code"]) for e in answer.json["errors"]] == [(pointer, code)]


class TestUpdate:
    def test_changes_what_is_named_and_nothing_else(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        before = a_reservation(api, name="old", tags={"a": "b"})
        address = f"/v1/reservations/{before['id']}"
        after = api.patch(address, {"name": "new", "ssh_public_keys": [SSH_KEY]})
        assert after.status == 200
        assert after.json == {**before, "name": "new", "ssh_public_keys": [SSH_KEY]}
        assert api.get(address).json == after.json

    @pytest.mark.parametrize("field", ["gpus", "status", "ends_at", "image", "rate"])
    def test_refuses_every_other_field(
        self, api: ApiClient, organization: Organization, field: str
    ) -> None:
        a_fleet()
        fund(organization)
        reservation = a_reservation(api)
        answer = api.patch(f"/v1/reservations/{reservation['id']}", {field: 1})
        assert answer.status == 422
        assert answer.json["errors"][0]["code"] == "unknown_field"

    def test_is_refused_without_the_scope(
        self, anybody: ApiClient, organization: Organization
    ) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.RESERVATIONS_READ])
        answer = anybody.signed_in(secret=secret).patch("/v1/reservations/rsv_1", {})
        assert (answer.status, answer.code) == (403, "scope_missing")


class TestBill:
    def test_adds_up_before_anything_was_delivered(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        reservation = a_reservation(api)
        bill = api.get(f"/v1/reservations/{reservation['id']}/bill").json
        assert bill["final"] is False
        assert bill["bought"] == reservation["total"] == bill["open"]
        assert bill["gpu_seconds"] == {
            "bought": 7200,
            "delivered": 0,
            "busy": 0,
            "idle": 0,
            "undelivered": 0,
            "released": 0,
            "open": 7200,
            "attached": None,
            "undelivered_by_reason": [],
        }


@pytest.mark.django_db(transaction=True)
class TestParallelPurchase:
    CALLS = 50

    def test_with_one_key_buys_once_and_answers_alike(self) -> None:
        organization = an_organization()
        a_fleet()
        fund(organization)
        _, secret = a_key(organization=organization)
        api = ApiClient(secret=secret)
        quote, key = a_quote(api), a_new_key()
        gate = threading.Barrier(self.CALLS)

        def insist(_number: int) -> tuple[int, bytes]:
            try:
                gate.wait(timeout=30)
                while True:
                    answer = buy(ApiClient(secret=secret), quote=quote, key=key)
                    if answer.status != 409 or answer.code != "idempotency_in_flight":
                        return answer.status, answer.content
            finally:
                connection.close()

        with ThreadPoolExecutor(self.CALLS) as pool:
            answers = set(pool.map(insist, range(self.CALLS)))
        assert len(answers) == 1
        assert {status for status, _ in answers} == {201}
        assert Reservation.objects.count() == 1
        paid = 1_000_000 - quote["total"]["amount_minor"]
        assert wallet.balance(organization=organization).amount_minor == paid


class TestLife:
    @pytest.fixture
    def market(self, organization: Organization) -> Node:
        """Fund the caller, list one machine, and return it."""
        fund(organization)
        return a_fleet()

    def test_takes_and_shows_when_to_warn_of_the_end(self, api: ApiClient, market: Node) -> None:
        reservation = a_reservation(api, warn_before=["2h", "PT10M"])
        assert reservation["warn_before"] == ["PT10M", "PT2H"]
        path = f"/v1/reservations/{reservation['id']}"
        assert api.patch(path, {"warn_before": []}).json["warn_before"] == []
        refused = api.patch(path, {"warn_before": ["5s"]})
        assert (refused.code, refused.json["errors"][0]["pointer"]) == (
            "invalid_value",
            "/warn_before/0",
        )

    def test_shows_who_moved_it_and_where_its_leases_went(
        self, api: ApiClient, market: Node
    ) -> None:
        bought = a_reservation(api)
        starts_at = dt.datetime.fromisoformat(bought["starts_at"])
        a_fleet()
        Node.objects.update(last_report_at=starts_at)
        reservations.start_due(at=starts_at)
        first = Lease.objects.get()
        say_failed(first)
        leases.advance(at=starts_at + dt.timedelta(seconds=2))
        replacements.replace_due(at=starts_at + dt.timedelta(seconds=2))

        shown = api.get(f"/v1/reservations/{bought['id']}").json

        old, new = shown["leases"]
        assert (old["status"], old["replaces"]) == ("failed", None)
        assert (new["status"], new["replaces"]) == ("provisioning", old["id"])
        assert [(m["to_status"], m["reason"]) for m in old["history"]] == [
            ("provisioning", "window_started"),
            ("failed", "handover_failed"),
        ]
        assert new["history"][0]["reason"] == "replaced"
        actors = [move["actor"] for move in shown["history"]]
        assert actors[0].startswith("key_")
        assert actors[-1] == "scheduler"

    def test_shows_that_it_moved_off_a_drained_machine(self, api: ApiClient, market: Node) -> None:
        bought = a_reservation(api)
        a_fleet()
        drains.drain(node=market, at=timezone.now(), actor="owner")

        shown = api.get(f"/v1/reservations/{bought['id']}").json

        (move,) = shown["relocations"]
        assert (move["from_node_ids"], move["reason"], move["gpus"]) == (
            [market.pk],
            "node_drained",
            2,
        )
        assert shown["nodes"][0]["id"] != market.pk
