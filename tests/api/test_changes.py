"""Changes over HTTP: a quote, then the deed, once per key."""

import datetime as dt

import pytest

from marketplace.core.windows import format_instant
from marketplace.models import Listing, Organization
from marketplace.states import Scope
from scheduler.models import Change, ChangeQuote
from tests.api.world import a_fleet, a_new_key, a_quote, a_reservation, a_window, fund
from tests.conftest import Answer, ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db


@pytest.fixture
def reservation_id(api: ApiClient, organization: Organization) -> str:
    """Return a reservation that begins in two days."""
    a_fleet(gpus=8)
    fund(organization)
    quote = a_quote(api, gpus=8, window=a_window(in_hours=47, hours=4))
    return str(a_reservation(api, quote=quote)["id"])


def quote_of(api: ApiClient, reservation_id: str) -> Answer:
    return api.post(f"/v1/reservations/{reservation_id}/cancellation-quote", {})


def leave(api: ApiClient, reservation_id: str, *, quote_id: str, key: str | None = None) -> Answer:
    path = f"/v1/reservations/{reservation_id}/cancellation"
    return api.post(path, {"quote_id": quote_id}, key=key or a_new_key())


class TestCancellationQuote:
    def test_says_what_comes_back_and_by_which_ladder(
        self, api: ApiClient, reservation_id: str
    ) -> None:
        answer = quote_of(api, reservation_id)
        assert answer.status == 201
        quote = answer.json
        total = quote["total_before"]["amount_minor"]
        assert (quote["kind"], quote["fee_basis_points"]) == ("cancellation", 5_000)
        assert quote["refund"]["amount_minor"] + quote["fee"]["amount_minor"] == total
        assert quote["total_after"]["amount_minor"] == quote["charge"]["amount_minor"] == 0
        assert quote["ladder"] == [
            {"notice": "PT720H", "fee_basis_points": 1_000},
            {"notice": "PT168H", "fee_basis_points": 2_500},
            {"notice": "PT24H", "fee_basis_points": 5_000},
            {"notice": "PT0S", "fee_basis_points": 10_000},
        ]
        assert (quote["rule_version"], quote["fee_waived_because"]) == (1, None)
        assert (quote["starts_at"], quote["ends_at"]) == (None, None)

    def test_changes_nothing(self, api: ApiClient, reservation_id: str) -> None:
        quote_of(api, reservation_id)
        reservation = api.get(f"/v1/reservations/{reservation_id}").json
        assert (reservation["status"], reservation["changes"]) == ("scheduled", [])

    def test_takes_no_fields(self, api: ApiClient, reservation_id: str) -> None:
        path = f"/v1/reservations/{reservation_id}/cancellation-quote"
        answer = api.post(path, {"fee_basis_points": 0})
        assert (answer.status, answer.code) == (422, "invalid_request")

    def test_is_hidden_from_other_organizations(self, reservation_id: str, db: None) -> None:
        _, secret = a_key(organization=an_organization())
        stranger = ApiClient(secret=secret)
        assert quote_of(stranger, reservation_id).status == 404
        assert quote_of(stranger, "rsv_nobody").status == 404
        assert leave(stranger, reservation_id, quote_id="qte_1").status == 404

    def test_needs_the_scope_to_write(self, organization: Organization) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.RESERVATIONS_READ])
        answer = quote_of(ApiClient(secret=secret), "rsv_1")
        assert (answer.status, answer.code) == (403, "scope_missing")


class TestCancellation:
    def test_refunds_and_shows_in_the_reservation(
        self, api: ApiClient, reservation_id: str
    ) -> None:
        before = api.get("/v1/wallet").json["balance"]["amount_minor"]
        quote = quote_of(api, reservation_id).json
        answer = leave(api, reservation_id, quote_id=quote["id"])
        assert answer.status == 201
        change = answer.json
        assert (change["kind"], change["refunded"]) == ("cancellation", quote["refund"])
        reservation = api.get(f"/v1/reservations/{reservation_id}").json
        assert (reservation["status"], reservation["nodes"]) == ("cancelled", [])
        assert reservation["changes"] == [change]
        assert reservation["extensions"] == []
        assert reservation["history"][-1]["reason"] == "tenant_cancelled"
        after = api.get("/v1/wallet").json["balance"]["amount_minor"]
        assert after == before + quote["refund"]["amount_minor"]

    def test_happens_once_per_key(self, api: ApiClient, reservation_id: str) -> None:
        quote_id, key = quote_of(api, reservation_id).json["id"], a_new_key()
        first = leave(api, reservation_id, quote_id=quote_id, key=key)
        again = leave(api, reservation_id, quote_id=quote_id, key=key)
        assert (first.status, first.content) == (again.status, again.content)
        assert again.headers["Idempotent-Replayed"] == "true"
        assert Change.objects.count() == 1

    def test_needs_a_key(self, api: ApiClient, reservation_id: str) -> None:
        path = f"/v1/reservations/{reservation_id}/cancellation"
        answer = api.post(path, {"quote_id": "qte_1"})
        assert (answer.status, answer.code) == (400, "idempotency_key_required")

    def test_refuses_what_is_over(self, api: ApiClient, reservation_id: str) -> None:
        quote_id = quote_of(api, reservation_id).json["id"]
        leave(api, reservation_id, quote_id=quote_id)
        answer = leave(api, reservation_id, quote_id=quote_id)
        assert (answer.status, answer.code) == (409, "state_conflict")
        assert quote_of(api, reservation_id).code == "state_conflict"

    def test_refuses_an_expired_quote(self, api: ApiClient, reservation_id: str) -> None:
        quote = quote_of(api, reservation_id).json
        ChangeQuote.objects.update(expires_at=quote["created_at"])
        answer = leave(api, reservation_id, quote_id=quote["id"])
        assert (answer.status, answer.code) == (410, "quote_expired")

    def test_refuses_a_quote_that_nobody_made(self, api: ApiClient, reservation_id: str) -> None:
        for quote_id in ("qte_nobody", "x" * 32):
            answer = leave(api, reservation_id, quote_id=quote_id)
            assert (answer.status, answer.code) == (404, "not_found")


def extension_quote(api: ApiClient, reservation_id: str, **wishes: str) -> Answer:
    return api.post(f"/v1/reservations/{reservation_id}/extension-quote", wishes)


def extend(api: ApiClient, reservation_id: str, *, key: str | None = None, **body: str) -> Answer:
    path = f"/v1/reservations/{reservation_id}/extensions"
    return api.post(path, body, key=key or a_new_key())


class TestExtension:
    def test_is_quoted_bought_and_shown(self, api: ApiClient, reservation_id: str) -> None:
        before = api.get(f"/v1/reservations/{reservation_id}").json
        end = later(before["ends_at"], hours=2)
        answer = extension_quote(api, reservation_id, ends_at=end)
        assert answer.status == 201
        quote = answer.json
        assert (quote["kind"], quote["ends_at"]) == ("extension", end)
        assert quote["longest_limited_by"] == "horizon"
        assert quote["added_rate"] == before["rate"]
        assert len(quote["price_breakdown"]) == 1

        key = a_new_key()
        bought = extend(api, reservation_id, quote_id=quote["id"], key=key)
        assert bought.status == 201
        assert bought.json["id"].startswith("ext_")
        assert bought.json["charged"] == quote["charge"]
        again = extend(api, reservation_id, quote_id=quote["id"], key=key)
        assert again.content == bought.content
        after = api.get(f"/v1/reservations/{reservation_id}").json
        assert (after["ends_at"], after["total"]) == (end, quote["total_after"])
        assert after["extensions"] == after["changes"] == [bought.json]
        assert after["nodes"] == before["nodes"]

    def test_that_goes_too_far_says_how_far_it_can_go(
        self, api: ApiClient, reservation_id: str
    ) -> None:
        before = api.get(f"/v1/reservations/{reservation_id}").json
        Listing.objects.update(duration_seconds_max=6 * 3600)
        answer = extension_quote(api, reservation_id, ends_at=later(before["ends_at"], hours=3))
        assert (answer.status, answer.code) == (409, "extension_refused")
        assert answer.json["reason"] == "max_duration"
        assert answer.json["longest_ends_at"] == later(before["ends_at"], hours=2)

    def test_refuses_a_dear_price_and_a_strange_end(
        self, api: ApiClient, reservation_id: str
    ) -> None:
        end = api.get(f"/v1/reservations/{reservation_id}").json["ends_at"]
        dear = extension_quote(
            api, reservation_id, ends_at=later(end, hours=1), max_rate="0.010000"
        )
        assert (dear.status, dear.code) == (409, "price_above_max")
        assert extension_quote(api, reservation_id, ends_at=end).code == "window_upside_down"
        assert extension_quote(api, reservation_id, ends_at="2030-01-01T00:00:60Z").status == 422
        assert extension_quote(api, reservation_id).code == "invalid_request"

    def test_is_refused_with_the_missing_amount(
        self, api: ApiClient, reservation_id: str, organization: Organization
    ) -> None:
        end = api.get(f"/v1/reservations/{reservation_id}").json["ends_at"]
        quote = extension_quote(api, reservation_id, ends_at=later(end, hours=24 * 100)).json
        answer = extend(api, reservation_id, quote_id=quote["id"])
        assert (answer.status, answer.code) == (402, "payment_required")
        assert answer.json["missing"]["amount_minor"] > 0
        assert api.get(f"/v1/reservations/{reservation_id}").json["ends_at"] == end

    def test_needs_a_key_and_takes_the_wallet_alone(
        self, api: ApiClient, reservation_id: str
    ) -> None:
        path = f"/v1/reservations/{reservation_id}/extensions"
        assert api.post(path, {"quote_id": "qte_1"}).code == "idempotency_key_required"
        answer = extend(api, reservation_id, quote_id="qte_1", payment_method="card")
        assert (answer.status, answer.code) == (501, "payment_method_unavailable")
        assert extend(api, reservation_id, quote_id="qte_nobody").code == "not_found"


def change_quote(api: ApiClient, reservation_id: str, **wishes: str) -> Answer:
    return api.post(f"/v1/reservations/{reservation_id}/change-quote", wishes)


def change(api: ApiClient, reservation_id: str, *, key: str | None = None, **body: str) -> Answer:
    path = f"/v1/reservations/{reservation_id}/changes"
    return api.post(path, body, key=key or a_new_key())


class TestChange:
    def test_of_the_window_is_quoted_made_and_shown(
        self, api: ApiClient, reservation_id: str
    ) -> None:
        before = api.get(f"/v1/reservations/{reservation_id}").json
        end = later(before["ends_at"], hours=-1)
        quote = change_quote(api, reservation_id, ends_at=end)
        assert (quote.status, quote.json["kind"]) == (201, "shortening")
        assert (quote.json["added_rate"], quote.json["price_breakdown"]) == (None, [])
        key = a_new_key()
        made = change(api, reservation_id, quote_id=quote.json["id"], key=key)
        assert (made.status, made.json["refunded"]) == (201, quote.json["refund"])
        assert made.json["id"].startswith("chg_")
        assert change(api, reservation_id, quote_id=quote.json["id"], key=key).content == (
            made.content
        )
        after = api.get(f"/v1/reservations/{reservation_id}").json
        assert (after["ends_at"], after["changes"]) == (end, [made.json])
        assert after["extensions"] == []

    def test_moves_a_window(self, api: ApiClient, reservation_id: str) -> None:
        before = api.get(f"/v1/reservations/{reservation_id}").json
        starts, ends = (later(before[name], hours=30) for name in ("starts_at", "ends_at"))
        quote = change_quote(api, reservation_id, starts_at=starts, ends_at=ends).json
        assert (quote["kind"], quote["added_rate"]) == ("move", before["rate"])
        made = change(api, reservation_id, quote_id=quote["id"])
        assert (made.json["starts_at"], made.json["ends_at"]) == (starts, ends)

    def test_refuses_what_makes_no_sense(self, api: ApiClient, reservation_id: str) -> None:
        before = api.get(f"/v1/reservations/{reservation_id}").json
        assert change_quote(api, reservation_id).code == "invalid_value"
        assert change_quote(api, reservation_id, gpus="4").code == "invalid_request"
        same = change_quote(api, reservation_id, ends_at=before["starts_at"])
        assert (same.status, same.code) == (422, "window_upside_down")
        assert change(api, reservation_id, quote_id="qte_1").code == "not_found"
        path = f"/v1/reservations/{reservation_id}/changes"
        assert api.post(path, {"quote_id": "qte_1"}).code == "idempotency_key_required"

    def test_is_hidden_from_other_organizations(self, reservation_id: str) -> None:
        _, secret = a_key(organization=an_organization())
        stranger = ApiClient(secret=secret)
        end = "2030-01-01T00:00:00Z"
        assert change_quote(stranger, reservation_id, ends_at=end).status == 404
        assert change(stranger, reservation_id, quote_id="qte_1").status == 404
        assert extension_quote(stranger, reservation_id, ends_at=end).status == 404
        assert extend(stranger, reservation_id, quote_id="qte_1").status == 404


def later(text: str, *, hours: int) -> str:
    """Return the instant of a text some hours later, as a text."""
    return format_instant(dt.datetime.fromisoformat(text) + dt.timedelta(hours=hours))
