"""Buying on account over HTTP: what a purchase answers, and how it is refused."""

from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from billing.models import CreditSale
from marketplace.models import Organization
from scheduler.models import Reservation
from tests.api.world import a_fleet, a_new_key, a_quote, a_reservation, fund
from tests.billing import debtors
from tests.conftest import Answer, ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db


def buy(api: ApiClient, *, quote: dict[str, Any], key: str | None = None) -> Answer:
    return api.post(
        "/v1/reservations",
        {"quote_id": quote["id"], "payment_method": "invoice"},
        key=key or a_new_key(),
    )


def grant(organization: Organization, *, limit: int = 1_000_000) -> None:
    debtors.grant(organization, limit=limit, currency=settings.CURRENCY, at=timezone.now())


class TestPurchase:
    def test_on_account_is_confirmed_at_once_and_shows_its_invoice(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        grant(organization)
        answer = buy(api, quote=a_quote(api))
        assert (answer.status, answer.json["status"]) == (201, "scheduled")
        payment = answer.json["payment"]
        sale = CreditSale.objects.get()
        assert (payment["method"], payment["status"]) == ("invoice", "owed")
        assert payment["invoice"]["open"] == answer.json["total"]
        assert payment["invoice"]["number"] == sale.invoice.number
        assert payment["invoice"]["id"] == sale.invoice_id
        assert payment["invoice"]["due_at"].startswith(f"{sale.due_at:%Y-%m-%dT%H:%M}")
        shown = api.get(f"/v1/reservations/{answer.json['id']}").json
        assert shown["payment"] == payment

    def test_shows_no_invoice_of_what_the_wallet_paid(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        assert a_reservation(api)["payment"]["invoice"] is None

    def test_without_a_limit_is_refused_and_leaves_the_quote(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        quote = a_quote(api)
        answer = buy(api, quote=quote)
        assert (answer.status, answer.code) == (403, "credit_not_granted")
        assert not Reservation.objects.exists()
        grant(organization)
        assert buy(api, quote=quote).status == 201

    def test_beyond_the_limit_says_how_much_is_missing(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        quote = a_quote(api)
        grant(organization, limit=quote["total"]["amount_minor"] - 7)
        answer = buy(api, quote=quote)
        assert (answer.status, answer.code) == (402, "credit_limit_exceeded")
        assert answer.json["missing"] == {"amount_minor": 7, "currency": settings.CURRENCY}

    def test_twice_with_one_key_is_one_sale(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        grant(organization)
        quote, key = a_quote(api), a_new_key()
        first, second = (buy(api, quote=quote, key=key) for _ in range(2))
        assert first.json == second.json
        assert CreditSale.objects.count() == 1


class TestPayment:
    def test_from_the_wallet_is_made_at_once_and_once_per_key(
        self, api: ApiClient, organization: Organization
    ) -> None:
        invoice_id, total = self.owed(api, organization)
        fund(organization, amount_minor=total + 1)
        path, key = f"/v1/invoices/{invoice_id}/payments", a_new_key()
        first, second = (api.post(path, {"payment_method": "wallet"}, key=key) for _ in range(2))
        assert first.status == 201
        assert first.content == second.content
        assert first.json["status"] == "succeeded"
        assert first.json["amount"] == {"amount_minor": total, "currency": settings.CURRENCY}
        assert api.get("/v1/wallet").json["balance"]["amount_minor"] == 1
        shown = api.get("/v1/reservations").json["data"][0]["payment"]
        assert (shown["status"], shown["invoice"]["open"]["amount_minor"]) == ("paid", 0)
        again = api.post(path, {"payment_method": "wallet"}, key=a_new_key())
        assert (again.status, again.code) == (422, "nothing_receivable")

    def test_of_a_part_that_the_wallet_does_not_cover_says_what_is_missing(
        self, api: ApiClient, organization: Organization
    ) -> None:
        invoice_id, _ = self.owed(api, organization)
        fund(organization, amount_minor=9)
        amount = {"amount_minor": 10, "currency": settings.CURRENCY}
        answer = api.post(
            f"/v1/invoices/{invoice_id}/payments",
            {"payment_method": "wallet", "amount": amount},
            key=a_new_key(),
        )
        assert (answer.status, answer.code) == (402, "payment_required")
        assert answer.json["missing"]["amount_minor"] == 1

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            ({"payment_method": "card"}, 501, "payment_method_unavailable"),
            ({"payment_method": "invoice"}, 422, "invalid_request"),
            ({}, 422, "invalid_request"),
            (
                {"payment_method": "wallet", "amount": {"amount_minor": 5, "currency": "jpy"}},
                422,
                "invalid_value",
            ),
        ],
    )
    def test_of_a_kind_that_is_not_taken_is_refused(
        self,
        api: ApiClient,
        organization: Organization,
        body: dict[str, Any],
        status: int,
        code: str,
    ) -> None:
        invoice_id, _ = self.owed(api, organization)
        answer = api.post(f"/v1/invoices/{invoice_id}/payments", body, key=a_new_key())
        assert (answer.status, answer.code) == (status, code)

    def test_needs_a_key_and_an_invoice_of_ones_own(
        self, api: ApiClient, organization: Organization
    ) -> None:
        invoice_id, _ = self.owed(api, organization)
        path = f"/v1/invoices/{invoice_id}/payments"
        assert api.post(path, {"payment_method": "wallet"}).code == "idempotency_key_required"
        _, secret = a_key(organization=an_organization())
        stranger = api.signed_in(secret=secret)
        assert stranger.post(path, {"payment_method": "wallet"}, key=a_new_key()).status == 404

    def owed(self, api: ApiClient, organization: Organization) -> tuple[str, int]:
        a_fleet()
        grant(organization)
        bought = buy(api, quote=a_quote(api)).json
        return bought["payment"]["invoice"]["id"], bought["total"]["amount_minor"]


class TestStanding:
    def test_says_what_may_still_be_bought(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        assert api.get("/v1/credit").json["limit"]["amount_minor"] == 0
        grant(organization, limit=100_000)
        total = buy(api, quote=a_quote(api)).json["total"]["amount_minor"]
        shown = api.get("/v1/credit").json
        assert (shown["net_days"], shown["overdue_invoices"]) == (30, [])
        assert shown["owed"]["amount_minor"] == total
        assert shown["available"]["amount_minor"] == 100_000 - total
