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
        assert (payment["method"], payment["status"]) == ("invoice", "paid")
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
