"""What a taxed tenant sees: prices stay without tax, and beside each stands what is charged."""

import csv
import datetime as dt
import io
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from billing import ledger, settlements, tax_rules
from billing.models import Payment
from billing.states import AccountKind
from marketplace.models import Organization
from scheduler.states import ReservationStatus
from tests.api.world import a_fleet, a_new_key, a_quote, a_reservation, a_window, fund
from tests.billing import factories as books
from tests.conftest import ApiClient
from tests.factories import a_key

pytestmark = pytest.mark.django_db
LATER = books.START + dt.timedelta(days=1)


def taxed(
    organization: Organization, *, treatment: str = "standard", at: dt.datetime | None = None
) -> None:
    at = at or timezone.now()
    tax_rules.publish_rule(
        jurisdiction="DE", name="VAT", rate_basis_points=1900, at=at, actor="test"
    )
    tax_rules.set_status(
        organization=organization,
        jurisdiction="DE",
        treatment=treatment,
        tax_id="DE123456789",
        at=at,
        actor="test",
    )


def minor(row: dict[str, Any], name: str) -> int:
    amount: int = row[name]["amount_minor"]
    return amount


class TestQuote:
    def test_shows_the_tax_beside_a_total_without_it(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        untaxed = a_quote(api)
        taxed(organization)
        quote = a_quote(api)
        assert quote["total"] == untaxed["total"] == {"amount_minor": 471, "currency": "usd"}
        assert (minor(quote, "tax"), minor(quote, "total_with_tax")) == (89, 560)
        assert quote["price_breakdown"]["tax_note"] == "VAT 19 % (DE)"
        assert quote["price_breakdown"]["tax_minor"] == 89
        assert api.get(f"/v1/quotes/{quote['id']}").json["tax"] == quote["tax"]

    @pytest.mark.parametrize("treatment", [None, "reverse_charge", "exempt"])
    def test_has_no_line_of_a_tax_of_nothing(
        self, api: ApiClient, organization: Organization, treatment: str | None
    ) -> None:
        a_fleet()
        if treatment is not None:
            taxed(organization, treatment=treatment)
        quote = a_quote(api)
        assert (minor(quote, "tax"), quote["total_with_tax"]) == (0, quote["total"])
        assert not [name for name in quote["price_breakdown"] if "tax" in name]

    def test_that_was_bought_shows_what_was_charged_whatever_the_rate_is_now(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        taxed(organization)
        quote = a_quote(api)
        reservation = a_reservation(api, quote=quote)
        taxed(organization, treatment="exempt")
        assert minor(api.get(f"/v1/quotes/{quote['id']}").json, "tax") == 89
        shown = api.get(f"/v1/reservations/{reservation['id']}").json
        assert (shown["tax"], shown["total_with_tax"]) == (quote["tax"], quote["total_with_tax"])
        assert api.get("/v1/reservations").json["data"] == [shown]


class TestPurchase:
    def test_asks_for_what_is_missing_with_the_tax(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        taxed(organization)
        fund(organization, amount_minor=500)
        body = {"quote_id": a_quote(api)["id"], "payment_method": "wallet"}
        answer = api.post("/v1/reservations", body, key=a_new_key())
        assert (answer.status, answer.json["missing"]["amount_minor"]) == (402, 60)

    def test_by_card_asks_the_provider_for_price_and_tax(
        self, api: ApiClient, organization: Organization, settings: Any
    ) -> None:
        settings.STRIPE_SECRET_KEY = "sk_test_nobody"
        settings.STRIPE_API_BASE = "http://127.0.0.1:9"
        a_fleet()
        taxed(organization)
        reservation = a_reservation(api, payment_method="card")
        assert minor(reservation, "total_with_tax") == 560
        # The payment was written with its terms; a status that changes later changes neither.
        taxed(organization, treatment="exempt")
        assert Payment.objects.get().amount_minor == 560
        shown = api.get(f"/v1/reservations/{reservation['id']}").json
        assert minor(shown, "total_with_tax") == 560


class TestChangeQuote:
    def test_shows_the_tax_that_is_charged_and_the_tax_that_goes_back(
        self, api: ApiClient, organization: Organization
    ) -> None:
        a_fleet()
        fund(organization)
        taxed(organization)
        window = a_window(in_hours=24 * 40)
        reservation = a_reservation(api, quote=a_quote(api, window=window))
        path = f"/v1/reservations/{reservation['id']}"
        leaving = api.post(f"{path}/cancellation-quote", {}).json
        # A tenth of 471 is kept and stays taxed: 9 of 89.
        assert (minor(leaving, "fee"), minor(leaving, "refund")) == (47, 424)
        assert (minor(leaving, "refund_tax"), minor(leaving, "charge_tax")) == (80, 0)
        made = api.post(f"{path}/cancellation", {"quote_id": leaving["id"]}, key=a_new_key())
        assert made.status == 201
        assert api.get("/v1/wallet").json["balance"]["amount_minor"] == 1_000_000 - 47 - 9


class TestBills:
    def settled(self, organization: Organization) -> str:
        taxed(organization, at=books.START - dt.timedelta(days=1))
        books.fund(organization, minor=10_000)
        row = books.reservation(buyer=organization, status=ReservationStatus.COMPLETED)
        lease = books.lease(of=row, returned_after_seconds=2700)
        books.meter_fully(of=lease)
        settlements.settle_ended(at=LATER)
        return str(row.pk)

    def test_of_a_reservation_show_tax_and_credits(
        self, api: ApiClient, organization: Organization
    ) -> None:
        bill = api.get(f"/v1/reservations/{self.settled(organization)}/bill").json
        assert (minor(bill, "net"), minor(bill, "tax"), minor(bill, "net_with_tax")) == (
            353,
            67,
            420,
        )
        assert minor(bill, "credits") == 12
        spent = minor(bill, "net_with_tax") - minor(bill, "credits")
        assert api.get("/v1/wallet").json["balance"]["amount_minor"] == 10_000 - spent

    def test_of_a_month_show_tax_in_every_form(
        self, api: ApiClient, organization: Organization
    ) -> None:
        reservation_id = self.settled(organization)
        month = api.get("/v1/bills/2026-11").json
        for figures in (month["total"], *month["reservations"]):
            assert (minor(figures, "billed"), minor(figures, "tax")) == (353, 67)
            assert minor(figures, "billed_with_tax") == 420
            assert (minor(figures, "charged"), minor(figures, "refunded")) == (471, 118)
            assert (minor(figures, "earned"), minor(figures, "credits")) == (353, 12)
        assert [row["reservation_id"] for row in month["reservations"]] == [reservation_id]
        _, secret = a_key(organization=organization)
        bearer = {"Authorization": f"Bearer {secret}"}
        rows = Client().get("/v1/bills/2026-11?format=csv", headers=bearer).getvalue().decode()
        (row,) = csv.DictReader(io.StringIO(rows))
        assert (row["tax_minor"], row["billed_with_tax_minor"]) == ("67", "420")
        page = Client().get("/v1/bills/2026-11?format=html", headers=bearer).content.decode()
        assert "Billed with tax" in page
        assert "4.20 USD" in page
        owed = ledger.balance(account=ledger.AccountRef(AccountKind.TAX_PAYABLE, "usd", "DE"))
        assert owed == 67
